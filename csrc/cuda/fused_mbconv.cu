// fused_mbconv: y = act(conv(x) + bias) + residual for a k x k convolution; or, with a projection,
// y = act(P act(conv(x) + bias) + bias) + residual, the wide map between never in memory.
//
// The convolution is a product over taps and channels: a row of inputs is the window of an output
// pixel, copied tap by tap. With a projection a block makes kDepth wide channels of its pixels at a
// time, in the type of x in shared memory, where they are a tile of inputs of the second product,
// whose sums stay in registers.
#include "epilogue.cuh"
#include "fused_mbconv.h"
#include "gemm.cuh"

namespace effnet_fast::cuda {
namespace {

// The windows of a block's output pixels.
template <class T, int kM, int kRows>
class Windows {
 public:
  __device__ Windows(const FusedMbconv& p, int64_t image, int first_pixel, int pixels)
      : p_(p),
        x_(static_cast<const T*>(p.x) + image * p.x_image),
        first_pixel_(first_pixel),
        pixels_(pixels) {}

  // Columns from kDepth tile on.
  __device__ void operator()(int tile, char* to) const {
    const unsigned unit = threadIdx.x % kRowUnits, row = threadIdx.x / kRowUnits;
    char* const own = to + unit_offset(row, unit);
    const unsigned column = tile * kDepth<T> + unit * kUnit<T>;
    unsigned channel = column;
    unsigned tap_column = divide_off(channel, p_.tap_depth);
    const int tap_row = divide_off(tap_column, p_.kernel_columns);
    const int count = column < static_cast<unsigned>(p_.depth)
                          ? max(min(p_.cin - static_cast<int>(channel), kUnit<T>), 0)
                          : 0;
    const int down = tap_row * p_.dilation_h - p_.top;
    const int right = static_cast<int>(tap_column) * p_.dilation_w - p_.left;
#pragma unroll 4
    for (int i = 0; i < kM; i += kRows) {
      const int r = row + i;
      unsigned out_column = first_pixel_ + r;
      const int h = static_cast<int>(divide_off(out_column, p_.out_columns)) * p_.stride_h + down;
      const int w = static_cast<int>(out_column) * p_.stride_w + right;
      const bool inside = r < pixels_ && static_cast<unsigned>(h) < static_cast<unsigned>(p_.h) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(p_.w);
      copy_async(own + i * kRowBytes,
                 x_ + int64_t{h} * p_.x_row + int64_t{w} * p_.x_pixel + static_cast<int>(channel),
                 inside ? count * static_cast<int>(sizeof(T)) : 0);
    }
  }

 private:
  const FusedMbconv& p_;
  const T* x_;
  int first_pixel_, pixels_;
};

template <class T, int kM, int kN>
__device__ void dense_conv(const FusedMbconv& p) {
  using Product = TileProduct<T, kM, kN>;
  extern __shared__ __align__(128) char shared[];
  const Outputs o = outputs_of_block<kM, kN>(p.channel_tiles, p.tiles, p.pixels, p.out.cout);
  const Windows<T, kM, Product::kRowsAtOnce> windows(p, o.image, o.pixel, o.pixels);
  Product product;
  product.template multiply<false>(
      p.depth, static_cast<const T*>(p.weight) + int64_t{o.channel} * p.depth, p.depth, o.channels,
      static_cast<const T*>(nullptr), shared, windows);
  float* outputs = reinterpret_cast<float*>(shared);
  product.store(outputs);
  finish_outputs<T, Product::kThreads, kN, Product::kPitch, false>(p.out, o, outputs);
}

// Wide channels from `first` on, of sums [kM][kPitch] in shared memory, as a tile of inputs.
template <class T, int kM, int kThreads, int kPitch>
__device__ void finish_wide(const FusedMbconv& p, const float* sums, int first, char* to) {
  constexpr int kQuad = 4, kQuads = kDepth<T> / kQuad;
  const int quad = threadIdx.x % kQuads * kQuad;
  const Act act = static_cast<Act>(p.act);
  float bias[kQuad];
  bool inside[kQuad];
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    inside[j] = first + quad + j < p.mid;
    bias[j] = p.bias != nullptr && inside[j] ? p.bias[first + quad + j] : 0.0f;
  }
#pragma unroll 1
  for (int r = threadIdx.x / kQuads; r < kM; r += kThreads / kQuads) {
    float out[kQuad];
    load_quad(sums + r * kPitch + quad, out);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) out[j] += bias[j];
    activate_quad(act, out);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) out[j] = inside[j] ? out[j] : 0.0f;
    char* const at = to + unit_offset(r, quad / kUnit<T>) + quad % kUnit<T> * sizeof(T);
    store_quad(reinterpret_cast<T*>(at), out);
  }
}

