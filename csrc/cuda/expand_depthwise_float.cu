// expand_depthwise in float32, by IEEE multiply-adds: y = act(depthwise(wide) + bias), wide = act(W
// x
// + bias): what is widest of a block is never in memory. Half precision is expand_depthwise.cu.
//
// A block slides down the rows of a tile, for `planes` x 16 channels. In a step it
//   1. multiplies the pixels of some rows of x with W, into a ring of rows in shared memory;
//   2. copies the pixels of the next step, while it
//   3. makes the outputs whose last row is there.
// The ring holds the k - 1 rows above a step's too.
//
//   product: a warp has 16 pixels x all channels
//   outputs: a thread has kColumns of a row x 4 channels, a warp 8 threads' x one plane
#include "activation.cuh"
#include "depthwise_taps.cuh"
#include "expand_depthwise_float.h"
#include "gemm.cuh"

namespace effnet_fast::cuda {
namespace {

constexpr int kThreads = 192;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 7;  // outputs of a thread
constexpr int kPixels = 16;  // of a warp's product

// Swish, or a clamp that is relu, relu6 or nothing.
struct Activation {
  bool is_swish;
  float low, high;

  __device__ explicit Activation(int32_t number) {
    const Act act = static_cast<Act>(number);
    is_swish = act == Act::kSwish;
    low = act == Act::kNone ? -__builtin_huge_valf() : 0.0f;
    high = act == Act::kRelu6 ? 6.0f : __builtin_huge_valf();
  }
  template <bool kIsSwish>
  __device__ float of(float x) const {
    return kIsSwish ? swish(x) : clamp(x, low, high);
  }
};

struct Tile {
  int64_t image;
  int64_t sums;           // of the image's tiles before this, and its channels before
  int channel, channels;  // the first, and how many
  int row, column;        // the first of y
  int rows, columns;      // of y
  // Of the wide map. Rows count from the first that outputs see, which may be padding.
  int wide_row;            // the first
  int wide_rows;           // how many
  int first_row, end_row;  // inside the map
  int column_of_map;       // the first that is made
  int column_of_ring;      // where that is in the ring
  bool has_padding;        // whether some of the ring is never made
};

template <int K, int S, int kChannels>
__device__ Tile tile_of_block(const ExpandDepthwiseFloat& p) {
  Tile t;
  // Chunks are innermost: blocks that run together share x.
  unsigned chunk = blockIdx.x;
  unsigned tile = divide_off(chunk, p.chunks);
  t.channel = chunk * kChannels;
  t.channels = min(p.channels - t.channel, kChannels);
  t.sums = int64_t{tile} * p.channels + t.channel;
  t.image = divide_off(tile, p.tiles);
  const int row_tile = divide_off(tile, p.column_tiles);
  t.row = row_tile * p.tile_rows;
  t.column = tile * p.tile_columns;
  t.rows = min(p.out_h - t.row, p.tile_rows);
  t.columns = min(p.out_w - t.column, p.tile_columns);
  t.wide_row = t.row * S - p.top;
  t.wide_rows = (t.rows - 1) * S + K;
  t.first_row = max(-t.wide_row, 0);
  t.end_row = min(p.h - t.wide_row, t.wide_rows);
  const int column = t.column * S - p.left, span = p.span.divisor;
  t.column_of_map = max(min(column, p.w - span), 0);
  t.column_of_ring = t.column_of_map - column;
  t.has_padding = t.first_row > 0 || t.column_of_ring != 0 || p.ring_columns > span;
  return t;
}

// Rows of a step that are inside the map.
__device__ int rows_of_step(const ExpandDepthwiseFloat& p, const Tile& t, int first_row) {
  return max(min(p.step_rows, t.end_row - first_row), 0);
}

// Elements of a unit that are inside a row of `depth`.
__device__ int elements_of(int unit, int depth) {
  return max(min(depth - unit * kUnit<float>, kUnit<float>), 0);
}

// Where a unit of a row lies, in tiles of `rows` rows.
__device__ unsigned unit_at(unsigned row, unsigned unit, unsigned rows) {
  return unit / kRowUnits * rows * kRowBytes + unit_offset(row, unit % kRowUnits);
}

template <int kChannels>
__device__ void stage_weights(const ExpandDepthwiseFloat& p, const Tile& t, char* shared) {
  const float* weight = p.weight + int64_t{t.channel} * p.weight_depth;
  const int units = p.units.divisor;
#pragma unroll 1
  for (int i = threadIdx.x; i < kChannels * units; i += kThreads) {
    unsigned unit = i;
    const int channel = divide_off(unit, p.units);
    const bool inside =
        channel < t.channels && static_cast<int>(unit) * kUnit<float> < p.weight_depth;
    copy_async(shared + p.weight_offset + unit_at(channel, unit, kChannels),
               weight + int64_t{channel} * p.weight_depth + unit * kUnit<float>, inside ? 16 : 0);
  }
  float* bias = reinterpret_cast<float*>(shared + p.bias_offset);
  const int i = threadIdx.x;
  if (i < kChannels) {
    bias[i] = p.expand_bias != nullptr && i < t.channels ? p.expand_bias[t.channel + i] : 0.0f;
  }
}

// x at the pixels of a step from row `first_row` of the tile's wide map on.
__device__ void stage_pixels(const ExpandDepthwiseFloat& p, const Tile& t, int first_row,
                             char* to) {
  const int pixels = rows_of_step(p, t, first_row) * p.span.divisor;
  const int count = (pixels + kPixels - 1) / kPixels * kPixels * p.units.divisor;
  const float* x = p.x + t.image * p.x_image + int64_t{t.wide_row + first_row} * p.x_row +
                   int64_t{t.column_of_map} * p.x_pixel;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    unsigned unit = i;
    const unsigned pixel = divide_off(unit, p.units);
    unsigned column = pixel;
    const unsigned row = divide_off(column, p.span);
    const int bytes = elements_of(unit, p.depth) * static_cast<int>(sizeof(float));
    copy_async(to + unit_at(pixel, unit, p.input_rows),
               x + int64_t{static_cast<int>(row)} * p.x_row +
                   int64_t{static_cast<int>(column)} * p.x_pixel + unit * kUnit<float>,
               static_cast<int>(pixel) < pixels ? bytes : 0);
  }
}

// The sums of a warp's product, from pixel `first` of a step on, to the ring.
template <bool kIsSwish, class Product>
__device__ void store_wide(const ExpandDepthwiseFloat& p, const Tile& t, int first_row, int first,
                           int pixels, const Activation& act, Product& product, char* ring) {
#pragma unroll
  for (int i = 0; i < Product::kRows; ++i) {
    const int pixel = first + Product::row(i);
    unsigned column = pixel;
    unsigned ring_row = first_row + divide_off(column, p.span);
    const int ring_column = t.column_of_ring + static_cast<int>(column);
    // At the map's edges some columns are made that no output sees.
    if (pixel >= pixels ||
        static_cast<unsigned>(ring_column) >= static_cast<unsigned>(p.ring_columns)) {
      continue;
    }
    divide_off(ring_row, p.ring_rows);
    char* const to = ring + ring_row * p.ring_pitch + ring_column * kPlane * sizeof(float);
#pragma unroll
    for (int n = 0; n < Product::kRuns; ++n) {
      // A plane has 16 columns, the runs of all threads have 8.
      float* const plane = reinterpret_cast<float*>(to + n / 2 * p.plane_bytes);
      plane[Product::column(n % 2)] = act.of<kIsSwish>(*product.run(i, n));
    }
  }
}

// Rows [first_row, end_row) of the tile's wide map, to the ring.
template <int kChannels>
__device__ void expand(const ExpandDepthwiseFloat& p, const Tile& t, int first_row, int end_row,
                       const Activation& act, char* shared) {
  using Product = WarpTile<float, kPixels, kChannels>;
  constexpr int kSteps = kDepth<float> / kStep;
  const int rows = rows_of_step(p, t, first_row), pixels = rows * p.span.divisor;
  const unsigned steps = (static_cast<unsigned>(p.depth) + kStep - 1) / kStep;
  const float* bias = reinterpret_cast<const float*>(shared + p.bias_offset);
  const char* inputs = shared + p.input_offset;
  const char* weights = shared + p.weight_offset;
  char* const ring = shared + p.ring_offset;
#pragma unroll 1
  for (int first = warp_of_thread() * kPixels; first < pixels; first += kWarps * kPixels) {
    Product product;
#pragma unroll
    for (int n = 0; n < Product::kRuns; ++n) {
      const float b = bias[Product::column(n)];
#pragma unroll
      for (int i = 0; i < Product::kRows; ++i) *product.run(i, n) = b;
    }
#pragma unroll 1
    for (unsigned step = 0; step < steps; ++step) {
      const unsigned tile = step / kSteps;
      product.template multiply<false>(inputs + (tile * p.input_rows + first) * kRowBytes,
                                       weights + tile * kChannels * kRowBytes, step % kSteps,
                                       static_cast<const float*>(nullptr));
    }
    if (act.is_swish) {
      store_wide<true>(p, t, first_row, first, pixels, act, product, ring);
    } else {
      store_wide<false>(p, t, first_row, first, pixels, act, product, ring);
    }
  }
#pragma unroll 1
  for (int row = first_row + rows; row < end_row; ++row) {  // below the map
    unsigned ring_row = row;
    divide_off(ring_row, p.ring_rows);
    char* const to = ring + ring_row * p.ring_pitch;
#pragma unroll 1
    for (int i = threadIdx.x * 16; i < p.ring_pitch; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(to + i) = uint4{0, 0, 0, 0};
    }
  }
}

// A thread's outputs, of which the first `columns` are inside the map.
template <bool kIsSwish>
__device__ void finish(const Activation& act, float (&acc)[kColumns][kQuad], int columns, float* to,
                       int pixel, float (&sum)[kQuad]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c, to += pixel) {
    if (c >= columns) break;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      acc[c][j] = act.of<kIsSwish>(acc[c][j]);
      sum[j] += acc[c][j];
    }
    store_quad(to, acc[c]);
  }
}

