// float16 and bfloat16 arithmetic, single and in pairs.
#include "decode.h"
#include "floats.h"
#include "launch_state.h"

namespace effnet_fast::ptx {
namespace {

struct Half {
  static float to_float(uint16_t bits) { return half_to_float(bits); }
  static uint16_t from_float(float x) { return float_to_half(x); }
  static uint16_t from_double(double x) { return double_to_half(x); }
  static constexpr float smallest = 0x1p-14f;
  static constexpr uint16_t one = 0x3C00;
};
struct Bfloat {
  static float to_float(uint16_t bits) { return bfloat_to_float(bits); }
  static uint16_t from_float(float x) { return float_to_bfloat(x); }
  static uint16_t from_double(double x) { return double_to_bfloat(x); }
  static constexpr float smallest = 0x1p-126f;
  static constexpr uint16_t one = 0x3F80;
};

enum Flags : uint16_t { kFtz = 2, kSat = 4, kRelu = 8, kNaN = 16, kXorSign = 32 };
enum Operation : uint8_t { kAdd, kSub, kMul, kFma, kMin, kMax, kAbs, kNeg };

template <class F>
float flushed(float x, uint16_t flags) {
  return flags & kFtz && std::fabs(x) < F::smallest ? std::copysign(0.0f, x) : x;
}

template <class F>
uint16_t finished(uint16_t bits, uint16_t flags) {
  if (flags & kFtz && std::fabs(F::to_float(bits)) < F::smallest) bits &= 0x8000;
  const float x = F::to_float(bits);
  if (flags & kSat) return x >= 1.0f ? F::one : x > 0.0f ? bits : uint16_t{0};
  if (flags & kRelu && (x < 0.0f || bits == 0x8000)) return 0;
  return bits;
}

// float32 has more than twice the digits and two: rounding a sum or a product to it first changes
// nothing (Figueroa). A fused multiply-add needs rounding to odd.
template <class F, int operation>
uint16_t element(uint16_t a, uint16_t b, uint16_t c, uint16_t flags) {
  if constexpr (operation == kAbs || operation == kNeg) {
    const uint16_t bits = operation == kAbs ? a & 0x7FFF : a ^ 0x8000;
    return flags & kFtz ? finished<F>(bits, kFtz) : bits;
  }
  const float x = flushed<F>(F::to_float(a), flags), y = flushed<F>(F::to_float(b), flags);
  if constexpr (operation == kAdd) return finished<F>(F::from_float(x + y), flags);
  if constexpr (operation == kSub) return finished<F>(F::from_float(x - y), flags);
  if constexpr (operation == kMul) return finished<F>(F::from_float(x * y), flags);
  if constexpr (operation == kFma) {
    const float z = flushed<F>(F::to_float(c), flags);
    return finished<F>(F::from_double(fma_to_odd(x, y, z)), flags);
  }
  if constexpr (operation == kMin || operation == kMax) {
    const bool negative = (a ^ b) & 0x8000;
    const float p = flags & kXorSign ? std::fabs(x) : x, q = flags & kXorSign ? std::fabs(y) : y;
    float r = operation == kMax ? float_max(p, q) : float_min(p, q);
    if (flags & kNaN && (x != x || y != y)) return 0x7FFF;
    if (r != r) return 0x7FFF;
    if (flags & kXorSign && negative) r = -r;
    return F::from_float(r);
  }
  return 0;
}

template <class F, int operation, bool pair>
void halves(Warp& w, const Instr& in, uint32_t exec) {
  using T = std::conditional_t<pair, uint32_t, uint16_t>;
  constexpr int arity = operation == kFma ? 3 : operation >= kAbs ? 1 : 2;
  const T* a = w.row<T>(in.a);
  const T* b = arity > 1 ? w.row<T>(in.b) : a;
  const T* c = arity > 2 ? w.row<T>(in.c) : a;
  T result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const auto low = [&](T x) { return static_cast<uint16_t>(x); };
    result[l] = element<F, operation>(low(a[l]), low(b[l]), low(c[l]), in.flags);
    if constexpr (pair) {
      const auto high = [&](T x) { return static_cast<uint16_t>(x >> 16); };
      result[l] |=
          static_cast<uint32_t>(element<F, operation>(high(a[l]), high(b[l]), high(c[l]), in.flags))
          << 16;
    }
  }
  w.write(in.d, result, exec);
  uint32_t sources = w.is_defined(in.a);
  if (arity > 1) sources &= w.is_defined(in.b);
  if (arity > 2) sources &= w.is_defined(in.c);
  w.define(in.d, exec, sources);
}

// ex2.approx and tanh.approx of float16 (bfloat16 has them since sm_90): what the ISA allows,
// 2^-9.9 relative and 2^-10.987 absolute, less what rounding the result already takes.
template <bool tanh>
uint16_t approximate(uint16_t a, double amount) {
  const double x = half_to_float(a);
  double y = tanh ? std::tanh(x) : std::exp2(x);
  if (x != 0.0 && !std::isinf(x) && !std::isinf(y)) {
    y += amount * (tanh ? 0x1.025p-11 - 0x1p-12 : y * (0x1.12p-10 - 0x1p-11));
  }
  return double_to_half(tanh ? (y < -1.0 ? -1.0 : y > 1.0 ? 1.0 : y) : y);
}

template <bool tanh, bool pair>
void approximation(Warp& w, const Instr& in, uint32_t exec) {
  using T = std::conditional_t<pair, uint32_t, uint16_t>;
  const T* a = w.row<T>(in.a);
  uint32_t values[kLanes];
  double low[kLanes], high[kLanes];
  for (int l = 0; l < kLanes; ++l) values[l] = a[l] & 0xFFFF;
  error_amounts(w, values, low);
  for (int l = 0; l < kLanes; ++l) values[l] = static_cast<uint32_t>(a[l]) >> 16;
  if (pair) error_amounts(w, values, high);
  T result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    result[l] = approximate<tanh>(static_cast<uint16_t>(a[l]), low[l]);
    if constexpr (pair) {
      result[l] |=
          static_cast<uint32_t>(approximate<tanh>(static_cast<uint16_t>(a[l] >> 16), high[l]))
          << 16;
    }
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

// ---- rules --------------------------------------------------------------------------------------

bool is_half(Type t) {
  return t == Type::kF16 || t == Type::kF16x2 || t == Type::kBf16 || t == Type::kBf16x2;
}

template <int operation>
Handler handler(Type t) {
  switch (t) {
    case Type::kF16:
      return halves<Half, operation, false>;
    case Type::kF16x2:
      return halves<Half, operation, true>;
    case Type::kBf16:
      return halves<Bfloat, operation, false>;
    default:
      return halves<Bfloat, operation, true>;
  }
}

template <int operation, int arity>
void rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (!is_half(t)) return;
  const bool bfloat = t == Type::kBf16 || t == Type::kBf16x2;
  // For sm_80 compilers write fma.
  if (bfloat && operation <= kMul) d.require_target(90);
  constexpr bool arithmetic = operation <= kFma, order = operation == kMin || operation == kMax;
  if (arithmetic) {
    if (!d.take("rn") && operation == kFma) return;
    if (!bfloat && d.take("sat")) {
      in.flags |= kSat;
    } else if (operation == kFma && d.take("relu")) {
      in.flags |= kRelu;
    }
  }
  if (!bfloat && d.take("ftz")) in.flags |= kFtz;
  if (order) {
    if (d.take("NaN")) in.flags |= kNaN;
    if (d.take("xorsign")) {
      if (!d.take("abs")) return;
      in.flags |= kXorSign;
    }
  }
  d.expect(arity + 1, arity + 1);
  const unsigned bits = bits_of(t);
  in.d = d.destination(0, bits);
  in.a = d.source(1, bits);
  if (arity > 1) in.b = d.source(2, bits);
  if (arity > 2) in.c = d.source(3, bits);
  in.run = handler<operation>(t);
}

template <bool tanh>
void approximation_rule(Decoder& d, Instr& in) {
  if (!d.take("approx")) return;
  const Type t = d.type_if_any();
  if (t != Type::kF16 && t != Type::kF16x2) return;
  d.expect(2, 2);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  in.run = t == Type::kF16 ? approximation<tanh, false> : approximation<tanh, true>;
}

}  // namespace

std::vector<RuleEntry> half_rules() {
  const Class h = Class::kHalf, s = Class::kSpecial;
  return {
      {"add", rule<kAdd, 2>, h},
      {"sub", rule<kSub, 2>, h},
      {"mul", rule<kMul, 2>, h},
      {"fma", rule<kFma, 3>, h},
      {"min", rule<kMin, 2>, h},
      {"max", rule<kMax, 2>, h},
      {"abs", rule<kAbs, 1>, h},
      {"neg", rule<kNeg, 1>, h},
      {"ex2", approximation_rule<false>, s},
      {"tanh", approximation_rule<true>, s},
  };
}

}  // namespace effnet_fast::ptx
