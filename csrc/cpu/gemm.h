// The matrix product under every dense convolution: a register tile of pixels x output channels.
//
// B (the weights) lies in panels of kPanelVecs vectors of output channels, the last one up to one
// vector wider, so that no panel is narrower than it must be: [panel][tap][input channel][channels
// of the panel], padded with zeros. A is never packed: a tile takes one pointer per pixel and tap,
// so pixels of any map, padding (a row of zeros) and windows of any shape are all the same kernel.
// Each output is a sum of runs (of kRun products, or fewer) and the bias, each run one chain of
// fused multiply-adds over taps, then input channels: its bits do not depend on how the pixels are
// cut into tiles, and its error grows with the run, not with the depth. The bias comes last: a
// chain that started from it would round at its size in every step, and batch norm makes it large.
#pragma once

#include "effnet_fast/kernels.h"
#include "simd.h"

namespace effnet_fast::EFFNET_FAST_ISA {

constexpr int kPanelVecs = 2;
constexpr int kMaxPanelVecs = kPanelVecs + 1;
constexpr int64_t kPanel = kPanelVecs * kLanes;
// Products in a chain. One chain of 1152 has three times the error of an optimised library's SGEMM
// (relative L2 6.1e-7 against 2.1e-7, random operands); runs of 128 have the same.
constexpr int64_t kRun = 128;
constexpr int64_t kMaxPanel = kMaxPanelVecs * kLanes;

// How a convolution's output channels are cut into panels.
struct Panels {
  int64_t cout, count, last_vecs;

  explicit Panels(int64_t cout) : cout(cout) {
    const int64_t vecs = ceil_div(cout, kLanes);
    count = greatest(vecs / kPanelVecs, 1);
    last_vecs = vecs - (count - 1) * kPanelVecs;
  }
  int vecs(int64_t panel) const { return panel == count - 1 ? last_vecs : kPanelVecs; }
  int64_t channels(int64_t panel) const {  // without the padding
    return panel == count - 1 ? cout - panel * kPanel : kPanel;
  }
};

// A block of pixels of a convolution's input and output, as pointers to their first channel.
struct Pixels {
  int64_t count;
  const float* const* a;  // [tap][tap_stride]
  int64_t tap_stride;
  float* const* y;
  const float* const* residual;  // or null
};

// The even cut of `items` into runs of at most `most`: 14 by 6 is 5 + 5 + 4, not 6 + 6 + 2.
struct EvenCut {
  int64_t items, count;

  EvenCut(int64_t items, int64_t most) : items(items), count(ceil_div(items, most)) {}
  int64_t begin(int64_t run) const { return items * run / count; }
};

constexpr int64_t kMinBlock = 24;   // pixels of a block: several full tiles
constexpr int64_t kMaxBlock = 192;  // so that the pointers to them fit on the stack

// Pointers to pixels [begin, begin + count) of a map, in reading order.
template <class Pointer>
static void point_at(const Map& m, int64_t begin, int64_t count, Pointer* pointers) {
  int64_t row = begin / m.w, column = begin % m.w;
  for (int64_t i = 0; i < count; ++i) {
    pointers[i] = m.data + row * m.row + column * m.pixel;
    if (++column == m.w) column = 0, ++row;
  }
}

// A dense convolution as gemm sees it: a window's taps (1 when pointwise), `depth` channels each.
struct Gemm {
  const float* weight;
  const float* bias;  // or null
  int64_t taps, depth;
  Act act;
  Panels panels;
  int64_t run = kRun;  // products in a chain; multiples of kRun are where chunks are cut
};

// A part of the input channels, when they are cut into chunks to keep the operands in cache: one
// tap only.
struct Chunk {
  int64_t begin, end;  // multiples of kRun, but for the last end
  bool first, last;
  float* partial;  // [pixel][partial_stride]
  int64_t partial_stride;
};

// y = act(A B + bias) [+ residual] for one panel of channels, or a chunk of it. The panel's first
// channel lands in channel panel * kPanel - y_offset of y.
void gemm_panel(const Gemm& g, int64_t panel, const Pixels& pixels, int64_t y_offset,
                const Chunk& chunk);

EFFNET_FAST_INLINE void gemm_panel(const Gemm& g, int64_t panel, const Pixels& pixels,
                                   int64_t y_offset = 0) {
  gemm_panel(g, panel, pixels, y_offset, Chunk{0, g.depth, true, true, nullptr, 0});
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