template <int K, int S, int kPlanes>
__device__ void expand_depthwise(const ExpandDepthwiseFloat& p) {
  constexpr int kChannels = kPlanes * kPlane, kWarpsOfPlane = kWarps / kPlanes;
  extern __shared__ __align__(128) char shared[];
  __shared__ __align__(16) float scratch[kWarps * kPlane];
  const Tile t = tile_of_block<K, S, kChannels>(p);
  float* constants = reinterpret_cast<float*>(shared);
  char* const ring = shared + p.ring_offset;
  stage_constants<K>(p.constants, p.padded_channels, t.channel, p.planes, constants);
  stage_weights<kChannels>(p, t, shared);
  stage_pixels(p, t, t.first_row, shared + p.input_offset);
  if (t.has_padding) {
    const int bytes = p.ring_rows.divisor * p.ring_pitch;
#pragma unroll 1
    for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(ring + i) = uint4{0, 0, 0, 0};
    }
  }

  const Activation expand_act(p.expand_act), act(p.act);
  const unsigned lane = lane_of_thread(), warp = warp_of_thread();
  const int plane = warp % kPlanes, quad = lane % (kPlane / kQuad) * kQuad;
  const int channel = plane * kPlane + quad;
  const float* taps = constants + plane * kConstants<K> * kPlane + quad;
  const char* const own = ring + plane * p.plane_bytes + quad * sizeof(float);
  float* const y = p.y + t.image * p.y_image + int64_t{t.row} * p.y_row +
                   int64_t{t.column} * p.y_pixel + t.channel + channel;
  float sum[kQuad] = {};
  int done = 0;  // rows of y
