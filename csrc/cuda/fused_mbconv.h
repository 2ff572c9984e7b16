// What the kernels of fused_mbconv.cu are launched with; effnet_fast/cuda/fused_mbconv.py packs the
// same.
#pragma once

#include "epilogue.cuh"

namespace effnet_fast::cuda {

// Channels are adjacent; all strides are in elements. A row of `weight` is a window of pixels with
// `tap_depth` channels each, zeros from cin on.
struct FusedMbconv {
  const void* x;        // [image][pixel][cin]
  const void* weight;   // [mid][depth]
  const float* bias;    // [mid], or null; of the first product, where there are two
  const void* project;  // [cout][project_depth], zeros from mid on; or null
  int64_t x_image;
  int32_t x_row, x_pixel;
  int32_t cin, depth, mid, project_depth, pixels;
  int32_t h, w, stride_h, stride_w, dilation_h, dilation_w, top, left;
  int32_t act;  // of the first product, where there are two
  Divisor tap_depth, kernel_columns;
  Divisor out_columns;
  Divisor channel_tiles, tiles;  // blocks: [image][tile of pixels][tile of channels]
  Epilogue out;
};

}  // namespace effnet_fast::cuda
