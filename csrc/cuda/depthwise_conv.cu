// depthwise_conv: y = act(depthwise(x) + bias), and for each channel the sum of y over a tile.
//
// A block makes a tile of outputs for `planes` x 16 channels: it stages the inputs that the tile
// needs in shared memory, zeros for padding, and each thread makes R x C outputs of 4 channels from
// there. So an input is requested once by a block, and the loop over taps has neither bounds tests
// nor address arithmetic.
//
//   thread: R rows x C columns x 4 channels   C is odd or rows come first: no bank conflicts
//   warp:   8 threads' outputs x 16 channels  one plane; 16 halves are one sector of 32 bytes
//   block:  tile_rows x tile_columns threads' outputs x planes
//
// A map with a dilation is as many maps without one, each of every dilation-th pixel.
//
// Any C, any strides, any alignment. Sums are deterministic: every tile stores its own.
#include "activation.cuh"
#include "async_copy.cuh"
#include "depthwise_conv.h"
#include "depthwise_taps.cuh"
#include "element.cuh"

namespace effnet_fast::cuda {
namespace {

constexpr int kMaxThreads = 256;

// Where a block's tile lies. Of a dilated map, in pixels of its phase.
struct Tile {
  int64_t image;
  int64_t sums;       // of the image's tiles before this, and its channels before
  int channel;        // the first
  int channels;       // of the map; may be fewer than the planes have
  int row, column;    // of the first output
  int rows, columns;  // of outputs inside the map, from there on
  int phase_row, phase_column;
};

__device__ Tile tile_of_block(const DepthwiseConv& p, int rows, int columns) {
  const int chunk = kPlane * p.planes.divisor;
  Tile t;
  // Chunks are innermost: blocks that run together share the memory's bursts.
  unsigned chunk_index = blockIdx.x;
  unsigned tile = divide_off(chunk_index, p.chunks);
  t.channel = chunk_index * chunk;
  t.channels = min(p.channels - t.channel, chunk);
  t.sums = int64_t{tile} * p.channels + t.channel;
  t.image = divide_off(tile, p.tiles);
  unsigned column_tile = tile;
  unsigned row_tile = divide_off(column_tile, p.column_tiles);
  const unsigned phase = divide_off(row_tile, p.row_tiles);
  t.row = row_tile * rows;
  t.column = column_tile * columns;
  t.phase_row = t.phase_column = 0;
  int out_h = p.out_h, out_w = p.out_w;
  if (p.dilation_h > 1 || p.dilation_w > 1) {
    t.phase_row = phase / p.dilation_w;
    t.phase_column = phase % p.dilation_w;
    out_h = (out_h - t.phase_row + p.dilation_h - 1) / p.dilation_h;
    out_w = (out_w - t.phase_column + p.dilation_w - 1) / p.dilation_w;
  }
  t.rows = min(out_h - t.row, rows);
  t.columns = min(out_w - t.column, columns);
  return t;
}

// The inputs of the tile, from (origin_row, origin_column) on: [plane][row][column][16].
template <class T>
__device__ void stage_inputs(const DepthwiseConv& p, const Tile& t, int origin_row,
                             int origin_column, char* to) {
  constexpr unsigned kUnit = 16 / sizeof(T);       // channels of a copy
  constexpr unsigned kUnits = kPlane / kUnit;      // copies of a plane's pixel
  constexpr unsigned kPixel = kPlane * sizeof(T);  // bytes
  const Staging& s = p.staging;
  // All the thread's copies are of the same channels.
  unsigned unit = thread_of_block();
  unsigned column = divide_off(unit, s.units);
  const unsigned row = divide_off(column, s.columns);
  int h = origin_row + static_cast<int>(row) * p.dilation_h;
  int w = origin_column + static_cast<int>(column) * p.dilation_w;
  const int w_end = origin_column + s.wrap_w;
  const T* from = static_cast<const T*>(p.x) + t.image * p.x_image + t.channel + unit * kUnit +
                  h * p.x_row + w * p.x_pixel;
  to += unit / kUnits * s.plane_bytes + row * s.pitch + column * kPixel + unit % kUnits * 16;
  // The last channels of a map may fill less than 16 bytes.
  const int channels = min(t.channels - static_cast<int>(unit * kUnit), static_cast<int>(kUnit));
  int bytes = max(channels, 0) * static_cast<int>(sizeof(T));
  asm("" : "+r"(bytes));  // or nvcc computes it anew in the loop
  for (int i = thread_of_block(); i < s.copies; i += threads_of_block()) {
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(p.h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(p.w);
    copy_async(to, from, inside ? bytes : 0);
    h += s.step_h, w += s.step_w, from += s.from_step, to += s.to_step;
    if (w >= w_end) w -= s.wrap_w, h += p.dilation_h, from += s.from_wrap, to += s.to_wrap;
  }
}

// Some elements that are read and written at once.
template <class T, int kElements>
struct alignas(kElements * sizeof(T)) Piece {
  T at[kElements];
};

// f(e) for the pieces of a run of memory, each by one lane. Lanes begin at a sector's border, so
// that only the sectors at both ends are requested in part; all of a warp go along, or they would
// not.
template <int kElements, class T, class F>
__device__ void for_pieces(const T* run, int length, F f) {
  const int lane = thread_of_block() % 32;
#pragma unroll 1
  for (int begin = -sector_offset(run); begin < length; begin += 32 * kElements) {
    const int e = begin + lane * kElements;
    if (e >= 0 && e < length) f(e);
  }
}

// As stage_inputs, of pixels at any alignment of kElements elements.
template <int kElements, class T>
__device__ void stage_unaligned(const DepthwiseConv& p, const Tile& t, int origin_row,
                                int origin_column, char* to) {
  constexpr int kPixel = kPlane * sizeof(T);
  const int rows = p.staging.rows, columns = p.staging.columns.divisor;
  const int planes = p.planes.divisor;
  const int thread = thread_of_block(), threads = threads_of_block();
#pragma unroll 1
  for (int i = thread * 16; i < p.staging.plane_bytes * planes; i += threads * 16) {
    *reinterpret_cast<uint4*>(to + i) = uint4{0, 0, 0, 0};
  }
  __syncthreads();
  const T* x = static_cast<const T*>(p.x) + t.image * p.x_image + t.channel;
  const int first = max(0, (-origin_column + p.dilation_w - 1) / p.dilation_w);
  const int end = min(columns, (p.w - origin_column + p.dilation_w - 1) / p.dilation_w);
  // Pixels in a row without a gap are one run.
  const bool joined = t.channels == p.x_pixel && p.dilation_w == 1;
  const int runs = joined ? 1 : max(end - first, 0);
  const int length = joined ? max(end - first, 0) * t.channels : t.channels;
  for (int i = thread / 32; i < rows * runs; i += threads / 32) {
    const int row = i / runs, column = first + i % runs;
    const int h = origin_row + row * p.dilation_h;
    if (h < 0 || h >= p.h) continue;
    const T* run = x + h * p.x_row + (origin_column + column * p.dilation_w) * p.x_pixel;
    for_pieces<kElements>(run, length, [&](int e) {
      const int pixel = column + e / t.channels, channel = e % t.channels;
      char* const at = to + channel / kPlane * p.staging.plane_bytes + row * p.staging.pitch +
                       pixel * kPixel + channel % kPlane * sizeof(T);
      using Elements = Piece<T, kElements>;
      *reinterpret_cast<Elements*>(at) = *reinterpret_cast<const Elements*>(run + e);
    });
  }
}

template <class T, int K, int S, int R, int C>
__device__ void accumulate(const char* in, int pitch, const float* taps, float (&acc)[R][C][4]) {
  // Unrolled, a kernel of 9 x 9 taps would be 70 kB of code.
  constexpr int kUnroll = R > 1 || K <= 5 ? (R - 1) * S + K : 1;
#pragma unroll kUnroll
  for (int row = 0; row < (R - 1) * S + K; ++row) {
    accumulate_row<T, K, S>(in + row * pitch, taps, row, acc);
  }
}

// The sums of a block's threads: of 4 channels each, over all threads with the same.
__device__ void store_sums(const DepthwiseConv& p, const Tile& t, float (&sum)[4], float* scratch) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;  // of a plane
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
#pragma unroll
    for (int step = kQuad; step < 32; step *= 2) {
      sum[j] += __shfl_xor_sync(~0u, sum[j], step);
    }
  }
  if (lane < kPlane / kQuad) {
    const int warp = threadIdx.y * warps + threadIdx.x / 32;
    store_quad(scratch + warp * kPlane + lane * kQuad, sum);
  }
  __syncthreads();
  const int channel = thread_of_block();
  if (channel >= t.channels) return;
  float total = 0.0f;
  for (int i = 0; i < warps; ++i) {
    total += scratch[(channel / kPlane * warps + i) * kPlane + channel % kPlane];
  }
  p.sums[t.sums + channel] = total;
}

// Of a thread: the outputs it makes, in those of its tile.
struct Place {
  int row, column;    // the first
  int rows, columns;  // inside the map, from there on; no rows where they are another thread's
  int channel;        // of the chunk
};

// y of the tile's first output.
template <class T>
__device__ T* first_output(const DepthwiseConv& p, const Tile& t) {
  return static_cast<T*>(p.y) + t.image * p.y_image + t.phase_row * p.y_row + t.row * p.y_down +
         t.phase_column * p.y_pixel + t.column * p.y_right + t.channel;
}

// From registers: swish, or a clamp that is relu, relu6 or nothing.
template <class T, bool kIsSwish, int R, int C>
__device__ void finish(const DepthwiseConv& p, const Tile& t, const Place& place,
                       float (&acc)[R][C][4], float* scratch) {
  const Act act = static_cast<Act>(p.act);
  const float low = act == Act::kNone ? -__builtin_huge_valf() : 0.0f;
  const float high = act == Act::kRelu6 ? 6.0f : __builtin_huge_valf();
  T* y = first_output<T>(p, t) + place.row * p.y_down + place.column * p.y_right + place.channel;
  float sum[kQuad] = {};
#pragma unroll
  for (int r = 0; r < R; ++r, y += p.y_down) {
    T* to = y;
#pragma unroll
    for (int c = 0; c < C; ++c, to += p.y_right) {
      if (r >= place.rows || c >= place.columns) continue;
      float (&out)[kQuad] = acc[r][c];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        out[j] = kIsSwish ? swish(out[j]) : clamp(out[j], low, high);
        sum[j] += out[j];
      }
      store_quad(to, out);
    }
  }
  if (p.sums != nullptr) store_sums(p, t, sum, scratch);
}

