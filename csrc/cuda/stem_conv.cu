// stem_conv: y = act(conv(x) + bias), from an image of any strides to a map with adjacent channels.
//
// A product over all taps: a row of inputs is the window of an output pixel, which the block
// gathers from the image in shared memory.
#include "epilogue.cuh"
#include "gemm.cuh"
#include "stem_conv.h"

namespace effnet_fast::cuda {
namespace {

template <class T, int kM, int kN>
__device__ void stem_conv(const StemConv& p) {
  using Product = TileProduct<T, kM, kN>;
  constexpr int kThreads = Product::kThreads, kRows = Product::kRowsAtOnce;
  extern __shared__ __align__(128) char shared[];
  const Outputs o = outputs_of_block<kM, kN>(p.channel_tiles, p.tiles, p.pixels, p.out.cout);
  const int unit = threadIdx.x % kRowUnits, row = threadIdx.x / kRowUnits;
  const T* x = static_cast<const T*>(p.x) + o.image * p.x_image;
  Product product;
  product.template multiply<false>(
      p.depth, static_cast<const T*>(p.weight) + int64_t{o.channel} * p.weight_depth,
      p.weight_depth, o.channels, static_cast<const T*>(nullptr), shared, [&](int tile, char* to) {
        const int first_tap = tile * kDepth<T> + unit * kUnit<T>;
#pragma unroll 1
        for (int r = row; r < kM; r += kRows) {
          unsigned out_column = o.pixel + r;
          const int out_row = divide_off(out_column, p.out_columns);
          const int top = out_row * p.stride_h - p.top;
          const int left = static_cast<int>(out_column) * p.stride_w - p.left;
          Vector<T> v;
#pragma unroll
          for (int j = 0; j < kUnit<T>; ++j) {
            unsigned tap = first_tap + j;
            const bool has_tap = tap < static_cast<unsigned>(p.depth);
            const int channel = divide_off(tap, p.window);
            const int h = top + static_cast<int>(divide_off(tap, p.kernel_columns));
            const int w = left + static_cast<int>(tap);
            const bool inside = has_tap && r < o.pixels &&
                                static_cast<unsigned>(h) < static_cast<unsigned>(p.h) &&
                                static_cast<unsigned>(w) < static_cast<unsigned>(p.w);
            v.at[j] =
                inside ? x[channel * p.x_channel + h * p.x_row + w * p.x_pixel] : round_to<T>(0.0f);
          }
          *reinterpret_cast<uint4*>(to + unit_offset(r, unit)) = v.bits;
        }
      });
  float* outputs = reinterpret_cast<float*>(shared);
  product.store(outputs);
  finish_outputs<T, kThreads, kN, Product::kPitch, false, false>(p.out, o, outputs);
}

}  // namespace

extern "C" {

#define EFFNET_FAST_TILE(M, N, name, T)                                  \
  __global__ void __launch_bounds__(TileProduct<T, M, N>::kThreads,      \
                                    kResident<TileProduct<T, M, N>>)     \
      stem_conv_##M##x##N##_##name(__grid_constant__ const StemConv p) { \
    stem_conv<T, M, N>(p);                                               \
  }
#define EFFNET_FAST_ALL(name, T)     \
  EFFNET_FAST_TILE(128, 32, name, T) \
  EFFNET_FAST_TILE(128, 64, name, T)

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_TILE

}  // extern "C"

}  // namespace effnet_fast::cuda
