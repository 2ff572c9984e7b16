// One output row of a depthwise convolution, from pointers to its input rows: rows of a map, or of
// a ring buffer.
//
// Weights lie as [vector of channels][tap][lane]. Each output is one chain of fused multiply-adds
// from the bias over its taps in ascending order; taps outside the map are skipped, which gives the
// bits that a 0 there would.
#pragma once

#include "activation.h"
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
  int64_t width, in_pixel,
      left;  // of the input; output column x starts at input column x * stride - left
  float* y;
  int64_t y_width, y_pixel;
  float* sums;  // receives the row's sum per channel; or null
};

constexpr int kDepthwiseColumns = 4;  // outputs that share their loads

// Calls f(offset, Full or Tail) for each vector of channels.
template <class F>
EFFNET_FAST_INLINE void for_each_vec(int64_t channels, F f) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) f(c, Full());
  if (c < channels) f(c, Tail(channels - c));
}

template <int kCount, class Lanes>
EFFNET_FAST_INLINE void finish_columns(const DepthwiseRow& d, int64_t c, int64_t x,
                                       Vec (&acc)[kCount], Lanes lanes) {
  activate(d.act, acc);
  for (int i = 0; i < kCount; ++i) store(d.y + (x + i) * d.y_pixel + c, acc[i], lanes);
  if (d.sums) {
    Vec sum = load(d.sums + c, lanes);
    for (int i = 0; i < kCount; ++i) sum = sum + acc[i];
    store(d.sums + c, sum, lanes);
  }
}

// Output columns [x, x + kCount), all of whose columns of taps lie on the map.
template <int kTaps, int kStride, int kCount>
static void depthwise_columns(const DepthwiseRow& d, int64_t x) {
  constexpr int kInputs = (kCount - 1) * kStride + kTaps;
  const int64_t first = (x * kStride - d.left) * d.in_pixel;
  for_each_vec(d.channels, [&](int64_t c, auto lanes) {
    Vec acc[kCount];
    const Vec bias = d.bias ? load(d.bias + c, lanes) : zero();
    for (int i = 0; i < kCount; ++i) acc[i] = bias;
    const float* weight = d.weight + (c * d.window.kh + d.first_row * kLanes) * kTaps;
    for (int64_t ky = d.first_row; ky < d.last_row; ++ky, weight += kTaps * kLanes) {
      const float* in = d.rows[ky] + first + c;
      Vec w[kTaps];
      for (int kx = 0; kx < kTaps; ++kx) w[kx] = load(weight + kx * kLanes);
      for (int j = 0; j < kInputs; ++j, in += d.in_pixel) {
        const Vec v = load(in, lanes);
        for (int i = 0; i < kCount; ++i) {
          const int kx = j - i * kStride;
          if (kx >= 0 && kx < kTaps) acc[i] = fma(v, w[kx], acc[i]);
        }
      }
    }
    finish_columns(d, c, x, acc, lanes);
  });
}

// Output column x for any window, with the taps [first, last) of a row on the map.
static void depthwise_column(const DepthwiseRow& d, int64_t x, int64_t first_tap,
                             int64_t last_tap) {
  const int64_t taps = d.window.kw, step = d.window.dilation_w * d.in_pixel;
  const int64_t first =
      (x * d.window.stride_w - d.left + first_tap * d.window.dilation_w) * d.in_pixel;
  for_each_vec(d.channels, [&](int64_t c, auto lanes) {
    Vec acc[1] = {d.bias ? load(d.bias + c, lanes) : zero()};
    const float* weight = d.weight + c * d.window.kh * taps;
    for (int64_t ky = d.first_row; ky < d.last_row; ++ky) {
      const float* in = d.rows[ky] + first + c;
      for (int64_t kx = first_tap; kx < last_tap; ++kx, in += step) {
        acc[0] = fma(load(in, lanes), load(weight + (ky * taps + kx) * kLanes), acc[0]);
      }
    }
    finish_columns(d, c, x, acc, lanes);
  });
}