// Any activation, any alignment of y: through shared memory, [row][column][chunk], for it needs the
// outputs in another order than threads have them.
template <class T, int R, int C>
__device__ void finish_any(const DepthwiseConv& p, const Tile& t, const Place& place,
                           const float (&acc)[R][C][4], float* outputs, float* scratch) {
  const int chunk = kPlane * p.planes.divisor;
  const int thread = thread_of_block(), threads = threads_of_block();
  __syncthreads();  // the inputs are in the same place
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (r >= place.rows || c >= place.columns) continue;
      store_quad(outputs + ((place.row + r) * t.columns + place.column + c) * chunk + place.channel,
                 acc[r][c]);
    }
  }
  __syncthreads();
  // A block's threads are a multiple of its channels, so each has one channel.
  float sum = 0.0f;
  if (thread % chunk < t.channels) {
    for (int i = thread; i < t.rows * t.columns * chunk; i += threads) {
      const float out = activate(static_cast<Act>(p.act), outputs[i]);
      outputs[i] = out;
      sum += out;
    }
  }
  scratch[thread] = sum;
  __syncthreads();
  if (p.sums != nullptr && thread < t.channels) {
    sum = 0.0f;
    for (int i = thread; i < threads; i += chunk) sum += scratch[i];
    p.sums[t.sums + thread] = sum;
  }
  // As in stage_unaligned.
  T* y = first_output<T>(p, t);
  const bool joined = t.channels == p.y_pixel && p.dilation_w == 1;
  const int runs = joined ? 1 : t.columns;
  const int length = joined ? t.columns * t.channels : t.channels;
  for (int i = thread / 32; i < t.rows * runs; i += threads / 32) {
    const int row = i / runs, column = i % runs;
    T* run = y + row * p.y_down + column * p.y_right;
    const float* first = outputs + (row * t.columns + column) * chunk;
    const auto from = [&](int e) { return first + e / t.channels * chunk + e % t.channels; };
    if (p.y_alignment == kQuads) {
      for_pieces<kQuad>(run, length, [&](int e) {
        float out[kQuad];
        load_quad(from(e), out);
        store_quad(run + e, out);
      });
    } else {
      for_pieces<1>(run, length, [&](int e) { run[e] = round_to<T>(*from(e)); });
    }
  }
}