template <class T, int kM, int kN>
__device__ void dense_conv_project(const FusedMbconv& p) {
  constexpr int kWide = kDepth<T>;  // channels at a time
  constexpr int kWarpsN = kWide / 32;
  using Product = BlockProduct<T, kM, kWide, 8 / kWarpsN, kWarpsN, 1, 2>;
  using Projection = WarpTile<T, kM / 4, kN / 2>;
  constexpr int kThreads = Product::kThreads, kPitch = Product::kPitch;
  constexpr int kOutPitch = kN + 8;
  static_assert(kThreads == 256 && kN % Product::kRowsAtOnce == 0);
  extern __shared__ __align__(128) char shared[];
  const Outputs o = outputs_of_block<kM, kN>(p.channel_tiles, p.tiles, p.pixels, p.out.cout);
  const Windows<T, kM, Product::kRowsAtOnce> windows(p, o.image, o.pixel, o.pixels);
  constexpr int kSums = kM * kPitch * 4, kTiles = 2 * Product::kTileBytes;
  char* const wide = shared + (kSums > kTiles ? kSums : kTiles);  // a tile of inputs
  char* const rows = wide + kM * kRowBytes;                       // and of weights
  const unsigned warp = warp_of_thread(), warp_m = warp % 4, warp_n = warp / 4;
  const int unit = threadIdx.x % kRowUnits;
  const T* project = static_cast<const T*>(p.project);
  Projection projection;
#pragma unroll 1
  for (int first = 0; first < p.mid; first += kWide) {
#pragma unroll
    for (int i = 0; i < kN; i += Product::kRowsAtOnce) {
      const int r = threadIdx.x / kRowUnits + i, column = first + unit * kUnit<T>;
      const bool inside = r < p.out.cout && column < p.project_depth;
      copy_async(rows + unit_offset(r, unit), project + int64_t{r} * p.project_depth + column,
                 inside ? 16 : 0);
    }
    Product product;
    product.template multiply<false>(
        p.depth, static_cast<const T*>(p.weight) + int64_t{first} * p.depth, p.depth,
        min(p.mid - first, kWide), static_cast<const T*>(nullptr), shared, windows);
    float* sums = reinterpret_cast<float*>(shared);
    product.store(sums);
    finish_wide<T, kM, kThreads, kPitch>(p, sums, first, wide);
    wait_for_copies();
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < kWide / kStep; ++step) {
      projection.template multiply<false>(wide + warp_m * (kM / 4) * kRowBytes,
                                          rows + warp_n * (kN / 2) * kRowBytes, step,
                                          static_cast<const T*>(nullptr));
    }
    __syncthreads();
  }
  float* outputs = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Projection::kRows; ++i) {
#pragma unroll
    for (int n = 0; n < Projection::kRuns; ++n) {
      float* const at = outputs + (warp_m * (kM / 4) + Projection::row(i)) * kOutPitch +
                        warp_n * (kN / 2) + Projection::column(n);
#pragma unroll
      for (int j = 0; j < Projection::kRun; ++j) at[j] = projection.run(i, n)[j];
    }
  }
  __syncthreads();
  finish_outputs<T, kThreads, kN, kOutPitch, false>(p.out, o, outputs);
}

}  // namespace

extern "C" {

#define EFFNET_FAST_TILE(M, N, name, T)                                        \
  __global__ void __launch_bounds__(TileProduct<T, M, N>::kThreads,            \
                                    kResident<TileProduct<T, M, N>>)           \
      fused_mbconv_##M##x##N##_##name(__grid_constant__ const FusedMbconv p) { \
    dense_conv<T, M, N>(p);                                                    \
  }
#define EFFNET_FAST_ALL(name, T)                                                   \
  EFFNET_FAST_TILE(128, 64, name, T)                                               \
  EFFNET_FAST_TILE(64, 64, name, T)                                                \
  __global__ void __launch_bounds__(256, 1)                                        \
      fused_mbconv_project_128x64_##name(__grid_constant__ const FusedMbconv p) {  \
    dense_conv_project<T, 128, 64>(p);                                             \
  }                                                                                \
  __global__ void __launch_bounds__(256, 1)                                        \
      fused_mbconv_project_128x128_##name(__grid_constant__ const FusedMbconv p) { \
    dense_conv_project<T, 128, 128>(p);                                            \
  }

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_TILE

}  // extern "C"

}  // namespace effnet_fast::cuda
