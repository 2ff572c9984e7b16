// The register tile of gemm.h and its choice; included by pointwise_conv.cpp alone, so that it is
// compiled once.
#pragma once

#include "activation.h"
#include "gemm.h"

namespace effnet_fast::EFFNET_FAST_ISA {

// Rows of a tile of `vecs` vectors: accumulators + one row of B + a broadcast fit the register
// file.
constexpr int tile_rows(int vecs) {
  return vecs == 3 ? (kRegisters - 4) / 3 : (kRegisters - 4) / 2;
}

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
  // Sums of the runs so far, kept between two chunks of input channels; null for a chunk that is
  // first and last.
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
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();
    }
    // The sum of the runs so far: between two chunks of input channels in the caller's memory.
    alignas(64) float own[kRows * kVecs * kLanes];
    float* total = t.partial ? t.partial + first * t.partial_stride : own;
    const int64_t stride = t.partial ? t.partial_stride : kVecs * kLanes;
    bool summed = !t.first;
    const auto end_run = [&] {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v) {
          float* sum = total + r * stride + v * kLanes;
          store(sum, summed ? load(sum) + acc[r][v] : acc[r][v]);
          acc[r][v] = zero();
        }
      }
      summed = true;
    };
    const float* b = t.b;
    const float* const* pointers = t.a + first;
    int64_t length = 0;  // of the run at hand
    for (int64_t tap = 0; tap < t.taps; ++tap, pointers += t.tap_stride) {
      const float* a[kRows];
      for (int r = 0; r < kRows; ++r) a[r] = pointers[r] + t.first_k;
      for (int64_t k = 0; k < t.depth;) {
        if (length == kRun) {
          end_run();
          length = 0;
        }
        const int64_t end = least(k + kRun - length, t.depth);
        length += end - k;
        for (; k < end; ++k, b += kVecs * kLanes) {
          Vec row[kVecs];
          for (int v = 0; v < kVecs; ++v) row[v] = load(b + v * kLanes);
          for (int r = 0; r < kRows; ++r) {
            const Vec x = broadcast(a[r][k]);
            for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, row[v], acc[r][v]);
          }
        }
      }
    }
    if (!t.last) {
      end_run();
      continue;
    }
    if (summed) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v)
          acc[r][v] = load(total + r * stride + v * kLanes) + acc[r][v];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      float* y = t.y[first + r] + t.y_channel;
      for (int v = 0; v < kVecs; ++v) acc[r][v] = acc[r][v] + bias[v];
      activate(t.act, acc[r]);
      if (t.residual) {
        const float* residual = t.residual[first + r] + t.residual_channel;
        for (int v = 0; v < kVecs - 1; ++v) acc[r][v] = acc[r][v] + load(residual + v * kLanes);
        acc[r][kVecs - 1] =
            acc[r][kVecs - 1] + (full ? load(residual + kLast) : load(residual + kLast, tail));
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

void gemm_panel(const Gemm& g, int64_t panel, const Pixels& pixels, int64_t y_offset,
                const Chunk& chunk) {
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

}  // namespace effnet_fast::EFFNET_FAST_ISA