template <class T, int K, int S, int R, int C>
__device__ void depthwise_tile(const DepthwiseConv& p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(16) float scratch[kMaxThreads];
  const Tile t = tile_of_block(p, p.tile_rows * R, p.tile_columns * C);
  float* constants = reinterpret_cast<float*>(shared);
  char* inputs = shared + kConstants<K> * kPlane * 4 * p.planes.divisor;
  stage_constants<K>(p.constants, p.padded_channels, t.channel, p.planes, constants);
  const int origin_row = t.phase_row - p.top + t.row * S * p.dilation_h;
  const int origin_column = t.phase_column - p.left + t.column * S * p.dilation_w;
  if (p.x_alignment == kWhole) {
    stage_inputs<T>(p, t, origin_row, origin_column, inputs);
  } else if (sizeof(T) < 4 && p.x_alignment == kQuads) {  // 4 floats are a whole copy
    stage_unaligned<kQuad, T>(p, t, origin_row, origin_column, inputs);
  } else {
    stage_unaligned<1, T>(p, t, origin_row, origin_column, inputs);
  }
  wait_for_copies();
  __syncthreads();

  const int plane = threadIdx.y, quad = threadIdx.x % (kPlane / kQuad) * kQuad;
  // A plane's last warp may have more threads than outputs: they make the last ones once more.
  const unsigned outputs = p.tile_rows * p.tile_columns, own = threadIdx.x / (kPlane / kQuad);
  unsigned inner = min(own, outputs - 1);
  const unsigned outer = divide_off(inner, p.tile_rows_or_columns);
  Place place;
  place.row = (p.rows_first ? inner : outer) * R;
  place.column = (p.rows_first ? outer : inner) * C;
  place.channel = plane * kPlane + quad;
  place.rows = own < outputs && place.channel < t.channels ? t.rows - place.row : 0;
  place.columns = t.columns - place.column;

  const float* taps = constants + plane * kConstants<K> * kPlane + quad;
  float bias[kQuad];
  load_quad(taps + K * K * kPlane, bias);
  float acc[R][C][kQuad];
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) acc[r][c][j] = bias[j];
    }
  }
  accumulate<T, K, S>(inputs + plane * p.staging.plane_bytes + place.row * S * p.staging.pitch +
                          (place.column * S * kPlane + quad) * sizeof(T),
                      p.staging.pitch, taps, acc);

  const Act act = static_cast<Act>(p.act);
  if (p.y_alignment == kWhole && act == Act::kSwish) {
    finish<T, true>(p, t, place, acc, scratch);
  } else if (p.y_alignment == kWhole && act <= Act::kRelu6) {
    finish<T, false>(p, t, place, acc, scratch);
  } else {
    finish_any<T>(p, t, place, acc, reinterpret_cast<float*>(inputs), scratch);
  }
}

