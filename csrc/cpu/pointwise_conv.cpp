// 1x1 convolution of an NHWC map with its fusions: gate on the input, bias, activation, residual,
// average pool.
#include "gemm_tile.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

// A block's rows of A stay in about a third of a 512 KB L2 while the panels of B pass by.
constexpr int64_t kBlockBytes = 160 * 1024;
// Beyond kMaxDepth input channels a tile's rows and a panel of B drop out of L1: the product is
// then made of chunks of about kChunkDepth.
constexpr int64_t kMaxDepth = 1280;
constexpr int64_t kChunkDepth = 384;

// How one shape is cut: blocks of pixels, chunks of input channels; and where things lie in a
// worker's scratch.
struct Layout {
  int64_t cin, chunks, block;
  int64_t partial_stride;
  int64_t partial, values, sums, total;

  Layout(const Conv& conv, bool pooled) {
    chunks = conv.cin > kMaxDepth ? ceil_div(conv.cin, kChunkDepth) : 1;
    cin = conv.cin;
    const int64_t row_bytes = ceil_div(cin, chunks) * static_cast<int64_t>(sizeof(float));
    block = least(greatest(kBlockBytes / row_bytes, kMinBlock), kMaxBlock);
    partial_stride = round_up(conv.cout, kLanes);
    partial = 0;
    values = partial + (chunks > 1 ? block * partial_stride : 0);
    sums = values + (pooled ? block * kMaxPanel : 0);
    total = sums + (pooled ? Panels(conv.cout).count * 2 * kMaxPanel : 0);
  }

  int64_t chunk_begin(int64_t chunk) const {
    return least(ceil_div(cin, kRun) * chunk / chunks * kRun, cin);
  }
};

// The gate scales whichever operand is smaller; the shape alone decides.
bool gate_scales_weights(const Conv& conv, const Map& x) { return conv.cout < x.h * x.w; }

void scale_map(const Map& x, const float* gate, float* scaled, const Worker& worker) {
  const int64_t pixels = x.h * x.w;
  const int64_t end = pixels * (worker.id + 1) / worker.count;
  for (int64_t p = pixels * worker.id / worker.count; p < end; ++p) {
    const float* from = x.data + p / x.w * x.row + p % x.w * x.pixel;
    float* to = scaled + p * x.c;
    int64_t c = 0;
    for (; c + kLanes <= x.c; c += kLanes) store(to + c, load(from + c) * load(gate + c));
    if (c < x.c) {
      const Tail tail(x.c - c);
      store(to + c, load(from + c, tail) * load(gate + c, tail), tail);
    }
  }
}

void scale_weights(const Conv& conv, const float* gate, float* scaled, const Worker& worker) {
  const Panels panels(conv.cout);
  const int64_t rows = panels.count * conv.cin;  // of all panels
  const int64_t end = rows * (worker.id + 1) / worker.count;
  for (int64_t row = rows * worker.id / worker.count; row < end; ++row) {
    const int64_t panel = row / conv.cin, k = row % conv.cin;
    const int vecs = panels.vecs(panel);
    const int64_t offset = panel * kPanel * conv.cin + k * vecs * kLanes;
    const Vec g = broadcast(gate[k]);
    for (int v = 0; v < vecs; ++v) {
      store(scaled + offset + v * kLanes, load(conv.weight + offset + v * kLanes) * g);
    }
  }
}

// Sums of one panel's channels: of the output row so far, and of the rows before.
struct PoolSums {
  float row[kMaxPanel], total[kMaxPanel];
};

// Adds the pixels [begin, begin + count) of a panel's outputs, in reading order.
void add_to_pool(const float* values, int64_t begin, int64_t count, int64_t width, int vecs,
                 PoolSums& sums) {
  for (int v = 0; v < vecs; ++v) {
    Vec row = load(sums.row + v * kLanes), total = load(sums.total + v * kLanes);
    int64_t column = begin % width;
    for (int64_t i = 0; i < count; ++i) {
      row = row + load(values + i * kMaxPanel + v * kLanes);
      if (++column == width) {
        total = total + row;
        row = zero();
        column = 0;
      }
    }
    store(sums.row + v * kLanes, row);
    store(sums.total + v * kLanes, total);
  }
}

}  // namespace

int64_t packed_conv_size(int64_t cout, int64_t cin, int64_t kh, int64_t kw) {
  return kh * kw * cin * round_up(cout, kLanes);
}

