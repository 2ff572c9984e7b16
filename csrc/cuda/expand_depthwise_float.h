// What the kernels of expand_depthwise_float.cu are launched with;
// effnet_fast/cuda/expand_depthwise_float.py packs the same.
#pragma once

#include <cstdint>

#include "divisor.cuh"

namespace effnet_fast::cuda {

// All strides are in elements. "Wide" is the map between.
struct ExpandDepthwiseFloat {
  const float* x;            // [image][pixel][depth]
  const float* weight;       // [channels][weight_depth], zeros from depth on
  const float* expand_bias;  // [channels], or null
  const float* constants;    // [k k + 1][padded_channels]: the taps, then the bias
  float* y;                  // [image][pixel][channels]
  float* sums;               // [image][tile][channels], or null
  int64_t x_image, y_image;
  int32_t x_row, x_pixel, y_row, y_pixel;
  int32_t depth, weight_depth;  // products of a wide element
  int32_t channels, padded_channels;
  int32_t h, w, out_h, out_w;  // of the wide map, of y
  int32_t top, left;           // padding of the wide map
  int32_t expand_act, act;
  // Blocks: [image][tile][chunk of channels].
  Divisor chunks, tiles, column_tiles;
  int32_t tile_rows, tile_columns;  // outputs of a tile
  // A step makes so many rows of the wide map, of `span` columns: all that a tile needs, or all
  // that there are.
  int32_t step_rows;
  Divisor span;
  Divisor units;   // copies of 16 bytes that a row of x or weight is
  Divisor planes;  // of 16 channels, of a block
  Divisor ring_rows;
  Divisor groups;        // of outputs of a thread, across a tile
  int32_t input_rows;    // room for pixels of a step, a multiple of 16
  int32_t room;          // rows that a step makes at most, padding below the map included
  int32_t ring_columns;  // of a row of the ring: what the groups read
  int32_t ring_pitch, plane_bytes;  // of rows, and of planes of a row
  // Shared memory, in bytes: the constants come first.
  int32_t bias_offset, weight_offset, input_offset, ring_offset;
};

}  // namespace effnet_fast::cuda