using DepthwiseColumns = void (*)(const DepthwiseRow&, int64_t x);

template <int kTaps, int kStride>
EFFNET_FAST_INLINE DepthwiseColumns columns_kernel_of(int64_t count) {
  static_assert(kDepthwiseColumns == 4);
  switch (count) {
    case 1:
      return depthwise_columns<kTaps, kStride, 1>;
    case 2:
      return depthwise_columns<kTaps, kStride, 2>;
    case 3:
      return depthwise_columns<kTaps, kStride, 3>;
    default:
      return depthwise_columns<kTaps, kStride, 4>;
  }
}

// Null when the window has no kernel of its own.
static DepthwiseColumns columns_kernel(const Window& w, int64_t count) {
  if (w.dilation_w != 1 || (w.stride_w != 1 && w.stride_w != 2)) return nullptr;
  const bool two = w.stride_w == 2;
  switch (w.kw) {
    case 3:
      return two ? columns_kernel_of<3, 2>(count) : columns_kernel_of<3, 1>(count);
    case 5:
      return two ? columns_kernel_of<5, 2>(count) : columns_kernel_of<5, 1>(count);
    case 7:
      return two ? columns_kernel_of<7, 2>(count) : columns_kernel_of<7, 1>(count);
    case 9:
      return two ? columns_kernel_of<9, 2>(count) : columns_kernel_of<9, 1>(count);
    default:
      return nullptr;
  }
}

// [first, last) of the taps i in [0, taps) with 0 <= start + i * dilation < size
struct TapRange {
  int64_t first, last;

  TapRange(int64_t start, int64_t taps, int64_t dilation, int64_t size) {
    first = start >= 0 ? 0 : least(ceil_div(-start, dilation), taps);
    last = start >= size ? 0 : least(ceil_div(size - start, dilation), taps);
    last = greatest(first, last);
  }
};

static void depthwise_row(const DepthwiseRow& d) {
  const Window& w = d.window;
  if (d.sums)
    for_each_vec(d.channels, [&](int64_t c, auto lanes) { store(d.sums + c, zero(), lanes); });
  // Columns whose taps all lie on the map: x * stride >= left, and the last tap before `width`.
  const int64_t span = w.dilation_w * (w.kw - 1);
  int64_t interior = least(ceil_div(d.left, w.stride_w), d.y_width);
  const int64_t room = d.width + d.left - span - 1;  // the largest x * stride that fits
  int64_t interior_end = room < 0 ? 0 : least(room / w.stride_w + 1, d.y_width);
  const bool has_kernel = columns_kernel(w, 1) != nullptr;
  if (!has_kernel || interior_end <= interior) interior = interior_end = d.y_width;

  const auto by_column = [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) {
      const TapRange taps(x * w.stride_w - d.left, w.kw, w.dilation_w, d.width);
      depthwise_column(d, x, taps.first, taps.last);
    }
  };
  by_column(0, interior);
  const int64_t count = interior_end - interior, blocks = ceil_div(count, kDepthwiseColumns);
  for (int64_t i = 0, x = 0; i < blocks; ++i) {
    const int64_t end = count * (i + 1) / blocks;
    columns_kernel(w, end - x)(d, interior + x);
    x = end;
  }
  by_column(interior_end, d.y_width);
}

// sums[c] of row_sums[row][c], top to bottom; each worker does its share of the channels.
static void sum_rows(const float* row_sums, int64_t rows, int64_t channels, float* sums,
                     const Worker& worker) {
  const int64_t vecs = ceil_div(channels, kLanes);
  const int64_t begin = vecs * worker.id / worker.count * kLanes;
  const int64_t end = least(vecs * (worker.id + 1) / worker.count * kLanes, channels);
  for_each_vec(end - begin, [&](int64_t c, auto lanes) {
    Vec sum = zero();
    for (int64_t row = 0; row < rows; ++row)
      sum = sum + load(row_sums + row * channels + begin + c, lanes);
    store(sums + begin + c, sum, lanes);
  });
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