void pack_conv(const float* oihw, int64_t cout, int64_t cin, int64_t kh, int64_t kw,
               float* packed) {
  const Panels panels(cout);
  const int64_t taps = kh * kw;
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t width = panels.vecs(panel) * kLanes, channels = panels.channels(panel);
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t k = 0; k < cin; ++k) {
        for (int64_t n = 0; n < width; ++n) {
          *packed++ = n < channels ? oihw[((panel * kPanel + n) * cin + k) * taps + tap] : 0.0f;
        }
      }
    }
  }
}

Scratch pointwise_conv_scratch(const Conv& conv, const Map& x, bool gated, bool pooled) {
  Scratch need;
  if (gated) {
    need.shared = gate_scales_weights(conv, x) ? packed_conv_size(conv.cout, conv.cin, 1, 1)
                                               : x.h * x.w * x.c;
  }
  need.worker = Layout(conv, pooled).total;
  return need;
}

void pointwise_conv(const Conv& conv, const Map& x, const float* gate, const Map* residual,
                    const Map* y, float* pool, const Worker& worker) {
  Gemm gemm{conv.weight, conv.bias, 1, conv.cin, conv.act, Panels(conv.cout)};
  Map a = x;
  if (gate) {
    if (gate_scales_weights(conv, x)) {
      scale_weights(conv, gate, worker.shared, worker);
      gemm.weight = worker.shared;
    } else {
      scale_map(x, gate, worker.shared, worker);
      a = Map{worker.shared, x.h, x.w, x.c, x.w * x.c, x.c};
    }
    worker.sync();
  }

  // Pools need all pixels in order, and with few pixels the weights are the larger operand: cut the
  // panels then.
  const int64_t pixels = x.h * x.w, panels = gemm.panels.count;
  const bool cut_panels = pool || (pixels <= conv.cout && panels >= worker.count);
  const int64_t panel_begin = cut_panels ? panels * worker.id / worker.count : 0;
  const int64_t panel_end = cut_panels ? panels * (worker.id + 1) / worker.count : panels;
  const int64_t pixel_begin = cut_panels ? 0 : pixels * worker.id / worker.count;
  const int64_t pixel_end = cut_panels ? pixels : pixels * (worker.id + 1) / worker.count;

  const Layout layout(conv, pool != nullptr);
  const EvenCut blocks(pixel_end - pixel_begin, layout.block);
  const float* a_pixels[kMaxBlock];
  const float* residual_pixels[kMaxBlock];
  float* y_pixels[kMaxBlock];

  // With a pool, a panel's outputs of a block land in a buffer first: from there into the sums, and
  // into y when there is one.
  PoolSums* sums = reinterpret_cast<PoolSums*>(worker.scratch + layout.sums);
  float* value_pixels[kMaxBlock];
  if (pool) {
    for (int64_t i = 0; i < panel_end - panel_begin; ++i) sums[i] = {};
    for (int64_t i = 0; i < layout.block; ++i)
      value_pixels[i] = worker.scratch + layout.values + i * kMaxPanel;
  }

  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t begin = pixel_begin + blocks.begin(i);
    const int64_t count = pixel_begin + blocks.begin(i + 1) - begin;
    point_at(a, begin, count, a_pixels);
    if (y) point_at(*y, begin, count, y_pixels);
    if (residual) point_at(*residual, begin, count, residual_pixels);
    const Pixels block_pixels{count, a_pixels, 0, pool ? value_pixels : y_pixels,
                              residual ? residual_pixels : nullptr};
    for (int64_t j = 0; j < layout.chunks; ++j) {
      const Chunk chunk{
          layout.chunk_begin(j),  layout.chunk_begin(j + 1),       j == 0,
          j == layout.chunks - 1, worker.scratch + layout.partial, layout.partial_stride};
      for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        gemm_panel(gemm, panel, block_pixels, pool ? panel * kPanel : 0, chunk);
        if (!pool || !chunk.last) continue;
        const float* values = worker.scratch + layout.values;
        add_to_pool(values, begin, count, x.w, gemm.panels.vecs(panel), sums[panel - panel_begin]);
        for (int64_t p = 0; y && p < count; ++p) {
          __builtin_memcpy(y_pixels[p] + panel * kPanel, value_pixels[p],
                           gemm.panels.channels(panel) * sizeof(float));
        }
      }
    }
  }
  if (!pool) return;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t c = 0; c < gemm.panels.channels(panel); ++c) {
      pool[panel * kPanel + c] = sums[panel - panel_begin].total[c] / static_cast<float>(pixels);
    }
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
