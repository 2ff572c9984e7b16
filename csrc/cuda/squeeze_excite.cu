// squeeze_excite: gate = gate_act(w2 act(w1 mean + b1) + b2), all of it for some images in a block.
//
// The images of a block share what it reads of the weights: B0's largest have 216 kB, more than its
// maps at batch 1. Everything between the sums and the gate is float, in shared memory.
#include "squeeze_excite.cuh"

namespace effnet_fast::cuda {
namespace {

constexpr int kSqueezeThreads = 256;

template <class T, int kImages>
__device__ void squeeze_excite(const SqueezeExcite& p) {
  extern __shared__ __align__(16) float shared[];
  const int64_t first = int64_t{blockIdx.x} * kImages;
  make_gates<T, kSqueezeThreads, kImages>(p, first, shared,
                                          static_cast<T*>(p.gate) + first * p.channels);
}

}  // namespace

extern "C" {

#define EFFNET_FAST_IMAGES(images, name, T)                                       \
  __global__ void __launch_bounds__(kSqueezeThreads, 2)                           \
      squeeze_excite_##images##_##name(__grid_constant__ const SqueezeExcite p) { \
    squeeze_excite<T, images>(p);                                                 \
  }
#define EFFNET_FAST_ALL(name, T) \
  EFFNET_FAST_IMAGES(1, name, T) \
  EFFNET_FAST_IMAGES(2, name, T) \
  EFFNET_FAST_IMAGES(4, name, T)

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_IMAGES

}  // extern "C"

}  // namespace effnet_fast::cuda
