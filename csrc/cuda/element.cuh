// Elements of tensors: loaded in their own type, computed with in float, rounded once at the store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace effnet_fast::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T round_to(float x);
template <>
__device__ inline float round_to<float>(float x) {
  return x;
}
template <>
__device__ inline __half round_to<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 round_to<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// The elements of one 16-byte access, the widest there is.
template <class T>
union Vector {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 bits;
  T at[kSize];
  __device__ Vector() {}
};

template <class T>
__device__ Vector<T> load_vector(const T* p) {
  Vector<T> v;
  v.bits = *reinterpret_cast<const uint4*>(p);
  return v;
}

template <class T>
__device__ void store_vector(T* p, const Vector<T>& v) {
  *reinterpret_cast<uint4*>(p) = v.bits;
}

__device__ inline bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace effnet_fast::cuda
