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

constexpr int64_t kLine = 16;  // floats of a line of a cache

// A run of tiles of one size: one panel of channels, a block of pixels.
struct TileArgs {
  int64_t tiles;
  const float* const* a;
  int64_t tap_stride, taps;
  int64_t first_k, depth;  // input channels [first_k, first_k + depth) of each tap
  int64_t run;             // products in a chain
  const float* b;
  const float* bias;  // at the panel's first channel, or null
  int64_t channels;
  int64_t y_channel, residual_channel;  // where the panel starts
  float* const* y;
  const float* const* residual;
  // Sums of the runs so far, kept between two chunks of input channels; null for a chunk that is
  // first and last.
  float* partial;
  int64_t partial_stride;
  bool first, last;
  // What relu and relu6 leave: the only activations within a tile, for they take no registers. In a
  // pass of their own they were 8 % of Lite0's expansion of 24 channels at 56 x 56.
  bool clamps;
  float lowest, highest;
  // What is multiplied next: so many floats of it are asked for with each run.
  const float* next;
  int64_t next_floats;
};

// A tile's sums: kRows of kVecs vectors. The last is a Vec, or a Half where the rest is padding.
template <int kRows, int kVecs, class Last>
struct Sums {
  Vec full[kRows][kVecs > 1 ? kVecs - 1 : 1];
  Last last[kRows];

  EFFNET_FAST_METHOD void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs - 1; ++v) full[r][v] = zero();
      EFFNET_FAST_ISA::clear(last[r]);
    }
  }
  EFFNET_FAST_METHOD Vec at(int r, int v) const {
    return v < kVecs - 1 ? full[r][v] : whole(last[r]);
  }
};

// acc += the products of input channels [begin, end) of kRows pixels with rows of b.
template <int kRows, int kVecs, class Last>
EFFNET_FAST_INLINE void multiply(const float* const (&a)[kRows], const float* b, int64_t begin,
                                 int64_t end, Sums<kRows, kVecs, Last>& acc) {
  for (int64_t k = begin; k < end; ++k, b += kVecs * kLanes) {
    Vec row[kVecs > 1 ? kVecs - 1 : 1];
    Last last;
    for (int v = 0; v < kVecs - 1; ++v) row[v] = load(b + v * kLanes);
    load(last, b + (kVecs - 1) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = broadcast(a[r][k]);
      for (int v = 0; v < kVecs - 1; ++v) acc.full[r][v] = fma(x, row[v], acc.full[r][v]);
      acc.last[r] = fma(x, last, acc.last[r]);
    }
  }
}

// acc, or a sum in memory and acc, goes to memory.
template <int kRows, int kVecs, class Last>
EFFNET_FAST_INLINE void add_to(float* sum, int64_t stride, bool is_first,
                               const Sums<kRows, kVecs, Last>& acc) {
  if (is_first) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) store(sum + r * stride + v * kLanes, acc.at(r, v));
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        float* const at = sum + r * stride + v * kLanes;
        store(at, load(at) + acc.at(r, v));
      }
    }
  }
}

// x, of which the compiler knows nothing: what depends on it, or on memory, is not loaded before. A
// bias or a mask that waits in registers takes them from the rows of B.
template <class T>
EFFNET_FAST_INLINE T opaque(T x) {
  asm volatile("" : "+r"(x) : : "memory");
  return x;
}

// The last vector of a panel may be stored in part.
template <int kRows, int kVecs, class Last, class Lanes>
EFFNET_FAST_INLINE void finish_tile(const TileArgs& t, int64_t first, const float* bias,
                                    const Sums<kRows, kVecs, Last>& acc, const float* total,
                                    int64_t stride, Lanes last) {
  constexpr int kLast = (kVecs - 1) * kLanes;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* const y = t.y[first + r] + t.y_channel;
    Vec sum[kVecs];
    if (total) {
      for (int v = 0; v < kVecs; ++v) sum[v] = load(total + r * stride + v * kLanes) + acc.at(r, v);
    } else {
      for (int v = 0; v < kVecs; ++v) sum[v] = acc.at(r, v);
    }
    for (int v = 0; v < kVecs; ++v) sum[v] = sum[v] + load(bias + v * kLanes);
    if (t.clamps) {
      for (int v = 0; v < kVecs; ++v)
        sum[v] = min(broadcast(t.highest), max(broadcast(t.lowest), sum[v]));
    }
    if (t.residual) {
      const float* const residual = t.residual[first + r] + t.residual_channel;
      for (int v = 0; v < kVecs - 1; ++v) sum[v] = sum[v] + load(residual + v * kLanes);
      sum[kVecs - 1] = sum[kVecs - 1] + load(residual + kLast, last);
    }
    for (int v = 0; v < kVecs - 1; ++v) store(y + v * kLanes, sum[v]);
    store(y + kLast, sum[kVecs - 1], last);
  }
}

