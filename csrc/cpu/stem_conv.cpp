// The first convolution: from an image of any layout to an NHWC map.
#include "operators.h"
#include "stem.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

// to[pixel][channel] of one row of an image
void interleave(const float* row, const Planes& x, int64_t columns, float* to) {
  if (x.c == 3 && x.pixel == 1) {  // what images are: three planes, one pass of vector shuffles
    const float* __restrict red = row;
    const float* __restrict green = row + x.channel;
    const float* __restrict blue = row + 2 * x.channel;
    float* __restrict out = to;
    for (int64_t i = 0; i < columns; ++i) {
      out[3 * i] = red[i];
      out[3 * i + 1] = green[i];
      out[3 * i + 2] = blue[i];
    }
    return;
  }
  for (int64_t c = 0; c < x.c; ++c) {
    for (int64_t i = 0; i < columns; ++i) to[i * x.c + c] = row[c * x.channel + i * x.pixel];
  }
}

Gemm gemm_of(const Conv& conv, const Window& w, bool merged) {
  const int64_t taps = merged ? w.kh : w.kh * w.kw;
  const int64_t depth = merged ? w.kw * conv.cin : conv.cin;
  return {conv.weight, conv.bias, taps, depth, conv.act, Panels(conv.cout)};
}

}  // namespace

StemRows::StemRows(const Conv& conv, const Window& w, const Planes& x)
    : window_(w),
      x_(x),
      y_width_(w.out_w(x.w)),
      merged_(w.dilation_w == 1),
      gemm_(gemm_of(conv, w, merged_)),
      rows_(w.dilation_h * (w.kh - 1) + 1),
      width_((y_width_ - 1) * w.stride_w + w.dilation_w * (w.kw - 1) + 1) {
  zeros_at_ = 0;
  pointers_at_ = zeros_at_ + round_up(gemm_.depth, 16);
  ring_at_ = pointers_at_ + pointer_floats(gemm_.taps * kMaxBlock);
  total_ = ring_at_ + rows_ * width_ * x.c;
}

void StemRows::start(float* scratch) {
  scratch_ = scratch;
  next_ = 0;
  for (int64_t i = 0; i < gemm_.depth; ++i) scratch[zeros_at_ + i] = 0.0f;
  for (int64_t i = ring_at_; i < total_; ++i) scratch[i] = 0.0f;
}

void StemRows::make(int64_t row, int64_t begin, int64_t end, float* y, int64_t y_pixel) {
  const Window& w = window_;
  const float* zeros = scratch_ + zeros_at_;
  const float** a_pixels = reinterpret_cast<const float**>(scratch_ + pointers_at_);
  float* ring = scratch_ + ring_at_;
  float* y_pixels[kMaxBlock];
  const int64_t row_floats = width_ * x_.c;
  const int64_t columns = least(x_.w, width_ - w.left);  // of the image that windows reach
  const int64_t top = row * w.stride_h - w.top;
  const int64_t bottom = least(top + rows_, x_.h);
  for (next_ = greatest(next_, top); next_ < bottom; ++next_) {
    float* to = ring + next_ % rows_ * row_floats + w.left * x_.c;
    interleave(x_.data + next_ * x_.row, x_, columns, to);
  }
  const EvenCut blocks(y_width_, kMaxBlock);
  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t first = blocks.begin(i), count = blocks.begin(i + 1) - first;
    for (int64_t tap = 0; tap < gemm_.taps; ++tap) {
      const int64_t ky = merged_ ? tap : tap / w.kw, kx = merged_ ? 0 : tap % w.kw;
      const int64_t iy = top + ky * w.dilation_h;
      const bool inside = iy >= 0 && iy < x_.h;
      const float* at = inside ? ring + iy % rows_ * row_floats + kx * w.dilation_w * x_.c : zeros;
      const int64_t step = inside ? w.stride_w * x_.c : 0;
      for (int64_t p = 0; p < count; ++p) a_pixels[tap * kMaxBlock + p] = at + (first + p) * step;
    }
    for (int64_t p = 0; p < count; ++p) y_pixels[p] = y + (first + p) * y_pixel;
    const Pixels pixels{count, a_pixels, kMaxBlock, y_pixels, nullptr};
    for (int64_t panel = begin; panel < end; ++panel) {
      gemm_panel(gemm_, panel, pixels, begin * kPanel);
    }
  }
}

Scratch stem_conv_scratch(const Conv& conv, const Window& window, const Planes& x) {
  return {StemRows(conv, window, x).scratch_floats(), 0};
}

void stem_conv(const Conv& conv, const Window& window, const Planes& x, const Map& y,
               const Worker& worker) {
  StemRows rows(conv, window, x);
  rows.start(worker.scratch);
  const int64_t end = y.h * (worker.id + 1) / worker.count;
  for (int64_t row = y.h * worker.id / worker.count; row < end; ++row) {
    rows.make(row, 0, rows.panels().count, y.data + row * y.row, y.pixel);
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
