// The matrix product under every dense convolution: a register tile of pixels x output channels.
//
// B (the weights) lies in panels of kPanelVecs vectors of output channels, the last one up to one
// vector wider, so that no panel is narrower than it must be: [panel][tap][input channel][channels
// of the panel], padded with zeros. A is never packed: a tile takes one pointer per pixel and tap,
// so pixels of any map, padding (a row of zeros) and windows of any shape are all the same kernel.
// Each output is one chain of fused multiply-adds from the bias over taps, then input channels, so
// its bits do not depend on how the pixels are cut into tiles.
#pragma once

#include "activation.h"
#include "effnet_fast/kernels.h"
#include "simd.h"

namespace effnet_fast::EFFNET_FAST_ISA {

constexpr int kPanelVecs = 2;
constexpr int kMaxPanelVecs = kPanelVecs + 1;
constexpr int64_t kPanel = kPanelVecs * kLanes;
constexpr int64_t kMaxPanel = kMaxPanelVecs * kLanes;

// Rows of a tile of `vecs` vectors: accumulators + one row of B + a broadcast fit the register
// file.
constexpr int tile_rows(int vecs) {
  return vecs == 3 ? (kRegisters - 4) / 3 : (kRegisters - 4) / 2;
}
constexpr int kMaxTileRows = tile_rows(1);

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

// A run of tiles of one size: one panel of channels, a block of pixels.
struct TileArgs {
  int64_t tiles;
  const float* const* a;
  int64_t tap_stride, taps;
  int64_t first_k, depth;  // input channels [first_k, first_k + depth) of each tap
  const float* b;
  const float* bias;  // at the panel's first channel, or null
  int64_t channels;
  int64_t y_channel, residual_channel;  // where the panel starts
  float* const* y;
  const float* const* residual;
  Act act;
  // The accumulators' place between two chunks of input channels; unused by a chunk that is first and last.
  float* partial;
  int64_t partial_stride;
  bool first, last;
};

template <int kRows, int kVecs>
static void gemm_tiles(const TileArgs& t) {
  constexpr int kLast = (kVecs - 1) * kLanes;  // where the panel's last vector starts
  const bool full = t.channels == kVecs * kLanes;
  const Tail tail(t.channels - kLast);
  Vec bias[kVecs];
  for (int v = 0; v < kVecs; ++v) bias[v] = zero();
  if (t.bias) {
    for (int v = 0; v < kVecs - 1; ++v) bias[v] = load(t.bias + v * kLanes);
    bias[kVecs - 1] = full ? load(t.bias + kLast) : load(t.bias + kLast, tail);
  }
  for (int64_t first = 0; first < t.tiles * kRows; first += kRows) {
    Vec acc[kRows][kVecs];
    float* partial = t.partial ? t.partial + first * t.partial_stride : nullptr;
    if (t.first) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v) acc[r][v] = bias[v];
      }
    } else {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v) acc[r][v] = load(partial + r * t.partial_stride + v * kLanes);
      }
    }
    const float* b = t.b;
    const float* const* pointers = t.a + first;
    for (int64_t tap = t.taps; tap > 0; --tap, pointers += t.tap_stride) {
      const float* a[kRows];
      for (int r = 0; r < kRows; ++r) a[r] = pointers[r] + t.first_k;
      for (int64_t k = 0; k < t.depth; ++k, b += kVecs * kLanes) {
        Vec row[kVecs];
        for (int v = 0; v < kVecs; ++v) row[v] = load(b + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
          const Vec x = broadcast(a[r][k]);
          for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, row[v], acc[r][v]);
        }
      }
    }
    if (!t.last) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v) store(partial + r * t.partial_stride + v * kLanes, acc[r][v]);
      }
      continue;
    }
    for (int r = 0; r < kRows; ++r) {
      float* y = t.y[first + r] + t.y_channel;
      activate(t.act, acc[r]);
      if (t.residual) {
        const float* residual = t.residual[first + r] + t.residual_channel;
        for (int v = 0; v < kVecs - 1; ++v) acc[r][v] = acc[r][v] + load(residual + v * kLanes);
        acc[r][kVecs - 1] = acc[r][kVecs - 1] + (full ? load(residual + kLast) : load(residual + kLast, tail));
      }
      for (int v = 0; v < kVecs - 1; ++v) store(y + v * kLanes, acc[r][v]);
      if (full) {
        store(y + kLast, acc[r][kVecs - 1]);
      } else {
        store(y + kLast, acc[r][kVecs - 1], tail);
      }
    }
  }
}

