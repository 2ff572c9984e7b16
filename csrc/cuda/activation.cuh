// Activations of a float.
#pragma once

#include "effnet_fast/types.h"

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

// 1 / (1 + exp(-x)). Below -88 the exponential is infinite and its reciprocal 0.
__device__ inline float sigmoid(float x) {
  constexpr float kLog2E = 1.44269504f;
  return reciprocal_approx(1.0f + exp2_approx(-kLog2E * x));
}

__device__ inline float swish(float x) { return x * sigmoid(x); }

// The swish of two numbers with one reciprocal, of the product of both denominators: three results
// of the special-function unit instead of four. Below -43.7, where swish is less than 5e-18, the
// exponential is 2^63, that the product be finite. A NaN makes both NaN.
__device__ inline void swish_pair(float& x, float& y) {
  constexpr float kLog2E = 1.44269504f, kMost = 63.0f;
  float u, v;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(u) : "f"(-kLog2E * x), "f"(kMost));
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(-kLog2E * y), "f"(kMost));
  u = 1.0f + exp2_approx(u), v = 1.0f + exp2_approx(v);
  const float r = reciprocal_approx(u * v);
  x *= r * v, y *= r * u;
}

// A NaN stays one, which fmaxf and fminf would make a number of.
__device__ inline float clamp(float x, float low, float high) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(low));
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(y), "f"(high));
  return y;
}

// Any activation. The branches are uniform; a kernel whose outputs are unrolled has this once and
// outside them, for every copy is some 100 instructions.
__device__ inline float activate(Act act, float x) {
  constexpr float kSixth = 1.0f / 6.0f;
  constexpr float kInfinity = __builtin_huge_valf();
  switch (act) {
    case Act::kNone:
      return x;
    case Act::kSwish:
      return swish(x);
    case Act::kRelu:
      return clamp(x, 0.0f, kInfinity);
    case Act::kRelu6:
      return clamp(x, 0.0f, 6.0f);
    case Act::kHardSwish:
      return x * (kSixth * clamp(x + 3.0f, 0.0f, 6.0f));
    case Act::kHardSigmoid:
      return kSixth * clamp(x + 3.0f, 0.0f, 6.0f);
    case Act::kSigmoid:
      return sigmoid(x);
    case Act::kGelu:  // erfc, for 1 + erf cancels below 0
      return 0.5f * x * erfcf(-0.707106781f * x);
    case Act::kGeluTanh:  // (1 + tanh u) / 2 = sigmoid(2 u)
      return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
  }
  return x;
}

// Of four: swish is not behind the switch.
__device__ inline void activate_quad(Act act, float (&x)[4]) {
  if (act == Act::kSwish) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = swish(x[j]);
  } else if (act != Act::kNone) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = activate(act, x[j]);
  }
}

}  // namespace effnet_fast::cuda
