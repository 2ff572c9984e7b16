// What the kernels of expand_depthwise.cu are launched with; effnet_fast/cuda/expand_depthwise.py
// packs the same.
#pragma once

#include <cstdint>

#include "divisor.cuh"

namespace effnet_fast::cuda {

// All strides are in elements. "Wide" is the map between: of the expansion, or of the stem.
struct ExpandDepthwise {
  const void* x;              // [image][pixel][depth]; of a stem [image][channel][pixel]
  const void* weight;         // [channels][weight_depth], zeros from depth on; of a stem a row is
                              // [channel][row][4], of which the first or the last is 0
  const float* expand_bias;   // [channels], or null
  const uint32_t* constants;  // [channels][kConstants]: what expand_depthwise.cu says of taps
  void* y;                    // [image][pixel][channels]
  float* sums;                // [image][tile][channels], or null
  int64_t x_image, x_channel, y_image;
  int32_t x_row, x_pixel, y_row, y_pixel;
  int32_t depth, weight_depth;  // products of a wide element
  int32_t images, channels;
  int32_t h, w, out_h, out_w;  // of the wide map, of y
  int32_t top;                 // padding above the wide map
  int32_t expand_act, act;
  // Blocks: [images of a block][tile][chunk of channels].
  int32_t block_images;
  Divisor chunks, tiles, column_tiles;
  int32_t tile_rows, tile_columns;  // outputs of a tile
  // A step makes so many rows of the wide map, of `span` columns, an even number; a round of
  // outputs has `round_rows`.
  int32_t step_rows, round_rows;
  Divisor span;
  Divisor units;  // copies of 16 bytes that a row of x or weight is
  // Where the second half of a matrix lies: so many rows or columns of y, or images, on.
  int32_t half_rows, half_columns, half_images;
  // The window: its columns of padding, and of all; columns before the first that outputs see.
  int32_t window_left, window_columns, window_units, tap_shift;
  int32_t unit_bytes, phase_bytes, image_bytes, half_bytes;
  // Shared memory, in bytes: the constants come first.
  int32_t bias_offset, places_offset, weight_offset, input_offset, window_offset;
  // Of the pixels of a step: rows in shared memory, of which one has 1 << fold.
  int32_t input_rows, fold;
  // Of a stem: the image, and what a step needs of it in shared memory, in units of 8 elements.
  int32_t channels_in, image_h, image_w, stem_top, stem_left;
  int32_t stem_offset;  // in shared memory, of a table

  int32_t image_is_aligned;  // rows are adjacent elements, from a multiple of 16 bytes on
  Divisor image_units, image_rows;
};

}  // namespace effnet_fast::cuda
