// Pointwise expansion and depthwise convolution in one pass: of the wide map only a ring of rows
// exists.
#include "depthwise_ring.h"
#include "gemm.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

// Expanded at a time at least, where the map has them: 8 full tiles.
constexpr int64_t kGroupPixels = 48;

int64_t group_of(const Window& w, const Map& x) {
  return least(ceil_div(kGroupPixels, w.stride_h * x.w), w.out_h(x.h));
}

// How workers share a map: items are chunks of channels in bands of rows, band by band, and each
// worker has a run of them. Chunks share no work, but may be uneven: of three panels one worker
// makes two. At the seams of bands rows are expanded twice.
struct Cut {
  int64_t chunks, bands;

  int64_t begin(int64_t worker, int64_t workers) const { return chunks * bands * worker / workers; }
};

// Multiply-adds of the worker that has most to do; an activation counts as kActivation of them.
int64_t most_work(const Cut& cut, const Conv& expand, const Window& w, const Map& x, const Map& y,
                  int64_t workers) {
  constexpr int64_t kActivation = 12;
  const Panels panels(expand.cout);
  const int64_t vecs = ceil_div(expand.cout, kLanes), span_h = w.dilation_h * (w.kh - 1) + 1;
  int64_t most = 0;
  for (int64_t worker = 0; worker < workers; ++worker) {
    int64_t work = 0;
    for (int64_t i = cut.begin(worker, workers); i < cut.begin(worker + 1, workers); ++i) {
      const int64_t chunk = i % cut.chunks, band = i / cut.chunks;
      const auto vec_at = [&](int64_t at) {
        return at == cut.chunks ? vecs : panels.count * at / cut.chunks * kPanelVecs;
      };
      const int64_t rows = y.h * (band + 1) / cut.bands - y.h * band / cut.bands;
      const int64_t expanded = least((rows - 1) * w.stride_h + span_h, x.h);
      work += (vec_at(chunk + 1) - vec_at(chunk)) * (expanded * x.w * (expand.cin + kActivation) +
                                                     rows * y.w * (w.kh * w.kw + kActivation));
    }
    most = greatest(most, work);
  }
  return most;
}

Cut cut_for(int64_t chunks, const Conv& expand, const Window& w, const Map& x, const Map& y,
            int64_t workers) {
  const int64_t even = least(round_up(chunks, workers), Panels(expand.cout).count);
  const Cut by_channels{even, least(ceil_div(workers, even), y.h)};
  if (workers == 1) return by_channels;
  const Cut by_rows{chunks, least(workers, y.h)};
  return most_work(by_rows, expand, w, x, y, workers) <
                 most_work(by_channels, expand, w, x, y, workers)
             ? by_rows
             : by_channels;
}

}  // namespace

Scratch expand_depthwise_scratch(const Conv&, const DepthwiseConv& conv, const Map& x,
                                 bool summed) {
  return DepthwiseRing(conv, x.h, x.w, group_of(conv.window, x)).scratch(summed);
}

void expand_depthwise(const Conv& expand, const DepthwiseConv& conv, const Map& x, const Map& y,
                      float* sums, const Worker& worker) {
  const int64_t group = group_of(conv.window, x);
  DepthwiseRing ring(conv, x.h, x.w, group);
  ring.start(worker.scratch);
  float* row_sums = sums ? worker.shared : nullptr;
  const Gemm gemm{expand.weight, expand.bias, 1, expand.cin, expand.act, Panels(expand.cout)};
  const int64_t panels = gemm.panels.count;

  const Cut cut = cut_for(ring.chunks(), expand, conv.window, x, y, worker.count);
  const int64_t chunks = cut.chunks, bands = cut.bands;
  const int64_t item_end = cut.begin(worker.id + 1, worker.count);
  for (int64_t item = cut.begin(worker.id, worker.count); item < item_end; ++item) {
    const int64_t chunk = item % chunks, band = item / chunks;
    const int64_t panel_begin = panels * chunk / chunks, panel_end = panels * (chunk + 1) / chunks;
    int64_t next = 0;  // the first input row that isn't in the ring yet
    const int64_t row_end = y.h * (band + 1) / bands;
    for (int64_t row = y.h * band / bands; row < row_end;) {
      const int64_t group_end = least(row + group, row_end);
      const int64_t bottom = ring.bottom(group_end - 1);
      next = greatest(next, ring.top(row));
      const EvenCut blocks((bottom - next) * x.w, kMaxBlock);
      for (int64_t i = 0; i < blocks.count; ++i) {
        const int64_t begin = blocks.begin(i), count = blocks.begin(i + 1) - begin;
        const float* a_pixels[kMaxBlock];
        float* ring_pixels[kMaxBlock];
        int64_t in_row = next + begin / x.w, column = begin % x.w;
        for (int64_t p = 0; p < count; ++in_row, column = 0) {
          const float* a = x.at(in_row, column);
          float* to = ring.at(in_row, column);
          for (; column < x.w && p < count; ++column, ++p, a += x.pixel, to += ring.pixel()) {
            a_pixels[p] = a;
            ring_pixels[p] = to;
          }
        }
        const Pixels pixels{count, a_pixels, 0, ring_pixels, nullptr};
        for (int64_t panel = panel_begin; panel < panel_end; ++panel)
          gemm_panel(gemm, panel, pixels, panel_begin * kPanel);
      }
      next = greatest(next, bottom);
      for (; row < group_end; ++row) ring.make(row, panel_begin, panel_end, y, row_sums);
    }
  }
  if (!sums) return;
  worker.sync();
  sum_rows(row_sums, y.h, conv.c, sums, worker);
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
