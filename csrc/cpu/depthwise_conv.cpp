// Depthwise convolution of an NHWC map: bias, activation, and the sums that squeeze-and-excitation
// needs.
#include "depthwise.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

constexpr int64_t kChunk = 128;  // channels of a work item; a multiple of kLanes

}  // namespace

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
    const TapRange taps(top, w.kh, w.dilation_h, x.h);
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
