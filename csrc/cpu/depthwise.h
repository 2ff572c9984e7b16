// One output row of a depthwise convolution, from pointers to its input rows: rows of a map, or of
// a ring buffer.
//
// Weights lie as [vector of channels][tap][lane]. Each output is one chain of fused multiply-adds
// from the bias over its taps in ascending order; taps outside the map are skipped, which gives the
// bits that a 0 there would.
#pragma once

#include "effnet_fast/kernels.h"
#include "simd.h"

namespace effnet_fast::EFFNET_FAST_ISA {

struct DepthwiseRow {
  int64_t channels;
  const float* weight;  // packed, at the first channel
  const float* bias;    // at the first channel, or null
  Window window;
  Act act;
  const float* const* rows;     // kh pointers to column 0 of the input rows
  int64_t first_row, last_row;  // which of them, [first, last), lie on the map
  int64_t width, in_pixel;      // of the input rows
  int64_t left;                 // output column x starts at input column x * stride - left
  float* y;
  int64_t y_width, y_pixel;
  float* sums;  // receives the row's sum per channel; or null
};

// Makes the row. Compiled once, in depthwise_conv.cpp.
void depthwise_row(const DepthwiseRow& row);

// sums[c] of row_sums[row][c], top to bottom; each worker does its share of the channels.
void sum_rows(const float* row_sums, int64_t rows, int64_t channels, float* sums,
              const Worker& worker);

}  // namespace effnet_fast::EFFNET_FAST_ISA
