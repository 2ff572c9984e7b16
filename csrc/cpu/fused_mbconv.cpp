// Dense k x k convolution, alone or with the 1x1 projection after it: the wide map never reaches
// memory.
#include "gemm.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

constexpr int64_t kTileBytes = 64 * 1024;  // of the wide map that exist at a time

struct Layout {
  int64_t taps, block;                   // pixels of a block
  int64_t zeros, pointers, tile, total;  // offsets into the worker's scratch

  Layout(const Conv& conv, const Window& w, const Conv* project) {
    taps = w.kh * w.kw;
    block = kMaxBlock / 2;
    if (project) {
      const int64_t fitting = kTileBytes / (conv.cout * static_cast<int64_t>(sizeof(float)));
      block = least(greatest(fitting, kMinBlock), block);
    }
    zeros = 0;
    pointers = zeros + round_up(conv.cin, 16);
    tile = pointers + pointer_floats(taps * block);
    total = tile + (project ? block * conv.cout : 0);
  }
};

// pointers[tap][stride] to the input pixels of output pixels [begin, begin + count) of a map
// `width` pixels wide.
void point_at_taps(const Map& x, const Window& w, int64_t width, int64_t begin, int64_t count,
                   const float* zeros, int64_t stride, const float** pointers) {
  for (int64_t i = 0; i < count;) {  // a run of pixels of one output row at a time
    const int64_t row = (begin + i) / width, column = (begin + i) % width;
    const int64_t run = least(width - column, count - i);
    for (int64_t tap = 0; tap < w.kh * w.kw; ++tap) {
      const float** to = pointers + tap * stride + i;
      const int64_t iy = row * w.stride_h - w.top + tap / w.kw * w.dilation_h;
      const int64_t ix = column * w.stride_w - w.left + tap % w.kw * w.dilation_w;
      if (iy < 0 || iy >= x.h) {
        for (int64_t p = 0; p < run; ++p) to[p] = zeros;
        continue;
      }
      const StepRange inside(ix, run, w.stride_w, x.w);  // which of the run lie on the map
      const float* from = x.data + iy * x.row;
      for (int64_t p = 0; p < inside.first; ++p) to[p] = zeros;
      for (int64_t p = inside.first; p < inside.last; ++p) {
        to[p] = from + (ix + p * w.stride_w) * x.pixel;
      }
      for (int64_t p = inside.last; p < run; ++p) to[p] = zeros;
    }
    i += run;
  }
}

}  // namespace

Scratch fused_mbconv_scratch(const Conv& conv, const Window& window, const Conv* project,
                             const Map&) {
  return {Layout(conv, window, project).total, 0};
}

void fused_mbconv(const Conv& conv, const Window& window, const Conv* project, const Map& x,
                  const Map* residual, const Map& y, const Worker& worker) {
  const Layout layout(conv, window, project);
  float* zeros = worker.scratch + layout.zeros;
  for (int64_t c = 0; c < conv.cin; ++c) zeros[c] = 0.0f;
  const float** a_pixels = reinterpret_cast<const float**>(worker.scratch + layout.pointers);
  const float* residual_pixels[kMaxBlock];
  const float* tile_in[kMaxBlock];
  float* tile_out[kMaxBlock];
  float* y_pixels[kMaxBlock];
  for (int64_t i = 0; project && i < layout.block; ++i) {
    tile_in[i] = tile_out[i] = worker.scratch + layout.tile + i * conv.cout;
  }

  const Gemm wide{conv.weight, conv.bias, layout.taps, conv.cin, conv.act, Panels(conv.cout)};
  const Conv& last = project ? *project : conv;
  const Gemm narrow{last.weight, last.bias, 1, last.cin, last.act, Panels(last.cout)};

  const int64_t pixels = y.h * y.w;
  const int64_t pixel_begin = pixels * worker.id / worker.count;
  const int64_t pixel_end = pixels * (worker.id + 1) / worker.count;
  const EvenCut blocks(pixel_end - pixel_begin, layout.block);
  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t begin = pixel_begin + blocks.begin(i);
    const int64_t count = pixel_begin + blocks.begin(i + 1) - begin;
    point_at_taps(x, window, y.w, begin, count, zeros, layout.block, a_pixels);
    point_at(y, begin, count, y_pixels);
    if (residual) point_at(*residual, begin, count, residual_pixels);
    const float* const* to_add = residual ? residual_pixels : nullptr;
    const Pixels in{count, a_pixels, layout.block, project ? tile_out : y_pixels,
                    project ? nullptr : to_add};
    for (int64_t panel = 0; panel < wide.panels.count; ++panel) gemm_panel(wide, panel, in);
    if (!project) continue;
    const Pixels out{count, tile_in, 0, y_pixels, to_add};
    for (int64_t panel = 0; panel < narrow.panels.count; ++panel) gemm_panel(narrow, panel, out);
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
