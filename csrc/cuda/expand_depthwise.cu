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
constexpr int kStemKernel = 3, kStemStride = 2;

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
__device__ int rows_of_step(const ExpandDepthwise& p, const Tile& t, int first_row) {
  return max(min(p.step_rows, t.end_row - first_row), 0);
}

// Elements of a unit that are inside a row of `depth`.
template <class T>
__device__ int elements_of(int unit, int depth) {
  return max(min(depth - unit * kUnit<T>, kUnit<T>), 0);
}

// Where a unit of a row lies, in tiles of `rows` rows.
__device__ unsigned unit_at(unsigned row, unsigned unit, unsigned rows) {
  return unit / kRowUnits * rows * kRowBytes + unit_offset(row, unit % kRowUnits);
}

template <class T, int kChannels>
__device__ void stage_weights(const ExpandDepthwise& p, const Tile& t, char* shared) {
  const T* weight = static_cast<const T*>(p.weight) + int64_t{t.channel} * p.weight_depth;
  const int units = p.units.divisor;
#pragma unroll 1
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

// x at the pixels of a step from row `first_row` of the tile's wide map on.
template <class T>
__device__ void stage_pixels(const ExpandDepthwise& p, const Tile& t, int first_row, char* to) {
  const int pixels = rows_of_step(p, t, first_row) * p.span.divisor;
  const int count = (pixels + kPixels - 1) / kPixels * kPixels * p.units.divisor;
  const T* x = static_cast<const T*>(p.x) + t.image * p.x_image +
               int64_t{t.wide_row + first_row} * p.x_row + int64_t{t.column_of_map} * p.x_pixel;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    unsigned unit = i;
    const unsigned pixel = divide_off(unit, p.units);
    unsigned column = pixel;
    const unsigned row = divide_off(column, p.span);
    const int bytes = elements_of<T>(unit, p.depth) * static_cast<int>(sizeof(T));
    copy_async(to + unit_at(pixel, unit, p.input_rows),
               x + int64_t{static_cast<int>(row)} * p.x_row +
                   int64_t{static_cast<int>(column)} * p.x_pixel + unit * kUnit<T>,
               static_cast<int>(pixel) < pixels ? bytes : 0);
  }
}

// The part of the image that the stem's windows of a step see: [channel][row][column], zeros
// outside the image.
template <class T>
__device__ void stage_image(const ExpandDepthwise& p, const Tile& t, int first_row, char* to) {
  const int rows = rows_of_step(p, t, first_row) * kStemStride + kStemKernel - kStemStride;
  const int count = p.channels_in * p.image_rows.divisor * p.image_units.divisor;
  const int top = (t.wide_row + first_row) * kStemStride - p.stem_top;
  const int left = t.column_of_map * kStemStride - p.stem_left;
  const T* x = static_cast<const T*>(p.x) + t.image * p.x_image;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    unsigned unit = i;
    unsigned row = divide_off(unit, p.image_units);
    const unsigned channel = divide_off(row, p.image_rows);
    const int h = top + static_cast<int>(row), w = left + static_cast<int>(unit) * kUnit<T>;
    const bool has_row =
        static_cast<int>(row) < rows && static_cast<unsigned>(h) < static_cast<unsigned>(p.image_h);
    const T* from = x + channel * p.x_channel + int64_t{h} * p.x_row + int64_t{w} * p.x_pixel;
    Vector<T> v;
#pragma unroll
    for (int j = 0; j < kUnit<T>; ++j, from += p.x_pixel) {
      const bool inside =
          has_row && static_cast<unsigned>(w + j) < static_cast<unsigned>(p.image_w);
      v.at[j] = inside ? *from : round_to<T>(0.0f);
    }
    *reinterpret_cast<uint4*>(to + i * 16) = v.bits;
  }
}

template <class T, bool kIsStem>
__device__ void stage_inputs(const ExpandDepthwise& p, const Tile& t, int first_row, char* to) {
  if constexpr (kIsStem) {
    stage_image<T>(p, t, first_row, to);
  } else {
    stage_pixels<T>(p, t, first_row, to);
  }
}

// The products of a warp's pixels with the stem's weights. Rows of both matrices are
// [channel][row][4]: two columns of a window are a register, and adjacent in the image, whose
// stride is even; the fourth is none.
template <class T, class Product>
__device__ void multiply_stem(const ExpandDepthwise& p, const char* image, int first, int pixels,
                              const char* weights, Product& product) {
  const unsigned lane = lane_of_thread(), pair = lane % 2;
  const int groups = p.channels_in * kStemKernel;
  const uint32_t mask = pair == 0 ? ~0u : 0xffffu;
  const int pitch = p.image_units.divisor * 16;
  const char* from[Product::kRows];
#pragma unroll
  for (int i = 0; i < Product::kRows; ++i) {
    unsigned column = min(first + Product::row(i), pixels - 1);
    const int row = divide_off(column, p.span);
    from[i] = image + row * kStemStride * pitch + (column * kStemStride + 2 * pair) * sizeof(T);
  }
#pragma unroll 1
  for (unsigned step = 0; step * 4 < groups; ++step) {
    uint32_t a[1][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned group = 4 * step + 2 * half + lane % 4 / 2;  // channel and row of a window
      const unsigned channel = group / kStemKernel, row = group % kStemKernel;
      const int offset = group < groups ? (channel * p.image_rows.divisor + row) * pitch : 0;
#pragma unroll
      for (int i = 0; i < Product::kRows; ++i) {
        const uint32_t two = *reinterpret_cast<const uint32_t*>(from[i] + offset);
        a[0][2 * half + i] = group < groups ? two & mask : 0;
      }
    }
    product.template multiply_fragments<false>(a, a, weights, step);
  }
}

