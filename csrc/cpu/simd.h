// Vectors of floats: one type `Vec` of `kLanes` floats per instruction set, the same names in each.
//
// Whatever includes this is compiled once per instruction set, with EFFNET_FAST_ISA naming the
// namespace that all its code lives in. An inline function outside that namespace (std::min, a
// method of Map) may be emitted by the linker from the copy with the newest instructions, so the
// kernels call none.
#pragma once

#include <cstdint>

#if !defined(EFFNET_FAST_ISA)
#error "EFFNET_FAST_ISA must name the instruction set: scalar, neon, avx2 or avx512"
#endif

#define EFFNET_FAST_METHOD inline __attribute__((always_inline))
#define EFFNET_FAST_INLINE static EFFNET_FAST_METHOD

namespace effnet_fast::EFFNET_FAST_ISA {

// For exp2_of_eighths, which gives 2^(n / 8) where a lane's low bits, as an integer, are n + 1016:
// 0 at n = -1016, infinity at n = 1024, neither below nor above. Of each eighth the bits of
// 2^(j / 8), less those of 1 and of j where n's bits will be.
alignas(32) static constexpr int32_t kExp2Eighths[8] = {
    0,
    0x0b95c2 - 0x100000,
    0x1837f0 - 0x200000,
    0x25fed7 - 0x300000,
    0x3504f3 - 0x400000,
    0x45672a - 0x500000,
    0x5744fd - 0x600000,
    0x6ac0c7 - 0x700000,
};

}  // namespace effnet_fast::EFFNET_FAST_ISA

#if defined(__AVX512F__)
#include <immintrin.h>

namespace effnet_fast::EFFNET_FAST_ISA {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
constexpr bool kFmaRoundsOnce = true;

struct Vec {
  __m512 v;
};

struct Full {};
struct Tail {
  __mmask16 mask;
  explicit Tail(int64_t lanes) : mask(static_cast<__mmask16>((1u << lanes) - 1)) {}
};

EFFNET_FAST_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
EFFNET_FAST_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
EFFNET_FAST_INLINE Vec load(const float* p, Full = {}) { return {_mm512_loadu_ps(p)}; }
EFFNET_FAST_INLINE Vec load(const float* p, Tail t) { return {_mm512_maskz_loadu_ps(t.mask, p)}; }
EFFNET_FAST_INLINE void store(float* p, Vec a, Full = {}) { _mm512_storeu_ps(p, a.v); }
EFFNET_FAST_INLINE void store(float* p, Vec a, Tail t) { _mm512_mask_storeu_ps(p, t.mask, a.v); }
EFFNET_FAST_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
EFFNET_FAST_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }

// The lower half of a vector: on processors with units of 256 bits a multiply-add of it takes half
// the time, and padding is not multiplied.
struct Half {
  __m256 v;
};
constexpr bool kHasHalf = true;
EFFNET_FAST_INLINE void clear(Half& a) { a.v = _mm256_setzero_ps(); }
EFFNET_FAST_INLINE void load(Half& a, const float* p) { a.v = _mm256_loadu_ps(p); }
EFFNET_FAST_INLINE Half fma(Vec a, Half b, Half c) {
  return {_mm256_fmadd_ps(_mm512_castps512_ps256(a.v), b.v, c.v)};
}
EFFNET_FAST_INLINE Vec whole(Half a) { return {_mm512_zextps256_ps512(a.v)}; }

EFFNET_FAST_INLINE Vec exp2_of_eighths(Vec n_plus_1016) {
  const __m512i n = _mm512_castps_si512(n_plus_1016.v);
  // Twice, for the index is four bits.
  const __m512i table =
      _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(kExp2Eighths)));
  const __m512i eighth = _mm512_permutexvar_epi32(n, table);
  return {_mm512_castsi512_ps(_mm512_add_epi32(eighth, _mm512_slli_epi32(n, 20)))};
}

}  // namespace effnet_fast::EFFNET_FAST_ISA

#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace effnet_fast::EFFNET_FAST_ISA {

constexpr int kLanes = 8;
constexpr int kRegisters = 16;  // vectors of kLanes that the register file holds
constexpr bool kFmaRoundsOnce = true;