// Any window: taps one by one, from global memory. A warp has 32 channels, a block kAnyPixels
// outputs of them.
constexpr int kAnyPixels = 32;
constexpr int kAnyWarps = 4;

template <class T>
__device__ void depthwise_any(const DepthwiseConv& p) {
  __shared__ float scratch[kAnyWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned chunk = blockIdx.x;
  unsigned tile = divide_off(chunk, p.chunks);
  const int channel = chunk * 32 + lane;
  const int64_t sums = int64_t{tile} * p.channels + channel;
  const int64_t image = divide_off(tile, p.tiles);
  const bool has_channel = channel < p.channels;
  const T* x = static_cast<const T*>(p.x) + image * p.x_image + channel;
  T* y = static_cast<T*>(p.y) + image * p.y_image + channel;
  const float* constants = p.constants + channel;
  float sum = 0.0f;
  for (int i = warp; i < kAnyPixels; i += kAnyWarps) {
    const int64_t pixel = int64_t{tile} * kAnyPixels + i;
    const int out_row = static_cast<int>(pixel / p.out_w);
    const int out_column = static_cast<int>(pixel % p.out_w);
    if (!has_channel || out_row >= p.out_h) continue;
    float acc = constants[int64_t{p.kh} * p.kw * p.padded_channels];
    for (int i = 0; i < p.kh; ++i) {
      const int h = out_row * p.stride_h - p.top + i * p.dilation_h;
      if (h < 0 || h >= p.h) continue;
#pragma unroll 1
      for (int j = 0; j < p.kw; ++j) {
        const int w = out_column * p.stride_w - p.left + j * p.dilation_w;
        if (w < 0 || w >= p.w) continue;
        acc += to_float(x[h * p.x_row + w * p.x_pixel]) *
               constants[int64_t{i * p.kw + j} * p.padded_channels];
      }
    }
    const float out = activate(static_cast<Act>(p.act), acc);
    y[out_row * p.y_row + out_column * p.y_pixel] = round_to<T>(out);
    sum += out;
  }
  if (p.sums == nullptr) return;
  scratch[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || !has_channel) return;
  for (int i = 1; i < kAnyWarps; ++i) sum += scratch[i][lane];
  p.sums[sums] = sum;
}

}  // namespace

