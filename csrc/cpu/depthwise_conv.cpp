// Depthwise convolution of an NHWC map: bias, activation, and the sums that squeeze-and-excitation
// needs.
#include "depthwise.h"

#include "activation.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

constexpr int64_t kChunk = 128;  // channels of a work item; a multiple of kLanes

// Outputs that share their loads: as many chains as multiply-adds are under way at a time. With the
// weights of a row of taps and an input they fill the registers.
constexpr int columns_at_once(int64_t taps) { return kRegisters < 16 ? 4 : taps <= 7 ? 8 : 6; }

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
void depthwise_columns(const DepthwiseRow& d, int64_t x) {
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
      // GCC gives up unrolling at 16 on its own, and the accumulators would go to memory.
#pragma GCC unroll 32
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
void depthwise_column(const DepthwiseRow& d, int64_t x, int64_t first_tap, int64_t last_tap) {
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

template <int kTaps, int kStride, int kCount = columns_at_once(kTaps)>
DepthwiseColumns columns_kernel_of(int64_t count) {
  if constexpr (kCount == 0) {
    return nullptr;
  } else {
    return count == kCount ? depthwise_columns<kTaps, kStride, kCount>
                           : columns_kernel_of<kTaps, kStride, kCount - 1>(count);
  }
}

// Null when the window has no kernel of its own.
DepthwiseColumns columns_kernel(const Window& w, int64_t count) {
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

}  // namespace

void depthwise_row(const DepthwiseRow& d) {
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
      const StepRange taps(x * w.stride_w - d.left, w.kw, w.dilation_w, d.width);
      depthwise_column(d, x, taps.first, taps.last);
    }
  };
  by_column(0, interior);
  const int64_t count = interior_end - interior, blocks = ceil_div(count, columns_at_once(w.kw));
  for (int64_t i = 0, x = 0; i < blocks; ++i) {
    const int64_t end = count * (i + 1) / blocks;
    columns_kernel(w, end - x)(d, interior + x);
    x = end;
  }
  by_column(interior_end, d.y_width);
}

void sum_rows(const float* row_sums, int64_t rows, int64_t channels, float* sums,
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

int64_t packed_depthwise_size(int64_t c, int64_t kh, int64_t kw) {
  return round_up(c, kLanes) * kh * kw;
}

void pack_depthwise(const float* c1hw, int64_t c, int64_t kh, int64_t kw, float* packed) {
  const int64_t taps = kh * kw;
  for (int64_t first = 0; first < c; first += kLanes) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t i = first; i < first + kLanes; ++i)
        *packed++ = i < c ? c1hw[i * taps + tap] : 0.0f;
    }
  }
}

Scratch depthwise_conv_scratch(const DepthwiseConv& conv, const Map& x, bool summed) {
  const Window& w = conv.window;
  const int64_t rows = (x.h + w.top + w.bottom - w.dilation_h * (w.kh - 1) - 1) / w.stride_h + 1;
  return {pointer_floats(w.kh), summed ? rows * conv.c : 0};
}

void depthwise_conv(const DepthwiseConv& conv, const Map& x, const Map& y, float* sums,
                    const Worker& worker) {
  const Window& w = conv.window;
  const float** rows = reinterpret_cast<const float**>(worker.scratch);
  float* row_sums = worker.shared;  // [y.h][c]

  const int64_t chunks = ceil_div(conv.c, kChunk), items = chunks * y.h;
  const int64_t end = items * (worker.id + 1) / worker.count;
  for (int64_t item = items * worker.id / worker.count; item < end; ++item) {
    const int64_t c = item / y.h * kChunk, row = item % y.h;
    const int64_t top = row * w.stride_h - w.top;
    const StepRange taps(top, w.kh, w.dilation_h, x.h);
    for (int64_t ky = taps.first; ky < taps.last; ++ky) {
      rows[ky] = x.data + (top + ky * w.dilation_h) * x.row + c;
    }
    DepthwiseRow d;
    d.channels = least(conv.c - c, kChunk);
    d.weight = conv.weight + c * w.kh * w.kw;
    d.bias = conv.bias ? conv.bias + c : nullptr;
    d.window = w;
    d.act = conv.act;
    d.rows = rows;
    d.first_row = taps.first;
    d.last_row = taps.last;
    d.width = x.w;
    d.in_pixel = x.pixel;
    d.left = w.left;
    d.y = y.data + row * y.row + c;
    d.y_width = y.w;
    d.y_pixel = y.pixel;
    d.sums = sums ? row_sums + row * conv.c + c : nullptr;
    depthwise_row(d);
  }
  if (!sums) return;
  worker.sync();
  sum_rows(row_sums, y.h, conv.c, sums, worker);
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