struct Vec {
  __m256 v;
};
using Half = Vec;  // a multiply-add of fewer lanes would take as long
constexpr bool kHasHalf = false;

// All lanes of a memory access, or the first few: loads give 0 in the others, stores leave them.
struct Full {};
alignas(64) static constexpr int32_t kTailMask[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
struct Tail {
  __m256i mask;
  explicit Tail(int64_t lanes)
      : mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTailMask + kLanes - lanes))) {}
};

EFFNET_FAST_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
EFFNET_FAST_INLINE Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
EFFNET_FAST_INLINE Vec load(const float* p, Full = {}) { return {_mm256_loadu_ps(p)}; }
EFFNET_FAST_INLINE Vec load(const float* p, Tail t) { return {_mm256_maskload_ps(p, t.mask)}; }
EFFNET_FAST_INLINE void store(float* p, Vec a, Full = {}) { _mm256_storeu_ps(p, a.v); }
EFFNET_FAST_INLINE void store(float* p, Vec a, Tail t) { _mm256_maskstore_ps(p, t.mask, a.v); }
EFFNET_FAST_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// min and max give b when either is NaN.
EFFNET_FAST_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
EFFNET_FAST_INLINE Vec exp2_of_eighths(Vec n_plus_1016) {
  const __m256i n = _mm256_castps_si256(n_plus_1016.v);
  const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(kExp2Eighths));
  const __m256i eighth = _mm256_permutevar8x32_epi32(table, n);
  return {_mm256_castsi256_ps(_mm256_add_epi32(eighth, _mm256_slli_epi32(n, 20)))};
}

}  // namespace effnet_fast::EFFNET_FAST_ISA

#else  // NEON and scalar: what differs is at the end
#if defined(EFFNET_FAST_NEON)
#include <arm_neon.h>
#endif

namespace effnet_fast::EFFNET_FAST_ISA {

// Two vectors of 4, the width that every x86-64 and aarch64 has without any flag. With NEON a tile
// of 6 x 16 then takes 10 loads for its 24 multiply-adds, one of 14 x 8 would take 16 for 28.
constexpr int kLanes = 8;
typedef float Float4 __attribute__((vector_size(16)));

struct Vec {
  Float4 lo, hi;
};
using Half = Vec;  // channels of EfficientNets are multiples of 8: there is no half to leave out
constexpr bool kHasHalf = false;

struct Full {};
struct Tail {
  int64_t lanes;
  explicit Tail(int64_t lanes) : lanes(lanes) {}
};

EFFNET_FAST_INLINE Vec broadcast(float x) { return {Float4{x, x, x, x}, Float4{x, x, x, x}}; }
EFFNET_FAST_INLINE Vec zero() { return broadcast(0.0f); }
EFFNET_FAST_INLINE Vec load(const float* p, Full = {}) {
  Vec a;
  __builtin_memcpy(&a.lo, p, sizeof(a.lo));
  __builtin_memcpy(&a.hi, p + 4, sizeof(a.hi));
  return a;
}
EFFNET_FAST_INLINE Vec load(const float* p, Tail t) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < t.lanes; ++i) lanes[i] = p[i];
  return load(lanes);
}
EFFNET_FAST_INLINE void store(float* p, Vec a, Full = {}) {
  __builtin_memcpy(p, &a.lo, sizeof(a.lo));
  __builtin_memcpy(p + 4, &a.hi, sizeof(a.hi));
}
EFFNET_FAST_INLINE void store(float* p, Vec a, Tail t) {
  float lanes[kLanes];
  store(lanes, a);
  for (int64_t i = 0; i < t.lanes; ++i) p[i] = lanes[i];
}
EFFNET_FAST_INLINE Vec operator+(Vec a, Vec b) { return {a.lo + b.lo, a.hi + b.hi}; }
EFFNET_FAST_INLINE Vec operator-(Vec a, Vec b) { return {a.lo - b.lo, a.hi - b.hi}; }
EFFNET_FAST_INLINE Vec operator*(Vec a, Vec b) { return {a.lo * b.lo, a.hi * b.hi}; }
EFFNET_FAST_INLINE Vec operator/(Vec a, Vec b) { return {a.lo / b.lo, a.hi / b.hi}; }
// They give b when either is NaN. NEON's fmin would give NaN, its fminnm the other.
EFFNET_FAST_INLINE Vec min(Vec a, Vec b) {
  return {a.lo < b.lo ? a.lo : b.lo, a.hi < b.hi ? a.hi : b.hi};
}
EFFNET_FAST_INLINE Vec max(Vec a, Vec b) {
  return {a.lo > b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
}

#if defined(EFFNET_FAST_NEON)

constexpr int kRegisters = 16;  // 32 of 4 lanes
constexpr bool kFmaRoundsOnce = true;

EFFNET_FAST_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}
EFFNET_FAST_INLINE float32x4_t exp2_of_eighths(float32x4_t n_plus_1016) {
  const uint32x4_t n = vreinterpretq_u32_f32(n_plus_1016);
  // A lookup is of bytes: those of eighth j are 4 j to 4 j + 3.
  const uint32x4_t j = vandq_u32(n, vdupq_n_u32(7));
  const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100), j, vdupq_n_u32(0x04040404));
  const uint8x16x2_t table = vld1q_u8_x2(reinterpret_cast<const uint8_t*>(kExp2Eighths));
  const uint8x16_t eighth = vqtbl2q_u8(table, vreinterpretq_u8_u32(bytes));
  return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_u8(eighth), vshlq_n_u32(n, 20)));
}
EFFNET_FAST_INLINE Vec exp2_of_eighths(Vec n_plus_1016) {
  return {exp2_of_eighths(n_plus_1016.lo), exp2_of_eighths(n_plus_1016.hi)};
}

