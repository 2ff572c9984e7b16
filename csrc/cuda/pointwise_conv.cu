// pointwise_conv: y = act(W (x * gate) + bias) + residual; or each channel's sum of act(...).
//
// A block multiplies kM pixels of an image with kN rows of W (gemm.cuh says how), and finishes its
// sums from shared memory (epilogue.cuh).
//
// At batch 1 a launch takes longer than what it does: a block can make its image's gate itself, of
// the sums that squeeze_excite would read (squeeze_excite.cuh).
//
// Any sizes, any strides, any alignment. Sums are deterministic: every tile stores its own.
#include "gemm.cuh"
#include "pointwise_conv.h"
#include "squeeze_excite.cuh"

namespace effnet_fast::cuda {
namespace {

// 16 bytes of a row of `count` elements from some element on, zeros beyond its end.
template <class T>
__device__ uint4 load_unit(const T* row, int count) {
  Vector<T> v;
#pragma unroll
  for (int i = 0; i < Vector<T>::kSize; ++i) v.at[i] = i < count ? row[i] : round_to<T>(0.0f);
  return v.bits;
}

// `excite` makes the gate, unless it is null.
template <class T, int kM, int kN, int kWarpsK, bool kIsGated>
__device__ void pointwise_conv(const PointwiseConv& p, const SqueezeExcite* excite = nullptr) {
  using Product = TileProduct<T, kM, kN, kWarpsK>;
  constexpr int kThreads = Product::kThreads, kRows = Product::kRowsAtOnce;
  extern __shared__ __align__(128) char shared[];
  Outputs o = outputs_of_block<kM, kN>(p.channel_tiles, p.tiles, p.pixels, p.out.cout);
  // The rows from half_rows on may be another image's.
  constexpr bool kTakesTwo = kM == 128 && !kIsGated && sizeof(T) == 2;
  const int half_rows = kTakesTwo ? p.half_rows : kM;
  if (half_rows < kM) o.image *= 2, o.tile *= 2;
  const bool has_second = kTakesTwo && half_rows < kM && o.image + 1 < p.images;
  const auto is_inside = [&](int r) {
    return r < half_rows ? r < o.pixels : has_second && r - half_rows < o.pixels;
  };

  T* const gates = reinterpret_cast<T*>(shared + p.gate_offset);
  Gate<T, Product::kWarpRows> gate(gates);
  const int padded = (p.cin + kDepth<T> - 1) / kDepth<T> * kDepth<T>;
  if (excite != nullptr) {
    static_assert(kDepth<T> <= kThreads);
    const int i = p.cin + threadIdx.x;
    if (i < padded) gates[i] = round_to<T>(0.0f);
    make_gates<T, kThreads, 1>(*excite, o.image, reinterpret_cast<float*>(shared), gates);
    __syncthreads();
  } else if (kIsGated) {
    // Pixels may be those of several images.
    const unsigned first = divide(o.pixel, p.gate_pixels);
    const unsigned last = divide(o.pixel + o.pixels - 1, p.gate_pixels);
    const T* from = static_cast<const T*>(p.gate) + (o.image + first) * p.cin;
    T* to = gates;
#pragma unroll 1
    for (unsigned image = first; image <= last; ++image, from += p.cin, to += padded) {
#pragma unroll 1
      for (int i = threadIdx.x; i < padded; i += kThreads) {
        to[i] = i < p.cin ? from[i] : round_to<T>(0.0f);
      }
    }
#pragma unroll
    for (int i = 0; i < Product::kWarpRows / 8; ++i) {
      const int pixel = o.pixel + min(Product::first_row() + 8 * i, o.pixels - 1);
      gate.rows[i] = (divide(pixel, p.gate_pixels) - first) * padded;
    }
  }

  // A thread copies the same columns of several pixels.
  const unsigned unit = threadIdx.x % kRowUnits, row = threadIdx.x / kRowUnits;
  const T* x = static_cast<const T*>(p.x) + o.image * p.x_image + unit * kUnit<T>;
  static_assert(kM % kRows == 0 && kRows % kRowUnits == 0);
  constexpr int kCopies = kM / kRows;
  const unsigned own = unit_offset(row, unit);
  const T* from[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    int pixel = row + i * kRows;
    from[i] = x;
    if (pixel >= half_rows) pixel -= half_rows, from[i] += has_second ? p.x_image : 0;
    from[i] += offset_of(o.pixel + min(pixel, o.pixels - 1), p.out.columns, p.x_row, p.x_pixel);
  }
  Product product;
  product.template multiply<kIsGated>(
      p.cin, static_cast<const T*>(p.weight) + int64_t{o.channel} * p.weight_depth, p.weight_depth,
      o.channels, gate, shared, [&](unsigned tile, char* to) {
        const int column = tile * kDepth<T>;
        const int left = max(min(p.cin - column - static_cast<int>(unit) * kUnit<T>, kUnit<T>), 0);
        if (p.x_is_aligned) {
#pragma unroll
          for (int i = 0; i < kCopies; ++i) {
            const int r = row + i * kRows;
            copy_async(to + own + i * kRows * kRowBytes, from[i] + column,
                       is_inside(r) ? left * static_cast<int>(sizeof(T)) : 0);
          }
        } else {
#pragma unroll 1
          for (int r = row; r < kM; r += kRows) {
            const T* at = x + column;
            const bool inside = is_inside(r), second = r >= half_rows;
            const int pixel = o.pixel + r - (second ? half_rows : 0);
            if (inside) at += offset_of(pixel, p.out.columns, p.x_row, p.x_pixel);
            if (second && inside) at += p.x_image;
            *reinterpret_cast<uint4*>(to + unit_offset(r, unit)) = load_unit(at, inside ? left : 0);
          }
        }
      });
  float* outputs = reinterpret_cast<float*>(shared);
  product.store(outputs);

  finish_outputs<T, kThreads, kN, Product::kPitch>(p.out, o, outputs);
  if (has_second) {
    ++o.tile;
    finish_outputs<T, kThreads, kN, Product::kPitch>(p.out, o,
                                                     outputs + half_rows * Product::kPitch);
  }
}

constexpr int kMeanThreads = 128;

template <class T>
__device__ void pointwise_conv_mean(const float* sums, T* y, int64_t n, int channels, int tiles,
                                    float scale) {
  const int64_t i = int64_t{blockIdx.x} * kMeanThreads + threadIdx.x;
  if (i >= n) return;
  const float* from = sums + i / channels * tiles * channels + i % channels;
  float sum = 0.0f;
  for (int t = 0; t < tiles; ++t) sum += from[int64_t{t} * channels];
  y[i] = round_to<T>(sum * scale);
}

}  // namespace

extern "C" {

// Pixels, channels; warps along columns of W.
#define EFFNET_FAST_KERNEL(NAME, M, N, K, is_gated, T)                  \
  __global__ void __launch_bounds__(TileProduct<T, M, N, K>::kThreads,  \
                                    kResident<TileProduct<T, M, N, K>>) \
      NAME(__grid_constant__ const PointwiseConv p) {                   \
    pointwise_conv<T, M, N, K, is_gated>(p);                            \
  }
#define EFFNET_FAST_TILE(M, N, K, name, T)                                 \
  EFFNET_FAST_KERNEL(pointwise_conv_##M##x##N##_##name, M, N, K, false, T) \
  EFFNET_FAST_KERNEL(pointwise_conv_gated_##M##x##N##_##name, M, N, K, true, T)

// Small tiles, as small batches have them.
#define EFFNET_FAST_EXCITED(M, N, K, name, T)                                                     \
  __global__ void __launch_bounds__(TileProduct<T, M, N, K>::kThreads,                            \
                                    kResident<TileProduct<T, M, N, K>>)                           \
      pointwise_conv_excited_##M##x##N##_##name(__grid_constant__ const ExcitedPointwiseConv p) { \
    pointwise_conv<T, M, N, K, true>(p.conv, &p.gate);                                            \
  }

#define EFFNET_FAST_ALL(name, T)                                                  \
  __global__ void __launch_bounds__(kMeanThreads) pointwise_conv_mean_##name(     \
      const float* sums, T* y, int64_t n, int channels, int tiles, float scale) { \
    pointwise_conv_mean<T>(sums, y, n, channels, tiles, scale);                   \
  }                                                                               \
  EFFNET_FAST_TILE(128, 32, 1, name, T)                                           \
  EFFNET_FAST_TILE(128, 64, 1, name, T)                                           \
  EFFNET_FAST_TILE(64, 64, 1, name, T)                                            \
  EFFNET_FAST_TILE(64, 128, 1, name, T)                                           \
  EFFNET_FAST_TILE(128, 128, 1, name, T)                                          \
  EFFNET_FAST_TILE(32, 32, 4, name, T)                                            \
  EFFNET_FAST_EXCITED(32, 32, 4, name, T)

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_TILE(128, 96, 1, float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)
EFFNET_FAST_TILE(128, 96, 1, bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_EXCITED
#undef EFFNET_FAST_TILE
#undef EFFNET_FAST_KERNEL

}  // extern "C"

}  // namespace effnet_fast::cuda
