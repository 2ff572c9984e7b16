// A depthwise convolution whose operator makes the map before it in the same pass: that map exists
// only as a ring of rows of a chunk of its channels, small enough for half of an L2 of 512 KB.
#pragma once

#include "depthwise.h"
#include "gemm.h"

namespace effnet_fast::EFFNET_FAST_ISA {

constexpr int64_t kRingFloats = 256 * 1024 / sizeof(float);

class DepthwiseRing {
 public:
  // Of a map of h x w pixels; the ring has room for what `group` output rows are made of.
  DepthwiseRing(const DepthwiseConv& conv, int64_t h, int64_t w, int64_t group)
      : conv_(conv),
        panels_(conv.c),
        h_(h),
        w_(w),
        y_height_(conv.window.out_h(h)),
        span_h_(conv.window.dilation_h * (conv.window.kh - 1) + 1),
        rows_((group - 1) * conv.window.stride_h + span_h_) {
    const Window& window = conv.window;
    const int64_t span_w = window.dilation_w * (window.kw - 1) + 1;
    width_ = greatest((window.out_w(w) - 1) * window.stride_w + span_w, window.left + w);
    const int64_t fitting = greatest(kRingFloats / (rows_ * width_ * kPanel), 1);
    chunks_ = ceil_div(panels_.count, fitting);
    const int64_t chunk_panels = ceil_div(panels_.count, chunks_);
    pixel_ = least(chunk_panels * kPanel + kLanes, round_up(conv.c, kLanes));
  }

  // With `summed`, Worker::shared holds the sums of rows, [row][c].
  Scratch scratch(bool summed) const {
    return {ring_at() + rows_ * width_ * pixel_, summed ? y_height_ * conv_.c : 0};
  }
  const Panels& panels() const { return panels_; }
  // As few as fit; more are smaller.
  int64_t chunks() const { return chunks_; }
  int64_t pixel() const { return pixel_; }

  // Must come first. Clears the columns beside the map.
  void start(float* scratch) {
    rows_at_ = reinterpret_cast<const float**>(scratch);
    ring_ = scratch + ring_at();
    const int64_t left = conv_.window.left;
    for (int64_t row = 0; row < rows_; ++row) {
      for (float* p = at(row, -left); p < at(row, 0); ++p) *p = 0.0f;
      for (float* p = at(row, w_); p < at(row, width_ - left); ++p) *p = 0.0f;
    }
  }

  // Where the chunk's channels of the map's pixel lie.
  float* at(int64_t row, int64_t column) const {
    return ring_ + (row % rows_ * width_ + conv_.window.left + column) * pixel_;
  }

  // Output row `row` is made of the map's rows [top, bottom); the top may lie above the map.
  int64_t top(int64_t row) const { return row * conv_.window.stride_h - conv_.window.top; }
  int64_t bottom(int64_t row) const { return least(top(row) + span_h_, h_); }

  // Makes the channels of panels [begin, end) of an output row, of rows that are in the ring.
  void make(int64_t row, int64_t begin, int64_t end, const Map& y, float* row_sums) const {
    const Window& w = conv_.window;
    const int64_t c = begin * kPanel;
    const StepRange taps(top(row), w.kh, w.dilation_h, h_);
    for (int64_t ky = taps.first; ky < taps.last; ++ky) {
      rows_at_[ky] = at(top(row) + ky * w.dilation_h, -w.left);
    }
    DepthwiseRow d;
    d.channels = (end == panels_.count ? conv_.c : end * kPanel) - c;
    d.weight = conv_.weight + c * w.kh * w.kw;
    d.bias = conv_.bias ? conv_.bias + c : nullptr;
    d.window = w;
    d.act = conv_.act;
    d.rows = rows_at_;
    d.first_row = taps.first;
    d.last_row = taps.last;
    d.width = width_;
    d.in_pixel = pixel_;
    d.left = 0;
    d.y = y.data + row * y.row + c;
    d.y_width = y.w;
    d.y_pixel = y.pixel;
    d.sums = row_sums ? row_sums + row * conv_.c + c : nullptr;
    depthwise_row(d);
  }

 private:
  int64_t ring_at() const { return pointer_floats(conv_.window.kh); }

  const DepthwiseConv conv_;
  const Panels panels_;
  const int64_t h_, w_, y_height_;
  const int64_t span_h_;  // rows of the map under a window
  const int64_t rows_;
  int64_t width_, pixel_;  // pixel_: as wide as the widest chunk
  int64_t chunks_;
  const float** rows_at_ = nullptr;
  float* ring_ = nullptr;
};

}  // namespace effnet_fast::EFFNET_FAST_ISA