#pragma unroll 1
  for (int first_row = t.first_row, produced; first_row < t.wide_rows; first_row = produced) {
    // The last rows of the map take what is below along, as far as there is room.
    const int room = first_row + p.step_rows < t.end_row ? p.step_rows : p.room;
    produced = min(first_row + room, t.wide_rows);
    wait_for_copies();
    __syncthreads();
    expand<kChannels>(p, t, first_row, produced, expand_act, shared);
    __syncthreads();
    if (produced < t.end_row) {
      stage_pixels(p, t, produced, shared + p.input_offset);
    }
    const int end = produced < K ? 0 : (produced - K) / S + 1;
    const int items = (end - done) * p.groups.divisor;
#pragma unroll 1
    for (int i = warp / kPlanes * 8 + lane / 4; i < items; i += kWarpsOfPlane * 8) {
      unsigned group = i;
      const int row = done + divide_off(group, p.groups);
      unsigned ring_row = row * S;
      divide_off(ring_row, p.ring_rows);
      const char* from =
          own + ring_row * p.ring_pitch + group * kColumns * S * kPlane * sizeof(float);
      float bias[kQuad], acc[1][kColumns][kQuad];
      load_quad(taps + K * K * kPlane, bias);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < kQuad; ++j) acc[0][c][j] = bias[j];
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        accumulate_row<float, K, S>(from, taps, k, acc);
        ++ring_row, from += p.ring_pitch;
        if (ring_row == p.ring_rows.divisor) {
          ring_row = 0, from -= p.ring_rows.divisor * p.ring_pitch;
        }
      }
      float* const to =
          y + int64_t{row} * p.y_row + int64_t{static_cast<int>(group) * kColumns} * p.y_pixel;
      const int columns = channel < t.channels ? t.columns - static_cast<int>(group) * kColumns : 0;
      if (act.is_swish) {
        finish<true>(act, acc[0], columns, to, p.y_pixel, sum);
      } else {
        finish<false>(act, acc[0], columns, to, p.y_pixel, sum);
      }
    }
    done = end;
  }
  if (p.sums == nullptr) return;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
