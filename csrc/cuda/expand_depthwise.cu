// expand_depthwise: y = act(depthwise(wide) + bias), wide = act(W x + bias): what is widest of a
// block is never in memory. The same with a stem in place of the expansion.
//
// A block slides down the rows of a tile, for `planes` x 16 channels. In a step it
//   1. multiplies the pixels of some rows of x with W, into a ring of rows in shared memory;
//   2. copies the pixels of the next step, while it
//   3. makes the outputs whose last row is there.
// The ring holds the k - 1 rows above a step's too. It is in the type of x: that is where the wide
// map is rounded, as if it had been stored.
//
//   product: a warp has 16 pixels x all channels
//   outputs: a thread has kColumns of a row x 4 channels, a warp 8 threads' x one plane
#include "activation.cuh"
#include "depthwise_taps.cuh"
#include "expand_depthwise.h"
#include "gemm.cuh"

namespace effnet_fast::cuda {
namespace {

constexpr int kThreads = 192;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 7;  // outputs of a thread
constexpr int kPixels = 16;  // of a warp's product
constexpr int kStemKernel = 3;

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
  int64_t sums;               // of the image's tiles before this, and its channels before
  int channel, channels;      // the first, and how many
  int row, column;            // the first of y
  int rows, columns;          // of y
  int wide_row, wide_column;  // the first of the wide map; may be padding
  int wide_rows;
};

template <int K, int S, int kChannels>
__device__ Tile tile_of_block(const ExpandDepthwise& p) {
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
  t.wide_column = t.column * S - p.left;
  t.wide_rows = (t.rows - 1) * S + K;
  return t;
}

// Of a unit of the step's inputs: its pixel, and where that is on the wide map.
struct Unit {
  int unit, pixel, row, column;
  bool inside;
};

__device__ Unit unit_of(const ExpandDepthwise& p, const Tile& t, int i, int first_row, int pixels) {
  Unit u;
  unsigned unit = i;
  const unsigned pixel = divide_off(unit, p.units);
  unsigned column = pixel;
  u.row = t.wide_row + first_row + static_cast<int>(divide_off(column, p.span));
  u.column = t.wide_column + static_cast<int>(column);
  u.unit = unit;
  u.pixel = pixel;
  u.inside = u.pixel < pixels && static_cast<unsigned>(u.row) < static_cast<unsigned>(p.h) &&
             static_cast<unsigned>(u.column) < static_cast<unsigned>(p.w);
  return u;
}

// Elements of a unit that are inside a row of `depth`.
template <class T>
__device__ int elements_of(int unit, int depth) {
  return max(min(depth - unit * kUnit<T>, kUnit<T>), 0);
}

// Where a unit of a row lies, in tiles of `rows` rows.
__device__ int unit_at(int row, int unit, int rows) {
  return unit / kRowUnits * rows * kRowBytes + unit_offset(row, unit % kRowUnits);
}

template <class T, int kChannels>
__device__ void stage_weights(const ExpandDepthwise& p, const Tile& t, char* shared) {
  const T* weight = static_cast<const T*>(p.weight) + int64_t{t.channel} * p.weight_depth;
  const int units = p.units.divisor;
  for (int i = threadIdx.x; i < kChannels * units; i += kThreads) {
    unsigned unit = i;
    const int channel = divide_off(unit, p.units);
    const bool inside = channel < t.channels && static_cast<int>(unit) * kUnit<T> < p.weight_depth;
    copy_async(shared + p.weight_offset + unit_at(channel, unit, kChannels),
               weight + int64_t{channel} * p.weight_depth + unit * kUnit<T>, inside ? 16 : 0);
  }
  float* bias = reinterpret_cast<float*>(shared + p.bias_offset);
  const int i = threadIdx.x;
  if (i < kChannels) {
    bias[i] = p.expand_bias != nullptr && i < t.channels ? p.expand_bias[t.channel + i] : 0.0f;
  }
}

// The pixels of a step from row `first_row` of the tile's wide map on.
template <class T, bool kIsStem>
__device__ void stage_inputs(const ExpandDepthwise& p, const Tile& t, int first_row, char* to) {
  const int pixels = min(p.step_rows, t.wide_rows - first_row) * p.span.divisor;
  const int count = (pixels + kPixels - 1) / kPixels * kPixels * p.units.divisor;
  const T* x = static_cast<const T*>(p.x) + t.image * p.x_image;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Unit u = unit_of(p, t, i, first_row, pixels);
    char* const at = to + unit_at(u.pixel, u.unit, p.input_rows);
    if constexpr (!kIsStem) {
      const int bytes = elements_of<T>(u.unit, p.depth) * static_cast<int>(sizeof(T));
      copy_async(at, x + u.row * p.x_row + u.column * p.x_pixel + u.unit * kUnit<T>,
                 u.inside ? bytes : 0);
    } else {
      // [channel][row][column] of the stem's window.
      const int top = u.row * p.stem_stride_h - p.stem_top;
      const int left = u.column * p.stem_stride_w - p.stem_left;
      Vector<T> v;
#pragma unroll
      for (int j = 0; j < kUnit<T>; ++j) {
        const int tap = u.unit * kUnit<T> + j;
        const int channel = tap / (kStemKernel * kStemKernel);
        const int h = top + tap % (kStemKernel * kStemKernel) / kStemKernel;
        const int w = left + tap % kStemKernel;
        const bool inside = u.inside && tap < p.depth &&
                            static_cast<unsigned>(h) < static_cast<unsigned>(p.image_h) &&
                            static_cast<unsigned>(w) < static_cast<unsigned>(p.image_w);
        v.at[j] =
            inside ? x[channel * p.x_channel + h * p.x_row + w * p.x_pixel] : round_to<T>(0.0f);
      }
      *reinterpret_cast<uint4*>(at) = v.bits;
    }
  }
}

