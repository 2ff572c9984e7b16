// What the pointwise kernels are launched with; effnet_fast/cuda/pointwise_conv.py packs the same.
#pragma once

#include <cstdint>

#include "divisor.cuh"

namespace effnet_fast::cuda {

// Channels are adjacent; all strides are in elements.
struct PointwiseConv {
  const void* x;         // [image][pixel][cin]
  const void* weight;    // [cout][weight_depth], zeros from cin on
  const float* bias;     // [cout], or null
  const void* gate;      // [image][cin]
  const void* residual;  // as y, or null
  void* y;               // [image][pixel][cout], or null
  float* sums;           // [image][tile][cout], or null
  int64_t x_image, x_row, x_pixel;
  int64_t r_image, r_row, r_pixel;
  int64_t y_image, y_row, y_pixel;
  int32_t cin, weight_depth, cout, pixels;
  Divisor columns;               // of a row of pixels
  Divisor channel_tiles, tiles;  // blocks: [image][tile of pixels][tile of channels]
  int32_t act;
  int32_t gate_offset;   // bytes, in shared memory
  int32_t x_is_aligned;  // all pixels, to 16 bytes
  int32_t y_is_aligned;  // y and the residual, to 4 elements; and cout is a multiple of 4
};

}  // namespace effnet_fast::cuda