#pragma unroll
    for (int step = kQuad; step < 32; step *= 2) {
      sum[j] += __shfl_xor_sync(~0u, sum[j], step);
    }
  }
  if (lane < kPlane / kQuad) store_quad(scratch + warp * kPlane + quad, sum);
  __syncthreads();
  const int own_channel = threadIdx.x;
  if (own_channel >= t.channels) return;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarpsOfPlane; ++i) {
    const int from = i * kPlanes + own_channel / kPlane;
    total += scratch[from * kPlane + own_channel % kPlane];
  }
  p.sums[t.sums + own_channel] = total;
}

}  // namespace

extern "C" {

#define EFFNET_FAST_KERNEL(K, S, planes, channels)          \
  __global__ void __launch_bounds__(kThreads, 2)            \
      expand_depthwise_k##K##s##S##_##channels##_float32(   \
          __grid_constant__ const ExpandDepthwiseFloat p) { \
    expand_depthwise<K, S, planes>(p);                      \
  }

// 48 channels at a time, or 96: for maps so small that a plane has no outputs for two warps.
#define EFFNET_FAST_BOTH(K, S)    \
  EFFNET_FAST_KERNEL(K, S, 3, 48) \
  EFFNET_FAST_KERNEL(K, S, 6, 96)

EFFNET_FAST_BOTH(3, 1)
EFFNET_FAST_BOTH(3, 2)
EFFNET_FAST_BOTH(5, 1)
EFFNET_FAST_BOTH(5, 2)

#undef EFFNET_FAST_BOTH
#undef EFFNET_FAST_KERNEL

}  // extern "C"

}  // namespace effnet_fast::cuda