// A run of sums, rounded, or zeros.
__device__ void store_run(float* to, const float (&x)[1], bool inside) {
  *to = inside ? x[0] : 0.0f;
}
__device__ void store_run(__half* to, const float (&x)[2], bool inside) {
  const __half2 two = __floats2half2_rn(x[0], x[1]);
  *reinterpret_cast<uint32_t*>(to) = inside ? reinterpret_cast<const uint32_t&>(two) : 0;
}
__device__ void store_run(__nv_bfloat16* to, const float (&x)[2], bool inside) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(x[0], x[1]);
  *reinterpret_cast<uint32_t*>(to) = inside ? reinterpret_cast<const uint32_t&>(two) : 0;
}

// The sums of a warp's product, from pixel `first` of a step on, to the ring; zeros outside the
// map.
template <class T, bool kIsSwish, class Product>
__device__ void store_wide(const ExpandDepthwise& p, const Tile& t, int first_row, int first,
                           int pixels, const Activation& act, Product& product, char* ring) {
#pragma unroll
  for (int i = 0; i < Product::kRows; ++i) {
    const int pixel = first + Product::row(i);
    if (pixel >= pixels) break;
    unsigned column = pixel;
    unsigned ring_row = first_row + divide_off(column, p.span);
    const int h = t.wide_row + static_cast<int>(ring_row);
    const int w = t.wide_column + static_cast<int>(column);
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(p.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(p.w);
    divide_off(ring_row, p.ring_rows);
    T* const to = reinterpret_cast<T*>(ring + ring_row * p.ring_pitch) + column * kPlane;
#pragma unroll
    for (int n = 0; n < Product::kRuns; ++n) {
      // Columns of a plane are 16, of the runs of all threads 8.
      T* const at = reinterpret_cast<T*>(reinterpret_cast<char*>(to) + n / 2 * p.plane_bytes) +
                    Product::column(n % 2);
      float x[Product::kRun];
#pragma unroll
      for (int j = 0; j < Product::kRun; ++j) x[j] = act.of<kIsSwish>(product.run(i, n)[j]);
      store_run(at, x, inside);
    }
  }
}

// Rows of the wide map from `first_row` of the tile on, to the ring.
template <class T, int kChannels>
__device__ void expand(const ExpandDepthwise& p, const Tile& t, int first_row,
                       const Activation& act, char* shared) {
  using Product = WarpTile<T, kPixels, kChannels>;
  constexpr int kSteps = kDepth<T> / kStep;
  const int pixels = min(p.step_rows, t.wide_rows - first_row) * p.span.divisor;
  const int steps = (p.depth + kStep - 1) / kStep;
  const float* bias = reinterpret_cast<const float*>(shared + p.bias_offset);
#pragma unroll 1
  for (int first = threadIdx.x / 32 * kPixels; first < pixels; first += kWarps * kPixels) {
    Product product;
#pragma unroll
    for (int n = 0; n < Product::kRuns; ++n) {
#pragma unroll
      for (int j = 0; j < Product::kRun; ++j) {
        const float b = bias[Product::column(n) + j];
#pragma unroll
        for (int i = 0; i < Product::kRows; ++i) product.run(i, n)[j] = b;
      }
    }
    const char* a = shared + p.input_offset + first * kRowBytes;
    const char* b = shared + p.weight_offset;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int tile = step / kSteps;
      product.template multiply<false>(a + tile * p.input_rows * kRowBytes,
                                       b + tile * kChannels * kRowBytes, step % kSteps,
                                       static_cast<const T*>(nullptr));
    }
    char* const ring = shared + p.ring_offset;
    if (act.is_swish) {
      store_wide<T, true>(p, t, first_row, first, pixels, act, product, ring);
    } else {
      store_wide<T, false>(p, t, first_row, first, pixels, act, product, ring);
    }
  }
}

