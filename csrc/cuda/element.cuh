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

// Four elements, aligned to their size.
__device__ inline void load_quad(const float* p, float (&x)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ inline void load_quad(const __half* p, float (&x)[4]) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  const float2 low = __half22float2(reinterpret_cast<const __half2&>(v.x));
  const float2 high = __half22float2(reinterpret_cast<const __half2&>(v.y));
  x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
}
__device__ inline void load_quad(const __nv_bfloat16* p, float (&x)[4]) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  // The upper half of a float.
  x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
  x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
}

// Two elements in a register.
template <class T>
__device__ uint32_t two_of(float x, float y);
template <>
__device__ inline uint32_t two_of<__half>(float x, float y) {
  const __half2 two = __floats2half2_rn(x, y);
  return reinterpret_cast<const uint32_t&>(two);
}
template <>
__device__ inline uint32_t two_of<__nv_bfloat16>(float x, float y) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(x, y);
  return reinterpret_cast<const uint32_t&>(two);
}

// Two elements, aligned to their size.
__device__ inline void store_two(__half* p, float x, float y) {
  *reinterpret_cast<__half2*>(p) = __floats2half2_rn(x, y);
}
__device__ inline void store_two(__nv_bfloat16* p, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(x, y);
}

__device__ inline void store_quad(float* p, const float (&x)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ inline void store_quad(__half* p, const float (&x)[4]) {
  const __half2 low = __floats2half2_rn(x[0], x[1]), high = __floats2half2_rn(x[2], x[3]);
  *reinterpret_cast<uint2*>(p) =
      make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
}
__device__ inline void store_quad(__nv_bfloat16* p, const float (&x)[4]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]);
  const __nv_bfloat162 high = __floats2bfloat162_rn(x[2], x[3]);
  *reinterpret_cast<uint2*>(p) =
      make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
}

// Elements between an address and the begin of its sector of 32 bytes.
template <class T>
__device__ int sector_offset(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 32 / sizeof(T));
}

}  // namespace effnet_fast::cuda
