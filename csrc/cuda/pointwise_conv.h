// What the pointwise kernels are launched with; effnet_fast/cuda/pointwise_conv.py packs the same.
#pragma once

#include "epilogue.cuh"
#include "squeeze_excite.h"

namespace effnet_fast::cuda {

// Channels are adjacent; all strides are in elements.
struct PointwiseConv {
  const void* x;       // [image][pixel][cin]
  const void* weight;  // [cout][weight_depth], zeros from cin on
  const void* gate;    // [image][cin]
  int64_t x_image;
  int32_t x_row, x_pixel;
  int32_t cin, weight_depth, pixels, images;
  int32_t half_rows;             // of a tile, for one of two images; all, where it has one
  Divisor channel_tiles, tiles;  // blocks: [image][tile of pixels][tile of channels]
  Divisor gate_pixels;           // of an image, where `pixels` are those of several
  int32_t gate_offset;           // bytes, in shared memory
  int32_t x_is_aligned;          // all pixels, to 16 bytes
  Epilogue out;
};

// The gate is made by every block, before its products.
struct ExcitedPointwiseConv {
  PointwiseConv conv;
  SqueezeExcite gate;
};

}  // namespace effnet_fast::cuda