extern "C" {

// sums[image][channel] of [image][tile][channel]; a thread for each, in the tiles' order.
__global__ void __launch_bounds__(kMaxThreads)
    depthwise_conv_total(const float* partial, float* sums, int64_t n, int channels, int tiles) {
  const int64_t i = int64_t{blockIdx.x} * kMaxThreads + threadIdx.x;
  if (i >= n) return;
  const float* from = partial + i / channels * tiles * channels + i % channels;
  float sum = 0.0f;
  for (int t = 0; t < tiles; ++t) sum += from[int64_t{t} * channels];
  sums[i] = sum;
}

#define EFFNET_FAST_TILED(K, S, R, C, name, T)                                                  \
  __global__ void __launch_bounds__(kMaxThreads, 2)                                             \
      depthwise_conv_k##K##s##S##_##R##x##C##_##name(__grid_constant__ const DepthwiseConv p) { \
    depthwise_tile<T, K, S, R, C>(p);                                                           \
  }

// Widths of EfficientNet-B0's maps are multiples of 7; of other models 4 columns fit better.
#define EFFNET_FAST_ALL(name, T)                                           \
  __global__ void __launch_bounds__(32 * kAnyWarps)                        \
      depthwise_conv_any_##name(__grid_constant__ const DepthwiseConv p) { \
    depthwise_any<T>(p);                                                   \
  }                                                                        \
  EFFNET_FAST_TILED(3, 1, 2, 7, name, T)                                   \
  EFFNET_FAST_TILED(3, 1, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(3, 1, 2, 4, name, T)                                   \
  EFFNET_FAST_TILED(3, 2, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(3, 2, 1, 4, name, T)                                   \
  EFFNET_FAST_TILED(5, 1, 2, 7, name, T)                                   \
  EFFNET_FAST_TILED(5, 1, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(5, 1, 2, 4, name, T)                                   \
  EFFNET_FAST_TILED(5, 2, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(5, 2, 1, 4, name, T)                                   \
  EFFNET_FAST_TILED(7, 1, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(7, 2, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(9, 1, 1, 7, name, T)                                   \
  EFFNET_FAST_TILED(9, 2, 1, 7, name, T)

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)

}  // extern "C"

}  // namespace effnet_fast::cuda
