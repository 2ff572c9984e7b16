// Pointwise expansion and depthwise convolution in one pass: the wide map exists only as a ring of
// rows of a chunk of its channels, small enough for half of an L2 of 512 KB.
#include "depthwise.h"
#include "gemm.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

constexpr int64_t kRingFloats = 256 * 1024 / sizeof(float);
// Expanded at a time at least, where the map has them: 8 full tiles.
constexpr int64_t kGroupPixels = 48;

struct Layout {
  int64_t span_h;                 // input rows under a window
  int64_t group;                  // output rows made at a time
  int64_t rows, width, pixel;     // of the ring; pixel: the widest chunk
  int64_t chunk_panels;           // at most
  int64_t pointers, ring, total;  // offsets into the worker's scratch
  int64_t y_height, y_width;

  Layout(const Conv& expand, const Window& w, const Map& x) {
    span_h = w.dilation_h * (w.kh - 1) + 1;
    const int64_t span_w = w.dilation_w * (w.kw - 1) + 1;
    y_height = (x.h + w.top + w.bottom - span_h) / w.stride_h + 1;
    y_width = (x.w + w.left + w.right - span_w) / w.stride_w + 1;
    width = greatest((y_width - 1) * w.stride_w + span_w, w.left + x.w);
    group = least(ceil_div(kGroupPixels, w.stride_h * x.w), y_height);
    rows = (group - 1) * w.stride_h + span_h;
    const Panels panels(expand.cout);
    const int64_t fitting = greatest(kRingFloats / (rows * width * kPanel), 1);
    chunk_panels = ceil_div(panels.count, ceil_div(panels.count, fitting));
    pixel = least(chunk_panels * kPanel + kLanes, round_up(expand.cout, kLanes));
    pointers = 0;
    ring = pointer_floats(w.kh);
    total = ring + rows * width * pixel;
  }
};

}  // namespace

Scratch expand_depthwise_scratch(const Conv& expand, const DepthwiseConv& conv, const Map& x,
                                 bool summed) {
  const Layout layout(expand, conv.window, x);
  return {layout.total, summed ? layout.y_height * conv.c : 0};
}

void expand_depthwise(const Conv& expand, const DepthwiseConv& conv, const Map& x, const Map& y,
                      float* sums, const Worker& worker) {
  const Window& w = conv.window;
  const Layout layout(expand, w, x);
  const float** rows = reinterpret_cast<const float**>(worker.scratch + layout.pointers);
  float* ring = worker.scratch + layout.ring;
  float* row_sums = worker.shared;  // [y.h][c]
  const Gemm gemm{expand.weight, expand.bias, 1, expand.cin, expand.act, Panels(expand.cout)};
  const int64_t panels = gemm.panels.count;
  const int64_t ring_row = layout.width * layout.pixel;
  const auto ring_pixel = [&](int64_t row, int64_t column) {
    return ring + row % layout.rows * ring_row + (w.left + column) * layout.pixel;
  };
  for (int64_t row = 0; row < layout.rows; ++row) {
    float* first = ring + row * ring_row;
    const int64_t right = (w.left + x.w) * layout.pixel;
    for (int64_t i = 0; i < w.left * layout.pixel; ++i) first[i] = 0.0f;
    for (int64_t i = right; i < ring_row; ++i) first[i] = 0.0f;
  }

  // Chunks of channels share no work; bands of rows expand the rows at their seams twice, so they
  // come last.
  int64_t chunks = ceil_div(panels, layout.chunk_panels);
  chunks = least(round_up(chunks, worker.count), panels);
  const int64_t bands = least(ceil_div(worker.count, chunks), y.h);
  const int64_t items = chunks * bands;
  const int64_t item_end = items * (worker.id + 1) / worker.count;
  for (int64_t item = items * worker.id / worker.count; item < item_end; ++item) {
    const int64_t chunk = item / bands, band = item % bands;
    const int64_t panel_begin = panels * chunk / chunks, panel_end = panels * (chunk + 1) / chunks;
    const int64_t c = panel_begin * kPanel;

    DepthwiseRow d;
    d.channels = (panel_end == panels ? conv.c : panel_end * kPanel) - c;
    d.weight = conv.weight + c * w.kh * w.kw;
    d.bias = conv.bias ? conv.bias + c : nullptr;
    d.window = w;
    d.act = conv.act;
    d.rows = rows;
    d.width = layout.width;
    d.in_pixel = layout.pixel;
    d.left = 0;
    d.y_width = y.w;
    d.y_pixel = y.pixel;

    int64_t next = 0;  // the first input row that isn't in the ring yet
    const int64_t row_end = y.h * (band + 1) / bands;
    for (int64_t row = y.h * band / bands; row < row_end;) {
      const int64_t group_end = least(row + layout.group, row_end);
      const int64_t bottom = least((group_end - 1) * w.stride_h - w.top + layout.span_h, x.h);
      next = greatest(next, row * w.stride_h - w.top);
      const EvenCut blocks((bottom - next) * x.w, kMaxBlock);
      for (int64_t i = 0; i < blocks.count; ++i) {
        const int64_t begin = blocks.begin(i), count = blocks.begin(i + 1) - begin;
        const float* a_pixels[kMaxBlock];
        float* ring_pixels[kMaxBlock];
        int64_t in_row = next + begin / x.w, column = begin % x.w;
        for (int64_t p = 0; p < count; ++p) {
          a_pixels[p] = x.data + in_row * x.row + column * x.pixel;
          ring_pixels[p] = ring_pixel(in_row, column);
          if (++column == x.w) column = 0, ++in_row;
        }
        const Pixels pixels{count, a_pixels, 0, ring_pixels, nullptr};
        for (int64_t panel = panel_begin; panel < panel_end; ++panel)
          gemm_panel(gemm, panel, pixels, c);
      }
      next = greatest(next, bottom);
      for (; row < group_end; ++row) {
        const int64_t top = row * w.stride_h - w.top;
        const StepRange taps(top, w.kh, w.dilation_h, x.h);
        for (int64_t ky = taps.first; ky < taps.last; ++ky) {
          rows[ky] = ring_pixel(top + ky * w.dilation_h, -w.left);
        }
        d.first_row = taps.first;
        d.last_row = taps.last;
        d.y = y.data + row * y.row + c;
        d.sums = sums ? row_sums + row * conv.c + c : nullptr;
        depthwise_row(d);
      }
    }
  }
  if (!sums) return;
  worker.sync();
  sum_rows(row_sums, y.h, conv.c, sums, worker);
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
