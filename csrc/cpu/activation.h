// Activations on vectors.
#pragma once

#include <math.h>

#include "effnet_fast/types.h"
#include "simd.h"

namespace effnet_fast::EFFNET_FAST_ISA {

// 1 + exp(-x) for x in [kExpLowest, inf); infinity at kExpLowest. exp(-x) = 2^(n / 8) exp(-r),
// n = round(-8 x / ln 2), r = x + n ln 2 / 8, and a minimax polynomial in r, of relative error
// 2.5e-8. Whole powers of 2 would need two more multiply-adds, the units for which are what an
// activation keeps busy; looking up an eighth does not.
constexpr float kExpLowest = -88.75f;
EFFNET_FAST_INLINE Vec one_plus_exp_neg(Vec x) {
  // Beyond, the sum is 1 in any case; and no exponential is denormal.
  const Vec clamped = min(broadcast(80.0f), x);
  // 1.5 * 2^23 + 8 * 127: adding it leaves the nearest integer, + 8 * 127, in the low bits.
  const Vec round = broadcast(12583928.0f);
  const Vec n_bits = fma(clamped, broadcast(-11.5415603f), round);
  const Vec n = n_bits - round;
  Vec r;
  if constexpr (kFmaRoundsOnce) {
    r = fma(n, broadcast(0.0866433976f), clamped);
  } else {  // ln 2 / 8 in two parts: the product with the first, of 9 bits, is exact
    r = fma(n, broadcast(-2.65243050e-5f), fma(n, broadcast(0.086669921875f), clamped));
  }
  Vec p = fma(r, broadcast(-0.166666667f), broadcast(0.5000648f));
  p = fma(r, p, broadcast(-1.0f));
  p = fma(r, p, broadcast(1.0f));
  return fma(p, exp2_of_eighths(n_bits), broadcast(1.0f));
}

// A division takes no longer than rcp and a Newton step here, and gives the same bits on every
// processor. Below kExpLowest the quotient is -88.9 / infinity: 0 even for -infinity.
EFFNET_FAST_INLINE Vec swish(Vec x) {
  const Vec clamped = max(broadcast(kExpLowest), x);
  return clamped / one_plus_exp_neg(clamped);
}
EFFNET_FAST_INLINE Vec sigmoid(Vec x) {
  return broadcast(1.0f) / one_plus_exp_neg(max(broadcast(kExpLowest), x));
}
EFFNET_FAST_INLINE Vec relu(Vec x) { return max(zero(), x); }
EFFNET_FAST_INLINE Vec relu6(Vec x) { return min(broadcast(6.0f), max(zero(), x)); }
EFFNET_FAST_INLINE Vec hard_sigmoid(Vec x) { return relu6(x + broadcast(3.0f)) / broadcast(6.0f); }
EFFNET_FAST_INLINE Vec hard_swish(Vec x) { return x * hard_sigmoid(x); }

// x Phi(x) = x erfc(-x / sqrt 2) / 2, in double: right to float precision in the negative tail too,
// where 1 + erf cancels. No EfficientNet uses it in its bulk, so it's right first and a call per
// lane.
EFFNET_FAST_INLINE Vec gelu(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  for (float& lane : lanes) {
    const double v = lane;
    lane = lane < -40.0f ? 0.0f : static_cast<float>(0.5 * v * ::erfc(v * -0.70710678118654752));
  }
  return load(lanes);
}

// x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
EFFNET_FAST_INLINE Vec gelu_tanh(Vec x) {
  const Vec two_u = x * fma(x * x, broadcast(0.0713548162726f), broadcast(1.59576912160573f));
  return max(broadcast(kExpLowest), x) / one_plus_exp_neg(max(broadcast(kExpLowest), two_u));
}

// The rare ones, out of the kernels' instruction stream.
static __attribute__((noinline)) void activate_other(Act act, Vec* v, int n) {
  switch (act) {
    case Act::kNone:
    case Act::kSwish:
    case Act::kRelu6:
      break;
    case Act::kRelu:
      for (int i = 0; i < n; ++i) v[i] = relu(v[i]);
      break;
    case Act::kHardSwish:
      for (int i = 0; i < n; ++i) v[i] = hard_swish(v[i]);
      break;
    case Act::kHardSigmoid:
      for (int i = 0; i < n; ++i) v[i] = hard_sigmoid(v[i]);
      break;
    case Act::kSigmoid:
      for (int i = 0; i < n; ++i) v[i] = sigmoid(v[i]);
      break;
    case Act::kGelu:
      for (int i = 0; i < n; ++i) v[i] = gelu(v[i]);
      break;
    case Act::kGeluTanh:
      for (int i = 0; i < n; ++i) v[i] = gelu_tanh(v[i]);
      break;
  }
}

// v[i] = act(v[i])
template <int kCount>
EFFNET_FAST_INLINE void activate(Act act, Vec (&v)[kCount]) {
  if (act == Act::kSwish) {
    for (int i = 0; i < kCount; ++i) v[i] = swish(v[i]);
  } else if (act == Act::kRelu6) {
    for (int i = 0; i < kCount; ++i) v[i] = relu6(v[i]);
  } else if (act != Act::kNone) {
    Vec copy[kCount];  // so that v itself stays in registers
    for (int i = 0; i < kCount; ++i) copy[i] = v[i];
    activate_other(act, copy, kCount);
    for (int i = 0; i < kCount; ++i) v[i] = copy[i];
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