using TileKernel = void (*)(const TileArgs&);

template <int kVecs, int kRows>
EFFNET_FAST_INLINE TileKernel tile_kernel_of(int rows) {
  if constexpr (kRows == 0) {
    return nullptr;
  } else {
    return rows == kRows ? gemm_tiles<kRows, kVecs> : tile_kernel_of<kVecs, kRows - 1>(rows);
  }
}

EFFNET_FAST_INLINE TileKernel tile_kernel(int vecs, int rows) {
  static_assert(kMaxPanelVecs == 3);
  return vecs == 1   ? tile_kernel_of<1, tile_rows(1)>(rows)
         : vecs == 2 ? tile_kernel_of<2, tile_rows(2)>(rows)
                     : tile_kernel_of<3, tile_rows(3)>(rows);
}

// The even cut of `items` into runs of at most `most`: 14 by 6 is 5 + 5 + 4, not 6 + 6 + 2.
struct EvenCut {
  int64_t items, count;

  EvenCut(int64_t items, int64_t most) : items(items), count(ceil_div(items, most)) {}
  int64_t begin(int64_t run) const { return items * run / count; }
};

constexpr int64_t kMaxBlock = 192;  // pixels of a block, so that its pointers fit on the stack

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
};

// A run of the input channels, when they are cut into chunks to keep the operands in cache: one tap
// only.
struct Chunk {
  int64_t begin, end;
  bool first, last;
  float* partial;  // [pixel][partial_stride]
  int64_t partial_stride;
};

// y = act(A B + bias) [+ residual] for one panel of channels, or a chunk of it. The panel's first
// channel lands in channel panel * kPanel - y_offset of y.
EFFNET_FAST_INLINE void gemm_panel(const Gemm& g, int64_t panel, const Pixels& pixels,
                                   int64_t y_offset, const Chunk& chunk) {
  const int vecs = g.panels.vecs(panel);
  TileArgs t;
  t.tap_stride = pixels.tap_stride;
  t.taps = g.taps;
  t.first_k = chunk.begin;
  t.depth = chunk.end - chunk.begin;
  t.b = g.weight + panel * kPanel * g.taps * g.depth + chunk.begin * vecs * kLanes;
  t.bias = g.bias ? g.bias + panel * kPanel : nullptr;
  t.channels = g.panels.channels(panel);
  t.y_channel = panel * kPanel - y_offset;
  t.residual_channel = panel * kPanel;
  t.act = g.act;
  t.partial_stride = chunk.partial_stride;
  t.first = chunk.first;
  t.last = chunk.last;
  // Tiles of two sizes, the larger ones first.
  const int64_t tiles = ceil_div(pixels.count, tile_rows(vecs)), rows = pixels.count / tiles;
  const int64_t larger = pixels.count % tiles;
  const auto run = [&](int64_t count, int64_t size, int64_t begin) {
    t.tiles = count;
    t.a = pixels.a + begin;
    t.y = pixels.y + begin;
    t.residual = pixels.residual ? pixels.residual + begin : nullptr;
    t.partial = chunk.first && chunk.last
                    ? nullptr
                    : chunk.partial + begin * chunk.partial_stride + panel * kPanel;
    tile_kernel(vecs, static_cast<int>(size))(t);
  };
  if (larger) run(larger, rows + 1, 0);
  run(tiles - larger, rows, larger * (rows + 1));
}

EFFNET_FAST_INLINE void gemm_panel(const Gemm& g, int64_t panel, const Pixels& pixels,
                                   int64_t y_offset = 0) {
  gemm_panel(g, panel, pixels, y_offset, Chunk{0, g.depth, true, true, nullptr, 0});
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
