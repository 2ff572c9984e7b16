// What the stem kernels are launched with; effnet_fast/cuda/stem_conv.py packs the same.
#pragma once

#include "epilogue.cuh"

namespace effnet_fast::cuda {

// All strides are in elements.
struct StemConv {
  const void* x;       // [image][channel][row][column], of any strides
  const void* weight;  // [cout][weight_depth]: [channel][row][column], then zeros
  int64_t x_image, x_channel, x_row, x_pixel;
  int32_t depth, weight_depth, pixels;
  int32_t h, w, stride_h, stride_w, top, left;
  Divisor window, kernel_columns;  // taps of a channel, of a row
  Divisor out_columns;
  Divisor channel_tiles, tiles;  // blocks: [image][tile of pixels][tile of channels]
  Epilogue out;
};

}  // namespace effnet_fast::cuda