template <int kRows, int kVecs, class Last>
static void gemm_tiles(const TileArgs& t) {
  constexpr int kLast = (kVecs - 1) * kLanes;  // where the panel's last vector starts
  const bool full = t.channels == kVecs * kLanes;
  alignas(64) float bias[kVecs * kLanes] = {};
  if (t.bias) {
    for (int v = 0; v < kVecs - 1; ++v) store(bias + v * kLanes, load(t.bias + v * kLanes));
    store(bias + kLast, load(t.bias + kLast, Tail(t.channels - kLast)));
  }
  const float* const padded_bias = bias;
  const bool is_one_run = t.taps == 1 && t.depth <= t.run && t.first;
  const float* next = t.next;
  const auto prefetch_next = [&] {
    const float* const end = next + t.next_floats;
    for (; next < end; next += kLine) prefetch(next);
  };
  alignas(64) float own[kRows * kVecs * kLanes];
  for (int64_t first = 0; first < t.tiles * kRows; first += kRows) {
    Sums<kRows, kVecs, Last> acc;
    acc.clear();
    const float* const* pointers = t.a + first;
    const float* a[kRows];
    for (int r = 0; r < kRows; ++r) a[r] = pointers[r] + t.first_k;
    // The sum of the runs so far: between two chunks of input channels in the caller's memory.
    float* const total = t.partial ? t.partial + first * t.partial_stride : own;
    const int64_t stride = t.partial ? t.partial_stride : kVecs * kLanes;
    prefetch_next();
    bool summed = false;
    if (is_one_run) {
      multiply(a, t.b, 0, t.depth, acc);
      if (!t.last) {
        add_to(total, stride, true, acc);
        continue;
      }
    } else {
      bool is_first = t.first;
      const float* b = t.b;
      int64_t length = 0;  // of the run at hand
      for (int64_t tap = 0; tap < t.taps; ++tap) {
        if (tap > 0) {
          pointers += t.tap_stride;
          for (int r = 0; r < kRows; ++r) a[r] = pointers[r] + t.first_k;
        }
        for (int64_t k = 0; k < t.depth;) {
          if (length == t.run) {
            add_to(total, stride, is_first, acc);
            acc.clear();
            is_first = false;
            length = 0;
            prefetch_next();
          }
          const int64_t end = least(k + t.run - length, t.depth);
          multiply(a, b, k, end, acc);
          b += (end - k) * kVecs * kLanes;
          length += end - k;
          k = end;
        }
      }
      if (!t.last) {
        add_to(total, stride, is_first, acc);
        continue;
      }
      summed = !is_first;
    }
    if (full) {
      finish_tile(t, first, opaque(padded_bias), acc, summed ? total : nullptr, stride, Full());
    } else {
      finish_tile(t, first, opaque(padded_bias), acc, summed ? total : nullptr, stride,
                  Tail(opaque(t.channels - kLast)));
    }
  }
}

template <int kPixels, int kVecs, class Last>
EFFNET_FAST_INLINE void activate_pixels(Act act, float* const* y, int64_t channel, Last last) {
  constexpr int kLast = (kVecs - 1) * kLanes;
  float* at[kPixels];
  Vec x[kPixels * kVecs];
  for (int p = 0; p < kPixels; ++p) {
    at[p] = y[p] + channel;
    for (int v = 0; v < kVecs - 1; ++v) x[p * kVecs + v] = load(at[p] + v * kLanes);
    x[p * kVecs + kVecs - 1] = load(at[p] + kLast, last);
  }
  activate(act, x);
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVecs - 1; ++v) store(at[p] + v * kLanes, x[p * kVecs + v]);
    store(at[p] + kLast, x[p * kVecs + kVecs - 1], last);
  }
}

// y = act(y), of a panel's channels. Not within the tiles, whose accumulators leave no registers to
// an activation: the block is in L1 still.
template <int kVecs>
static void activate_panel(Act act, float* const* y, int64_t pixels, int64_t channel,
                           int64_t channels) {
  constexpr int kAtOnce = 6 / kVecs;
  const auto run = [&](auto last) {
    int64_t p = 0;
    for (; p + kAtOnce <= pixels; p += kAtOnce)
      activate_pixels<kAtOnce, kVecs>(act, y + p, channel, last);
    for (; p < pixels; ++p) activate_pixels<1, kVecs>(act, y + p, channel, last);
  };
  // Whole vectors without a mask, which cost B0's first expansion 1,089 us instead of 921 on a
  // Zen 4.
  if (channels == kVecs * kLanes) {
    run(Full());
  } else {
    run(Tail(channels - (kVecs - 1) * kLanes));
  }
}

