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

// The swish of four numbers with one reciprocal, of the product of the denominators: five results
// of the special-function unit instead of eight, ten more instructions. The exponential is
// at most 2^31, that the product be finite: below -21.5 the result is x 2^-31, where it would be
// between that and 0. A NaN makes all of them NaN.
__device__ inline void swish_four(float (&x)[4]) {
  constexpr float kLog2E = 1.44269504f, kMost = 31.0f;
  float u[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float z;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(-kLog2E * x[i]), "f"(kMost));
    u[i] = 1.0f + exp2_approx(z);
  }
  const float low = u[0] * u[1], high = u[2] * u[3], r = reciprocal_approx(low * high);
  const float of_low = r * high, of_high = r * low;
  x[0] *= of_low * u[1], x[1] *= of_low * u[0];
  x[2] *= of_high * u[3], x[3] *= of_high * u[2];
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