// A thread's outputs, of which the first `columns` are inside the map.
template <class T, bool kIsSwish>
__device__ void finish(const Activation& act, float (&acc)[kColumns][kQuad], int columns, T* to,
                       int64_t pixel, float (&sum)[kQuad]) {
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

template <class T, int K, int S, int kPlanes, bool kIsStem>
__device__ void expand_depthwise(const ExpandDepthwise& p) {
  constexpr int kChannels = kPlanes * kPlane, kWarpsOfPlane = kWarps / kPlanes;
  constexpr int kUnroll = K <= 3 ? K : 1;  // or bfloat16 spills
  extern __shared__ __align__(128) char shared[];
  __shared__ __align__(16) float scratch[kWarps * kPlane];
  const Tile t = tile_of_block<K, S, kChannels>(p);
  float* constants = reinterpret_cast<float*>(shared);
  char* const ring = shared + p.ring_offset;
  stage_constants<K>(p.constants, p.padded_channels, t.channel, p.planes, constants);
  stage_weights<T, kChannels>(p, t, shared);
  stage_inputs<T, kIsStem>(p, t, 0, shared + p.input_offset);
  if (p.ring_padding) {
    const int bytes = p.ring_rows.divisor * p.ring_pitch;
#pragma unroll 1
    for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(ring + i) = uint4{0, 0, 0, 0};
    }
  }

  const Activation expand_act(p.expand_act), act(p.act);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int plane = warp % kPlanes, quad = lane % (kPlane / kQuad) * kQuad;
  const int channel = plane * kPlane + quad;
  const float* taps = constants + plane * kConstants<K> * kPlane + quad;
  const char* const own = ring + plane * p.plane_bytes + quad * sizeof(T);
  T* const y = static_cast<T*>(p.y) + t.image * p.y_image + t.row * p.y_row + t.column * p.y_pixel +
               t.channel + channel;
  float sum[kQuad] = {};
  int done = 0;  // rows of y
#pragma unroll 1
  for (int first_row = 0; first_row < t.wide_rows; first_row += p.step_rows) {
    wait_for_copies();
    __syncthreads();
    expand<T, kChannels>(p, t, first_row, expand_act, shared);
    __syncthreads();
    const int produced = min(first_row + p.step_rows, t.wide_rows);
    if (produced < t.wide_rows) {
      stage_inputs<T, kIsStem>(p, t, produced, shared + p.input_offset);
    }
    const int end = produced < K ? 0 : (produced - K) / S + 1;
    const int items = (end - done) * p.groups.divisor;
#pragma unroll 1
    for (int i = warp / kPlanes * 8 + lane / 4; i < items; i += kWarpsOfPlane * 8) {
      unsigned group = i;
      const int row = done + divide_off(group, p.groups);
      unsigned ring_row = row * S;
      divide_off(ring_row, p.ring_rows);
      const char* from = own + ring_row * p.ring_pitch + group * kColumns * S * kPlane * sizeof(T);
      float bias[kQuad], acc[1][kColumns][kQuad];
      load_quad(taps + K * K * kPlane, bias);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < kQuad; ++j) acc[0][c][j] = bias[j];
      }
#pragma unroll kUnroll
      for (int k = 0; k < K; ++k) {
        accumulate_row<T, K, S>(from, taps, k, acc);
        ++ring_row, from += p.ring_pitch;
        if (ring_row == p.ring_rows.divisor) {
          ring_row = 0, from -= p.ring_rows.divisor * p.ring_pitch;
        }
      }
      T* const to = y + row * p.y_row + group * kColumns * p.y_pixel;
      const int columns = channel < t.channels ? t.columns - static_cast<int>(group) * kColumns : 0;
      if (act.is_swish) {
        finish<T, true>(act, acc[0], columns, to, p.y_pixel, sum);
      } else {
        finish<T, false>(act, acc[0], columns, to, p.y_pixel, sum);
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

#define EFFNET_FAST_KERNEL(K, S, planes, name, T)                                       \
  __global__ void __launch_bounds__(kThreads, 2)                                        \
      expand_depthwise_k##K##s##S##_##name(__grid_constant__ const ExpandDepthwise p) { \
    expand_depthwise<T, K, S, planes, false>(p);                                        \
  }

#define EFFNET_FAST_ALL(name, T)                                              \
  EFFNET_FAST_KERNEL(3, 1, 3, name, T)                                        \
  EFFNET_FAST_KERNEL(3, 2, 3, name, T)                                        \
  EFFNET_FAST_KERNEL(5, 1, 3, name, T)                                        \
  EFFNET_FAST_KERNEL(5, 2, 3, name, T)                                        \
  __global__ void __launch_bounds__(kThreads, 2)                              \
      stem_depthwise_k3s1_##name(__grid_constant__ const ExpandDepthwise p) { \
    expand_depthwise<T, 3, 1, 2, true>(p);                                    \
  }

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_KERNEL

}  // extern "C"

}  // namespace effnet_fast::cuda
