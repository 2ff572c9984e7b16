// Activations of a float.
#pragma once

namespace effnet_fast::cuda {

// One instruction of the special-function unit each; the errors are the ISA's bounds.
__device__ inline float exp2_approx(float x) {  // relative error 2^-22.5
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_approx(float x) {  // 1 ulp
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x / (1 + exp(-x)). Below -88 the exponential is infinite and its reciprocal 0.
__device__ inline float swish(float x) {
  constexpr float kLog2E = 1.44269504f;
  return x * reciprocal_approx(1.0f + exp2_approx(-kLog2E * x));
}

}  // namespace effnet_fast::cuda