#else

constexpr int kRegisters = 8;  // 16 of 4 lanes, as x86-64 has
constexpr bool kFmaRoundsOnce = false;

// Two roundings: without the instruction, libm's exact one would cost a call per lane.
EFFNET_FAST_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
EFFNET_FAST_INLINE Vec exp2_of_eighths(Vec n_plus_1016) {
  int32_t n[kLanes];
  __builtin_memcpy(n, &n_plus_1016, sizeof(n));
  // Unsigned, for bits that leave at the top.
  for (int32_t& i : n)
    i = static_cast<int32_t>(kExp2Eighths[i & 7] + (static_cast<uint32_t>(i) << 20));
  Vec a;
  __builtin_memcpy(&a, n, sizeof(n));
  return a;
}

#endif

}  // namespace effnet_fast::EFFNET_FAST_ISA

#endif

namespace effnet_fast::EFFNET_FAST_ISA {

EFFNET_FAST_INLINE void clear(Vec& a) { a = zero(); }
EFFNET_FAST_INLINE void load(Vec& a, const float* p) { a = load(p); }
EFFNET_FAST_INLINE Vec whole(Vec a) { return a; }

// Asks for the line of 64 bytes at p, for L2.
EFFNET_FAST_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 2); }

EFFNET_FAST_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
EFFNET_FAST_INLINE int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
EFFNET_FAST_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
EFFNET_FAST_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Calls f(offset, Full or Tail) for each vector of channels.
template <class F>
EFFNET_FAST_INLINE void for_each_vec(int64_t channels, F f) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) f(c, Full());
  if (c < channels) f(c, Tail(channels - c));
}

// [first, last) of the i in [0, count) with 0 <= start + i * step < size
struct StepRange {
  int64_t first, last;

  StepRange(int64_t start, int64_t count, int64_t step, int64_t size) {
    first = start >= 0 ? 0 : least(ceil_div(-start, step), count);
    last = start >= size ? 0 : least(ceil_div(size - start, step), count);
    last = greatest(first, last);
  }
};

// Floats of scratch that hold n pointers.
EFFNET_FAST_INLINE int64_t pointer_floats(int64_t n) {
  return round_up(ceil_div(n * static_cast<int64_t>(sizeof(float*)), sizeof(float)), 16);
}

// The sum of the lanes, in a fixed order.
EFFNET_FAST_INLINE float lane_sum(Vec a) {
  float lanes[kLanes];
  store(lanes, a);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
