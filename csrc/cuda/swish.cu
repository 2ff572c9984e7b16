// swish, or another activation, elementwise: for what stays outside a fusion.
//
// x and y have n elements, at any alignment; y may be x. Any one-dimensional grid does.
#include "activation.cuh"
#include "element.cuh"

namespace effnet_fast::cuda {
namespace {

constexpr int kSwishThreads = 256;

template <class T, class F>
__device__ void map_elements(const T* x, T* y, int64_t n, F f) {
  constexpr int kVector = Vector<T>::kSize;
  const int64_t thread = int64_t{blockIdx.x} * kSwishThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kSwishThreads;
  const int64_t vectors = is_aligned(x) && is_aligned(y) ? n / kVector : 0;
  for (int64_t i = thread; i < vectors; i += threads) {
    Vector<T> v = load_vector(x + i * kVector);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v.at[j] = round_to<T>(f(to_float(v.at[j])));
    store_vector(y + i * kVector, v);
  }
  for (int64_t i = vectors * kVector + thread; i < n; i += threads) {
    y[i] = round_to<T>(f(to_float(x[i])));
  }
}

template <class T>
__device__ void activate_elements(const T* x, T* y, int64_t n, int act) {
  if (static_cast<Act>(act) == Act::kSwish) {
    map_elements(x, y, n, [](float x) { return swish(x); });
  } else {
    map_elements(x, y, n, [=](float x) { return activate(static_cast<Act>(act), x); });
  }
}

}  // namespace

extern "C" {

__global__ void __launch_bounds__(kSwishThreads)
    swish_float32(const float* x, float* y, int64_t n, int act) {
  activate_elements(x, y, n, act);
}
__global__ void __launch_bounds__(kSwishThreads)
    swish_float16(const __half* x, __half* y, int64_t n, int act) {
  activate_elements(x, y, n, act);
}
__global__ void __launch_bounds__(kSwishThreads)
    swish_bfloat16(const __nv_bfloat16* x, __nv_bfloat16* y, int64_t n, int act) {
  activate_elements(x, y, n, act);
}

}  // extern "C"

}  // namespace effnet_fast::cuda
