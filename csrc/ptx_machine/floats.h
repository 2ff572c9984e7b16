// Floating-point values as PTX defines them: NaN, flushing, saturation, half types.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace effnet_fast::ptx {

// Results that are NaN have one pattern.
inline float canonical(float x) { return x == x ? x : bit_cast<float>(0x7FFFFFFFu); }
inline double canonical(double x) {
  return x == x ? x : bit_cast<double>(uint64_t{0x7FFFFFFFFFFFFFFF});
}
// Denormals become zeros of the same sign.
inline float flush(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
// To [0, 1], NaN to 0.
template <class T>
T saturate_unit(T x) {
  return x >= T{1} ? T{1} : x > T{0} ? x : T{0};
}

// PTX's min and max: a NaN loses against a number, -0 is less than +0.
template <class T>
T float_min(T a, T b) {
  const T smaller = a < b || (a == b && std::signbit(a)) ? a : b;
  return a != a ? b : b != b ? a : smaller;
}
template <class T>
T float_max(T a, T b) {
  const T larger = a > b || (a == b && !std::signbit(a)) ? a : b;
  return a != a ? b : b != b ? a : larger;
}

// ---- float16 and bfloat16 -----------------------------------------------------------------------

inline float half_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const uint32_t sign = uint32_t{h & 0x8000u} << 16, rest = h & 0x7FFFu;
  if (rest >= 0x7C00) return bit_cast<float>(sign | 0x7F800000u | (rest & 0x3FF) << 13);
  if (rest < 0x0400)
    return std::copysign(static_cast<float>(rest) * 0x1p-24f, bit_cast<float>(sign));
  return bit_cast<float>(sign | (rest + 0x1C000u) << 13);
#endif
}

// To nearest even.
inline uint16_t float_to_half(float x) {
#if defined(__F16C__)
  return x == x ? static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)) : uint16_t{0x7FFF};
#else
  if (x != x) return 0x7FFF;
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x1p-14f) {
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t rest = (bits & 0x7FFFFFFFu) - (112u << 23);
  return static_cast<uint16_t>(sign | (rest + 0xFFFu + (rest >> 13 & 1)) >> 13);
#endif
}
// n is a multiple of 8.
inline void halves_to_floats(const uint16_t* halves, float* floats, int n) {
#if defined(__F16C__)
  for (int i = 0; i < n; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(floats + i, _mm256_cvtph_ps(eight));
  }
#else
  for (int i = 0; i < n; ++i) floats[i] = half_to_float(halves[i]);
#endif
}

inline float bfloat_to_float(uint16_t b) { return bit_cast<float>(uint32_t{b} << 16); }
inline uint16_t float_to_bfloat(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  return x == x ? static_cast<uint16_t>(rounded) : uint16_t{0x7FFF};
}
// a * b + c with one error-free product (both have at most 24 bits) and the sum rounded to odd, so
// that rounding it once more to a shorter type gives the fused result.
inline double fma_to_odd(double a, double b, double c) {
  const double p = a * b;  // exact: 22 or 16 bits
  const double s = p + c;
  const double t = s - p;
  const double error = (p - (s - t)) + (c - t);
  if (error == 0.0 || !(std::fabs(s) < std::numeric_limits<double>::infinity())) return s;
  uint64_t bits = bit_cast<uint64_t>(s);
  if (bits & 1) return s;
  // One step towards the exact sum: away from zero when the error has the sign of s.
  bits = (error > 0) == (s > 0) ? bits + 1 : bits - 1;
  return bit_cast<double>(bits);
}

// To float32 by rounding to odd, for the same use.
inline float narrow_to_odd(double x) {
  const float near = static_cast<float>(x);
  if (static_cast<double>(near) == x || x != x) return near;
  uint32_t bits = bit_cast<uint32_t>(near);
  if (std::fabs(static_cast<double>(near)) > std::fabs(x)) --bits;  // the one towards zero
  return bit_cast<float>(bits | 1);
}
inline uint16_t double_to_half(double x) { return float_to_half(narrow_to_odd(x)); }
inline uint16_t double_to_bfloat(double x) { return float_to_bfloat(narrow_to_odd(x)); }

}  // namespace effnet_fast::ptx
