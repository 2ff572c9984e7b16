// The first convolution: from an image of any layout to an NHWC map.
//
// Input rows are copied into a ring of NHWC rows with their padding, where a window's row is one
// run of kw * cin floats: gemm takes it as one tap.
#include "gemm.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

struct Layout {
  bool merged;  // a window's row is contiguous: a tap per row, not per pixel
  int64_t taps, depth;
  int64_t rows, width;  // of the ring
  int64_t y_width;
  int64_t zeros, pointers, ring, total;  // offsets into the worker's scratch

  Layout(const Conv& conv, const Window& w, const Planes& x) {
    merged = w.dilation_w == 1;
    taps = merged ? w.kh : w.kh * w.kw;
    depth = merged ? w.kw * conv.cin : conv.cin;
    rows = w.dilation_h * (w.kh - 1) + 1;
    const int64_t span = w.dilation_w * (w.kw - 1) + 1;
    y_width = (x.w + w.left + w.right - span) / w.stride_w + 1;
    width = (y_width - 1) * w.stride_w + span;
    zeros = 0;
    pointers = zeros + round_up(depth, 16);
    ring = pointers + pointer_floats(taps * kMaxBlock);
    total = ring + rows * width * conv.cin;
  }
};

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

}  // namespace

Scratch stem_conv_scratch(const Conv& conv, const Window& window, const Planes& x) {
  return {Layout(conv, window, x).total, 0};
}

void stem_conv(const Conv& conv, const Window& w, const Planes& x, const Map& y,
               const Worker& worker) {
  const Layout layout(conv, w, x);
  const int64_t row_floats = layout.width * conv.cin;
  float* zeros = worker.scratch + layout.zeros;
  const float** a_pixels = reinterpret_cast<const float**>(worker.scratch + layout.pointers);
  float* ring = worker.scratch + layout.ring;
  float* y_pixels[kMaxBlock];
  for (int64_t i = 0; i < layout.depth; ++i) zeros[i] = 0.0f;
  for (int64_t i = 0; i < layout.rows * row_floats; ++i) ring[i] = 0.0f;

  const Gemm gemm{conv.weight, conv.bias, layout.taps, layout.depth, conv.act, Panels(conv.cout)};
  const int64_t columns = least(x.w, layout.width - w.left);  // of the image that windows reach
  const EvenCut blocks(y.w, kMaxBlock);
  int64_t next = 0;  // the first input row that isn't in the ring yet
  const int64_t end = y.h * (worker.id + 1) / worker.count;
  for (int64_t row = y.h * worker.id / worker.count; row < end; ++row) {
    const int64_t top = row * w.stride_h - w.top;
    const int64_t bottom = least(top + layout.rows, x.h);
    for (next = greatest(next, top); next < bottom; ++next) {
      float* to = ring + next % layout.rows * row_floats + w.left * conv.cin;
      interleave(x.data + next * x.row, x, columns, to);
    }
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t begin = blocks.begin(i), count = blocks.begin(i + 1) - begin;
      for (int64_t tap = 0; tap < layout.taps; ++tap) {
        const int64_t ky = layout.merged ? tap : tap / w.kw, kx = layout.merged ? 0 : tap % w.kw;
        const int64_t iy = top + ky * w.dilation_h;
        const bool inside = iy >= 0 && iy < x.h;
        const float* first =
            inside ? ring + iy % layout.rows * row_floats + kx * w.dilation_w * conv.cin : zeros;
        const int64_t step = inside ? w.stride_w * conv.cin : 0;
        for (int64_t p = 0; p < count; ++p)
          a_pixels[tap * kMaxBlock + p] = first + (begin + p) * step;
      }
      for (int64_t p = 0; p < count; ++p)
        y_pixels[p] = y.data + row * y.row + (begin + p) * y.pixel;
      const Pixels pixels{count, a_pixels, kMaxBlock, y_pixels, nullptr};
      for (int64_t panel = 0; panel < gemm.panels.count; ++panel) gemm_panel(gemm, panel, pixels);
    }
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