// A run of sums, rounded.
__device__ void store_run(float* to, const float (&x)[1]) { *to = x[0]; }
__device__ void store_run(__half* to, const float (&x)[2]) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(x[0], x[1]);
}
__device__ void store_run(__nv_bfloat16* to, const float (&x)[2]) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x[0], x[1]);
}

// The sums of a warp's product, from pixel `first` of a step on, to the ring.
template <class T, bool kIsSwish, class Product>
__device__ void store_wide(const ExpandDepthwise& p, const Tile& t, int first_row, int first,
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
    T* const to = reinterpret_cast<T*>(ring + ring_row * p.ring_pitch) + ring_column * kPlane;
#pragma unroll
    for (int n = 0; n < Product::kRuns; ++n) {
      // A plane has 16 columns, the runs of all threads have 8.
      T* const at = reinterpret_cast<T*>(reinterpret_cast<char*>(to) + n / 2 * p.plane_bytes) +
                    Product::column(n % 2);
      float x[Product::kRun];
#pragma unroll
      for (int j = 0; j < Product::kRun; ++j) x[j] = act.of<kIsSwish>(product.run(i, n)[j]);
      store_run(at, x);
    }
  }
}

// Rows [first_row, end_row) of the tile's wide map, to the ring.
template <class T, int kChannels, bool kIsStem>
__device__ void expand(const ExpandDepthwise& p, const Tile& t, int first_row, int end_row,
                       const Activation& act, char* shared) {
  using Product = WarpTile<T, kPixels, kChannels>;
  constexpr int kSteps = kDepth<T> / kStep;
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
#pragma unroll
      for (int j = 0; j < Product::kRun; ++j) {
        const float b = bias[Product::column(n) + j];
#pragma unroll
        for (int i = 0; i < Product::kRows; ++i) product.run(i, n)[j] = b;
      }
    }
    if constexpr (kIsStem) {
      multiply_stem<T>(p, inputs, first, pixels, weights, product);
    } else {
#pragma unroll 1
      for (unsigned step = 0; step < steps; ++step) {
        const unsigned tile = step / kSteps;
        product.template multiply<false>(inputs + (tile * p.input_rows + first) * kRowBytes,
                                         weights + tile * kChannels * kRowBytes, step % kSteps,
                                         static_cast<const T*>(nullptr));
      }
    }
    if (act.is_swish) {
      store_wide<T, true>(p, t, first_row, first, pixels, act, product, ring);
    } else {
      store_wide<T, false>(p, t, first_row, first, pixels, act, product, ring);
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
template <class T, bool kIsSwish>
__device__ void finish(const Activation& act, float (&acc)[kColumns][kQuad], int columns, T* to,
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
  stage_inputs<T, kIsStem>(p, t, t.first_row, shared + p.input_offset);
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
  const char* const own = ring + plane * p.plane_bytes + quad * sizeof(T);
  T* const y = static_cast<T*>(p.y) + t.image * p.y_image + int64_t{t.row} * p.y_row +
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
    expand<T, kChannels, kIsStem>(p, t, first_row, produced, expand_act, shared);
    __syncthreads();
    if (produced < t.end_row) {
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
      T* const to =
          y + int64_t{row} * p.y_row + int64_t{static_cast<int>(group) * kColumns} * p.y_pixel;
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

#define EFFNET_FAST_KERNEL(K, S, planes, channels, name, T) \
  __global__ void __launch_bounds__(kThreads, 2)            \
      expand_depthwise_k##K##s##S##_##channels##_##name(    \
          __grid_constant__ const ExpandDepthwise p) {      \
    expand_depthwise<T, K, S, planes, false>(p);            \
  }

// 48 channels at a time, or 96: for maps so small that a plane has no outputs for two warps.
#define EFFNET_FAST_ALL(name, T)           \
  EFFNET_FAST_KERNEL(3, 1, 3, 48, name, T) \
  EFFNET_FAST_KERNEL(3, 1, 6, 96, name, T) \
  EFFNET_FAST_KERNEL(3, 2, 3, 48, name, T) \
  EFFNET_FAST_KERNEL(3, 2, 6, 96, name, T) \
  EFFNET_FAST_KERNEL(5, 1, 3, 48, name, T) \
  EFFNET_FAST_KERNEL(5, 1, 6, 96, name, T) \
  EFFNET_FAST_KERNEL(5, 2, 3, 48, name, T) \
  EFFNET_FAST_KERNEL(5, 2, 6, 96, name, T)

#define EFFNET_FAST_STEM(name, T)                                             \
  __global__ void __launch_bounds__(kThreads, 2)                              \
      stem_depthwise_k3s1_##name(__grid_constant__ const ExpandDepthwise p) { \
    expand_depthwise<T, 3, 1, 2, true>(p);                                    \
  }

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)
EFFNET_FAST_STEM(float16, __half)
EFFNET_FAST_STEM(bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_STEM
#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_KERNEL

}  // extern "C"

}  // namespace effnet_fast::cuda
