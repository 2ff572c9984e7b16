// What the depthwise kernels are launched with; effnet_fast/cuda/depthwise_conv.py packs the same.
#pragma once

#include <cstdint>

#include "divisor.cuh"

namespace effnet_fast::cuda {

// How a thread goes over the inputs that its block stages: `step` inputs on, and where that is
// beyond a row, to the next one.
struct Staging {
  Divisor units;    // copies of a pixel, of a block
  Divisor columns;  // of a row
  int32_t rows;
  int32_t copies;                  // of 16 bytes, of a block
  int32_t step_h, step_w, wrap_w;  // in pixels of the map; wrap_w of a staged row
  int32_t to_step, to_wrap;        // in bytes of shared memory
  int64_t from_step, from_wrap;    // in elements
  int32_t pitch, plane_bytes;      // of rows and planes in shared memory
};

// Of a map's pixels.
enum Alignment : int32_t {
  kElements,  // none
  kQuads,     // 4 channels to their size; C is a multiple of 4
  kWhole,     // of x: to 16 bytes; of y: to a sector of 32 bytes, and C is a multiple of 4
};

// Channels are adjacent; all strides are in elements.
struct DepthwiseConv {
  const void* x;           // [image][h][w][channels]
  void* y;                 // [image][out_h][out_w][channels]
  const float* constants;  // [kh kw + 1][padded_channels]: the taps, then the bias
  float* sums;             // [image][tiles][channels], or null
  int64_t x_image, x_row, x_pixel;
  int64_t y_image, y_row, y_pixel;
  int64_t y_down,
      y_right;  // to the next output of a tile: a row, a pixel, or so many of a dilation
  int32_t channels, padded_channels;
  int32_t h, w, out_h, out_w;
  int32_t kh, kw, stride_h, stride_w, dilation_h, dilation_w, top, left;
  int32_t act;
  // Blocks: [image][tile][chunk of channels].
  Divisor chunks, tiles;
  // Of the tiled kernels.
  Divisor row_tiles, column_tiles;  // of a phase of the map
  Divisor planes;                   // of a block, with 16 channels each
  int32_t tile_rows, tile_columns;  // a block's outputs, in those of a thread
  Divisor tile_rows_or_columns;     // what threads of a tile go along first
  int32_t rows_first;               // whether that is down
  Staging staging;
  Alignment x_alignment, y_alignment;
};

}  // namespace effnet_fast::cuda