// y += residual
static void add_residual(const Pixels& pixels, int64_t y_channel, int64_t residual_channel,
                         int64_t channels) {
  for (int64_t p = 0; p < pixels.count; ++p) {
    float* const y = pixels.y[p] + y_channel;
    const float* const residual = pixels.residual[p] + residual_channel;
    for_each_vec(channels, [&](int64_t c, auto lanes) {
      store(y + c, load(y + c, lanes) + load(residual + c, lanes), lanes);
    });
  }
}

using TileKernel = void (*)(const TileArgs&);

template <int kVecs, class Last, int kRows>
EFFNET_FAST_INLINE TileKernel tile_kernel_of(int rows) {
  if constexpr (kRows == 0) {
    return nullptr;
  } else {
    return rows == kRows ? gemm_tiles<kRows, kVecs, Last>
                         : tile_kernel_of<kVecs, Last, kRows - 1>(rows);
  }
}

template <class Last>
EFFNET_FAST_INLINE TileKernel tile_kernel(int vecs, int rows) {
  static_assert(kMaxPanelVecs == 3);
  return vecs == 1   ? tile_kernel_of<1, Last, tile_rows(1)>(rows)
         : vecs == 2 ? tile_kernel_of<2, Last, tile_rows(2)>(rows)
                     : tile_kernel_of<3, Last, tile_rows(3)>(rows);
}

EFFNET_FAST_INLINE TileKernel tile_kernel(int vecs, int64_t channels, int rows) {
  if (kHasHalf && channels <= vecs * kLanes - kLanes / 2) return tile_kernel<Half>(vecs, rows);
  return tile_kernel<Vec>(vecs, rows);
}

void gemm_panel(const Gemm& g, int64_t panel, const Pixels& pixels, int64_t y_offset,
                const Chunk& chunk) {
  const int vecs = g.panels.vecs(panel);
  TileArgs t;
  t.tap_stride = pixels.tap_stride;
  t.taps = g.taps;
  t.first_k = chunk.begin;
  t.depth = chunk.end - chunk.begin;
  t.run = g.run;
  t.b = g.weight + panel * kPanel * g.taps * g.depth + chunk.begin * vecs * kLanes;
  t.bias = g.bias ? g.bias + panel * kPanel : nullptr;
  t.channels = g.panels.channels(panel);
  t.y_channel = panel * kPanel - y_offset;
  t.residual_channel = panel * kPanel;
  t.partial_stride = chunk.partial_stride;
  t.first = chunk.first;
  t.last = chunk.last;
  t.clamps = g.act == Act::kRelu || g.act == Act::kRelu6;
  t.lowest = 0.0f;
  t.highest = g.act == Act::kRelu6 ? 6.0f : __builtin_inff();
  const bool activated = g.act == Act::kNone || t.clamps;  // by the tiles
  // Tiles of two sizes, the larger ones first.
  const int64_t tiles = ceil_div(pixels.count, tile_rows(vecs)), rows = pixels.count / tiles;
  const int64_t larger = pixels.count % tiles;
  // The same input channels of the next panel. One that was used before is in L2, and asking costs
  // little: no need to know which.
  const int64_t floats = t.depth * t.taps * vecs * kLanes;
  t.next = t.b + g.depth * g.taps * vecs * kLanes;
  t.next_floats = panel + 1 < g.panels.count
                      ? round_up(ceil_div(floats, tiles * ceil_div(t.depth * t.taps, g.run)), kLine)
                      : 0;
  const auto run = [&](int64_t count, int64_t size, int64_t begin) {
    t.tiles = count;
    t.a = pixels.a + begin;
    t.y = pixels.y + begin;
    t.residual = pixels.residual && activated ? pixels.residual + begin : nullptr;
    t.partial = chunk.first && chunk.last
                    ? nullptr
                    : chunk.partial + begin * chunk.partial_stride + panel * kPanel;
    tile_kernel(vecs, t.channels, static_cast<int>(size))(t);
  };
  if (larger) {
    run(larger, rows + 1, 0);
    t.next += larger * ceil_div(t.depth * t.taps, g.run) * t.next_floats;
  }
  run(tiles - larger, rows, larger * (rows + 1));
  if (activated || !chunk.last) return;
  (vecs == 1   ? activate_panel<1>
   : vecs == 2 ? activate_panel<2>
               : activate_panel<3>)(g.act, pixels.y, pixels.count, t.y_channel, t.channels);
  if (pixels.residual) add_residual(pixels, t.y_channel, t.residual_channel, t.channels);
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
