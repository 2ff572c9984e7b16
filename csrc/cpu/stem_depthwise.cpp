// The stem and the depthwise convolution behind it in one pass: of the stem's map only a ring of
// rows exists.
#include "depthwise_ring.h"
#include "operators.h"
#include "stem.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

DepthwiseRing ring_of(const Window& stem, const DepthwiseConv& conv, const Planes& x) {
  return DepthwiseRing(conv, stem.out_h(x.h), stem.out_w(x.w), 1);
}

// The ring comes first in the scratch; the stem's rows from here on.
int64_t stem_at(const DepthwiseRing& ring) { return round_up(ring.scratch(false).worker, 16); }

}  // namespace

Scratch stem_depthwise_scratch(const Conv& stem, const Window& window, const DepthwiseConv& conv,
                               const Planes& x, bool summed) {
  const DepthwiseRing ring = ring_of(window, conv, x);
  const int64_t stem_floats = StemRows(stem, window, x).scratch_floats();
  return {stem_at(ring) + stem_floats, ring.scratch(summed).shared};
}

void stem_depthwise(const Conv& stem, const Window& window, const DepthwiseConv& conv,
                    const Planes& x, const Map& y, float* sums, const Worker& worker) {
  DepthwiseRing ring = ring_of(window, conv, x);
  StemRows stem_rows(stem, window, x);
  ring.start(worker.scratch);
  float* row_sums = sums ? worker.shared : nullptr;

  // Bands of rows, even where there are chunks of channels to share: those would each copy all of
  // the image, and the stem's rows at the seams are few.
  const int64_t row_begin = y.h * worker.id / worker.count;
  const int64_t row_end = y.h * (worker.id + 1) / worker.count;
  const int64_t panels = ring.panels().count, chunks = ring.chunks();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = panels * chunk / chunks, end = panels * (chunk + 1) / chunks;
    stem_rows.start(worker.scratch + stem_at(ring));
    int64_t next = 0;  // the stem's first row that isn't in the ring yet
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (next = greatest(next, ring.top(row)); next < ring.bottom(row); ++next) {
        stem_rows.make(next, begin, end, ring.at(next, 0), ring.pixel());
      }
      ring.make(row, begin, end, y, row_sums);
    }
  }
  if (!sums) return;
  worker.sync();
  sum_rows(row_sums, y.h, conv.c, sums, worker);
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
