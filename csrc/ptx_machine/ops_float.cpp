// float32 and float64 arithmetic, and the approximate instructions.
#include <cfenv>

#include "decode.h"
#include "floats.h"
#include "launch_state.h"

namespace effnet_fast::ptx {
namespace {

// ---- nearest even -------------------------------------------------------------------------------

struct Add {
  template <class T>
  static T f(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  static T f(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  static T f(T a, T b) {
    return a * b;
  }
};
struct Div {
  template <class T>
  static T f(T a, T b) {
    return a / b;
  }
};
struct Fma {
  template <class T>
  static T f(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct Rcp {
  template <class T>
  static T f(T a) {
    return T{1} / a;
  }
};
struct Sqrt {
  template <class T>
  static T f(T a) {
    return std::sqrt(a);
  }
};

// The frame around an operation: flush what goes in, then what comes out, saturate.
template <class Op, bool ftz, bool sat>
struct Framed {
  template <class T>
  static T in(T x) {
    if constexpr (ftz && sizeof(T) == 4) return flush(x);
    return x;
  }
  template <class T>
  static T out(T x) {
    if constexpr (ftz && sizeof(T) == 4) x = flush(x);
    if constexpr (sat) return saturate_unit(x);
    return canonical(x);
  }
  template <class T>
  static T f(T a) {
    return out(Op::f(in(a)));
  }
  template <class T>
  static T f(T a, T b) {
    return out(Op::f(in(a), in(b)));
  }
  template <class T>
  static T f(T a, T b, T c) {
    return out(Op::f(in(a), in(b), in(c)));
  }
};

enum Flags : uint16_t { kFtz = 2, kSat = 4, kNaN = 8, kXorSign = 16 };

// Two float32 in a register of 64 bits, the first in its low half.
template <class F>
struct Paired {
  static float half(uint64_t x, int i) {
    return bit_cast<float>(static_cast<uint32_t>(x >> (32 * i)));
  }
  static uint64_t join(float low, float high) {
    return bit_cast<uint32_t>(low) | uint64_t{bit_cast<uint32_t>(high)} << 32;
  }
  static uint64_t f(uint64_t a, uint64_t b) {
    return join(F::f(half(a, 0), half(b, 0)), F::f(half(a, 1), half(b, 1)));
  }
  static uint64_t f(uint64_t a, uint64_t b, uint64_t c) {
    return join(F::f(half(a, 0), half(b, 0), half(c, 0)), F::f(half(a, 1), half(b, 1), half(c, 1)));
  }
};

// All operands but the last are float16 or bfloat16, whose values float32 has.
template <class F, bool bfloat>
struct Mixed {
  static float wide(uint16_t x) { return bfloat ? bfloat_to_float(x) : half_to_float(x); }
  static float f(uint16_t a, float b) { return F::f(wide(a), b); }
  static float f(uint16_t a, uint16_t b, float c) { return F::f(wide(a), wide(b), c); }
};

template <class Op, class T, int arity>
Handler framed(uint16_t flags) {
  const auto handler = [](auto frame) -> Handler {
    using F = decltype(frame);
    if constexpr (arity == 1)
      return map1<F, T, T>;
    else if constexpr (arity == 2)
      return map2<F, T, T>;
    else
      return map3<F, T, T>;
  };
  if (flags & kFtz) {
    return flags & kSat ? handler(Framed<Op, true, true>()) : handler(Framed<Op, true, false>());
  }
  return flags & kSat ? handler(Framed<Op, false, true>()) : handler(Framed<Op, false, false>());
}

template <class Op, int arity, bool ftz>
Handler paired() {
  using F = Paired<Framed<Op, ftz, false>>;
  if constexpr (arity == 2)
    return map2<F, uint64_t, uint64_t>;
  else
    return map3<F, uint64_t, uint64_t>;
}

template <class Op, int arity, bool bfloat, bool sat>
Handler mixed() {
  using F = Mixed<Framed<Op, false, sat>, bfloat>;
  if constexpr (arity == 2)
    return map2<F, float, uint16_t, float>;
  else
    return map3<F, float, uint16_t, uint16_t, float>;
}

// ---- the other directions -----------------------------------------------------------------------

enum Operation : uint8_t { kAdd, kSub, kMul, kDiv, kFma, kRcp, kSqrt };

class Direction {
 public:
  explicit Direction(int mode) : before_(std::fegetround()) { std::fesetround(mode); }
  ~Direction() { std::fesetround(before_); }

 private:
  int before_;
};

// Volatile: the compiler must not move an operation out of its rounding mode.
template <class T>
T directed_value(uint8_t operation, T x, T y, T z) {
  volatile T a = x, b = y, c = z, r = 0;
  switch (operation) {
    case kAdd:
      r = a + b;
      break;
    case kSub:
      r = a - b;
      break;
    case kMul:
      r = a * b;
      break;
    case kDiv:
      r = a / b;
      break;
    case kFma:
      r = std::fma(a, b, c);
      break;
    case kRcp:
      r = T{1} / a;
      break;
    default:
      r = std::sqrt(a);
      break;
  }
  return r;
}

int arity_of(const Instr& in) {
  const uint8_t operation = in.mode & 7;
  return operation == kFma ? 3 : operation >= kRcp ? 1 : 2;
}

template <class T>
void directed_values(const Instr& in, const T* a, const T* b, const T* c, T* result, int n) {
  const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  const Direction direction(modes[in.mode >> 3]);
  for (int i = 0; i < n; ++i) {
    T x = a[i], y = b[i], z = c[i];
    if constexpr (sizeof(T) == 4) {
      if (in.flags & kFtz) x = flush(x), y = flush(y), z = flush(z);
    }
    T r = directed_value(in.mode & 7, x, y, z);
    if constexpr (sizeof(T) == 4) {
      if (in.flags & kFtz) r = flush(r);
    }
    result[i] = in.flags & kSat ? saturate_unit(r) : canonical(r);
  }
}

void define_result(Warp& w, const Instr& in, uint32_t exec) {
  const int arity = arity_of(in);
  uint32_t sources = w.is_defined(in.a);
  if (arity > 1) sources &= w.is_defined(in.b);
  if (arity > 2) sources &= w.is_defined(in.c);
  w.define(in.d, exec, sources);
}

// Of registers of `Whole`, each one T or two.
template <class T, class Whole = T>
void directed(Warp& w, const Instr& in, uint32_t exec) {
  constexpr int n = kLanes * sizeof(Whole) / sizeof(T);
  const int arity = arity_of(in);
  const T* a = w.row<T>(in.a);
  const T* b = arity > 1 ? w.row<T>(in.b) : a;
  const T* c = arity > 2 ? w.row<T>(in.c) : a;
  T result[n];
  directed_values(in, a, b, c, result, n);
  Whole whole[kLanes];
  std::memcpy(whole, result, sizeof(whole));
  w.write(in.d, whole, exec);
  define_result(w, in, exec);
}

template <bool bfloat>
void directed_mixed(Warp& w, const Instr& in, uint32_t exec) {
  using Wide = Mixed<void, bfloat>;
  const bool fused = arity_of(in) > 2;
  const auto *a = w.row<uint16_t>(in.a), *b = w.row<uint16_t>(fused ? in.b : in.a);
  const float* last = w.row<float>(fused ? in.c : in.b);
  float x[kLanes], y[kLanes], result[kLanes];
  for (int l = 0; l < kLanes; ++l) x[l] = Wide::wide(a[l]), y[l] = Wide::wide(b[l]);
  directed_values<float>(in, x, fused ? y : last, last, result, kLanes);
  w.write(in.d, result, exec);
  define_result(w, in, exec);
}

// ---- signs, min and max -------------------------------------------------------------------------

template <class T>
struct Abs {
  static T f(T a) { return a & static_cast<T>(~(T{1} << (8 * sizeof(T) - 1))); }
};
template <class T>
struct Neg {
  static T f(T a) { return a ^ (T{1} << (8 * sizeof(T) - 1)); }
};
struct AbsFtz {
  static float f(float a) { return std::fabs(flush(a)); }
};
struct NegFtz {
  static float f(float a) { return -flush(a); }
};
template <class T>
struct Copysign {
  static T f(T a, T b) { return std::copysign(b, a); }
};

template <bool max, bool ftz, bool nan, bool xorsign>
struct MinMax {
  template <class T>
  static T f(T a, T b) {
    if constexpr (ftz && sizeof(T) == 4) a = flush(a), b = flush(b);
    const bool negative = std::signbit(a) != std::signbit(b);
    if constexpr (xorsign) a = std::fabs(a), b = std::fabs(b);
    T r = max ? float_max(a, b) : float_min(a, b);
    if constexpr (nan) r = a != a || b != b ? canonical(a + b) : r;
    if constexpr (xorsign) r = negative ? -r : r;
    return r == r ? r : canonical(r);
  }
};

template <class T, bool max>
Handler min_max(uint16_t flags) {
  switch (flags & (kFtz | kNaN | kXorSign)) {
    case 0:
      return map2<MinMax<max, false, false, false>, T, T>;
    case kFtz:
      return map2<MinMax<max, true, false, false>, T, T>;
    case kNaN:
      return map2<MinMax<max, false, true, false>, T, T>;
    case kFtz | kNaN:
      return map2<MinMax<max, true, true, false>, T, T>;
    case kXorSign:
      return map2<MinMax<max, false, false, true>, T, T>;
    case kFtz | kXorSign:
      return map2<MinMax<max, true, false, true>, T, T>;
    case kNaN | kXorSign:
      return map2<MinMax<max, false, true, true>, T, T>;
    default:
      return map2<MinMax<max, true, true, true>, T, T>;
  }
}

// Of three.
template <bool max, bool ftz, bool nan, bool abs>
struct MinMax3 {
  static float f(float a, float b, float c) {
    using Two = MinMax<max, ftz, nan, false>;
    if constexpr (abs) a = std::fabs(a), b = std::fabs(b), c = std::fabs(c);
    return Two::f(Two::f(a, b), c);
  }
};

template <bool max, bool ftz>
Handler min_max_of_three(bool nan, bool abs) {
  if (nan) {
    return abs ? map3<MinMax3<max, ftz, true, true>, float, float>
               : map3<MinMax3<max, ftz, true, false>, float, float>;
  }
  return abs ? map3<MinMax3<max, ftz, false, true>, float, float>
             : map3<MinMax3<max, ftz, false, false>, float, float>;
}

// ---- approximations -----------------------------------------------------------------------------
//
// The exact value, moved by up to what the PTX ISA documents as the error, in a direction and by an
// amount that depend on operand, instruction and seed. Less what rounding to float32 adds: half of
// an ulp, or kEps of the value.

constexpr double kEps = 0x1p-24;

// The distance of float32 numbers at y.
double ulp(double y) {
  const double power = bit_cast<double>(bit_cast<uint64_t>(y) & 0x7FF0000000000000);
  return (power > 0x1p-126 ? power : 0x1p-126) * 0x1p-23;
}

// 2^x for |x| < 2000 within 2^-45, in a form that vectorises: 2^n by its bits, 2^f by a polynomial.
double exp2_fast(double x) {
  // Adding 1.5 * 2^52 leaves the nearest integer in the low bits. A cast would not do for NaN.
  const double shifted = x + 0x1.8p52, n = shifted - 0x1.8p52;
  const double y = (x - n) * 0.693147180559945309417;
  double p = 1.0 / 479001600.0;
  p = p * y + 1.0 / 39916800.0;
  p = p * y + 1.0 / 3628800.0;
  p = p * y + 1.0 / 362880.0;
  p = p * y + 1.0 / 40320.0;
  p = p * y + 1.0 / 5040.0;
  p = p * y + 1.0 / 720.0;
  p = p * y + 1.0 / 120.0;
  p = p * y + 1.0 / 24.0;
  p = p * y + 1.0 / 6.0;
  p = p * y + 0.5;
  p = p * y + 1.0;
  p = p * y + 1.0;
  return p * bit_cast<double>((bit_cast<uint64_t>(shifted) + 1023) << 52);
}

// f(x), how far from y = f(x) the result may be, and where the ISA's tables have an exact entry.
struct Ex2 {
  static double f(double x) { return exp2_fast(x < -1000.0 ? -1000.0 : x > 1000.0 ? 1000.0 : x); }
  static double error(double, double y) { return 1.5 * ulp(y); }  // 2 ulp
  static bool exact(double x) { return x == 0.0 || std::isinf(x); }
};
struct RcpApprox {
  static double f(double x) { return 1.0 / x; }
  static double error(double, double y) { return 0.5 * ulp(y); }  // 1 ulp
  static bool exact(double x) { return x == 0.0 || std::isinf(x); }
};
struct SqrtApprox {
  static double f(double x) { return std::sqrt(x); }
  static double error(double, double y) { return (0x1p-23 - kEps) * y; }
  static bool exact(double x) { return !(x > 0.0) || std::isinf(x); }
};
struct Rsqrt {
  static double f(double x) { return 1.0 / std::sqrt(x); }
  static double error(double, double y) { return (0x1.125p-23 - kEps) * y; }  // 2^-22.9
  static bool exact(double x) { return !(x > 0.0) || std::isinf(x); }
};
struct Lg2 {
  static double f(double x) { return std::log2(x); }
  // 2^-22 absolute between 0.5 and 2, relative elsewhere, where |log2| > 1
  static double error(double, double y) {
    const double magnitude = std::fabs(y);
    return (0x1p-22 - kEps) * (magnitude > 1.0 ? magnitude : 1.0);
  }
  static bool exact(double x) { return !(x > 0.0) || std::isinf(x); }
};
// 2^-20.5 for |x| <= 2 pi, 2^-14.7 for |x| <= 100 pi; nothing is promised of larger ones.
double sine_error(double x) {
  const double magnitude = std::fabs(x);
  if (magnitude <= 0x1.921FB5p2) return 0x1.6A09Ep-21 - kEps;
  return magnitude <= 0x1.3A28C5p8 ? 0x1.3B2p-15 - kEps : 2.0;
}
struct Sin {
  static double f(double x) { return std::sin(x); }
  static double error(double x, double) { return sine_error(x); }
  static bool exact(double x) { return x == 0.0 || !std::isfinite(x); }
};
struct Cos {
  static double f(double x) { return std::cos(x); }
  static double error(double x, double) { return sine_error(x); }
  static bool exact(double x) { return x == 0.0 || !std::isfinite(x); }
};
struct Tanh {
  static double f(double x) { return std::tanh(x); }
  static double error(double, double y) { return (0x1p-11 - kEps) * y; }
  // Denormals are passed through.
  static bool exact(double x) { return std::fabs(x) < 0x1p-126 || std::isinf(x); }
};

template <class Op>
float approximate(float x, double amount, bool ftz) {
  if (ftz) x = flush(x);
  const double wide = x;
  double y = Op::f(wide);
  if (!Op::exact(wide)) y += amount * Op::error(wide, y);
  // sin and cos and tanh stay within their range
  if constexpr (std::is_same_v<Op, Sin> || std::is_same_v<Op, Cos> || std::is_same_v<Op, Tanh>) {
    y = y < -1.0 ? -1.0 : y > 1.0 ? 1.0 : y;
  }
  const float result = static_cast<float>(y);
  return canonical(ftz ? flush(result) : result);
}

template <class Op, bool ftz>
void approximation(Warp& w, const Instr& in, uint32_t exec) {
  const float* a = w.row<float>(in.a);
  double amount[kLanes];
  error_amounts(w, w.row<uint32_t>(in.a), amount);
  float result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = approximate<Op>(a[l], amount[l], ftz);
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

// Division within 2 ulp. .full is so everywhere; .approx is a times the reciprocal of b, which is
// zero for divisors above 2^126 and overflows for the smallest.
template <bool ftz, bool full>
void approximate_division(Warp& w, const Instr& in, uint32_t exec) {
  const float *a = w.row<float>(in.a), *b = w.row<float>(in.b);
  uint32_t both[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    both[l] = bit_cast<uint32_t>(a[l]) ^ bit_cast<uint32_t>(b[l]) * 0x9E3779B9u;
  }
  double amount[kLanes];
  error_amounts(w, both, amount);
  float result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    float x = a[l], y = b[l];
    if (ftz) x = flush(x), y = flush(y);
    double quotient = static_cast<double>(x) / static_cast<double>(y);
    if (!full && std::fabs(y) > 0x1p126f && std::isfinite(y)) {
      quotient = x * std::copysign(0.0, y);
    } else if (!full && std::fabs(y) <= 0x1p-128f) {
      quotient = x * std::copysign(std::numeric_limits<double>::infinity(), y);
    } else if (quotient != 0.0 && std::isfinite(quotient)) {
      quotient += amount[l] * 1.5 * ulp(quotient);
    }
    const float r = static_cast<float>(quotient);
    result[l] = canonical(ftz ? flush(r) : r);
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b));
}

// float64's only approximations read and write upper halves: 20 bits of mantissa, of which the ISA
// does not say how many are right. Here all but the last.
template <bool root>
void approximate_double(Warp& w, const Instr& in, uint32_t exec) {
  const auto* a = w.row<uint64_t>(in.a);
  uint32_t high[kLanes];
  for (int l = 0; l < kLanes; ++l) high[l] = static_cast<uint32_t>(a[l] >> 32);
  double amount[kLanes];
  error_amounts(w, high, amount);
  uint64_t result[kLanes];
  const auto flushed = [](double x) {
    return std::fabs(x) < std::numeric_limits<double>::min() ? std::copysign(0.0, x) : x;
  };
  for (int l = 0; l < kLanes; ++l) {
    const double x = flushed(bit_cast<double>(uint64_t{high[l]} << 32));
    const double y = root ? 1.0 / std::sqrt(x) : 1.0 / x;
    const double moved = std::isfinite(y) ? y * (1.0 + amount[l] * 0x1p-21) : y;
    const uint64_t bits = bit_cast<uint64_t>(flushed(moved));
    // To nearest, of the upper half.
    result[l] = (y == y ? bits + 0x80000000 : 0x7FFFFFFF00000000) & 0xFFFFFFFF00000000;
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

// ---- tests --------------------------------------------------------------------------------------

template <class T>
void testp(Warp& w, const Instr& in, uint32_t exec) {
  const T* a = w.row<T>(in.a);
  uint32_t holds = 0;
  for (int l = 0; l < kLanes; ++l) {
    const T x = a[l];
    bool is = false;
    switch (in.mode) {
      case 0:
        is = std::isfinite(x);
        break;
      case 1:
        is = std::isinf(x);
        break;
      case 2:
        is = !std::isnan(x);
        break;
      case 3:
        is = std::isnan(x);
        break;
      case 4:
        is = std::isnormal(x) || x == 0;  // zeros are normal numbers here
        break;
      default:
        is = std::fpclassify(x) == FP_SUBNORMAL;
        break;
    }
    holds |= uint32_t{is} << l;
  }
  w.write_predicate(in.d, holds, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

// ---- rules --------------------------------------------------------------------------------------

bool is_float(Type t) { return t == Type::kF32 || t == Type::kF64; }

void operands(Decoder& d, Instr& in, Type t, size_t sources) {
  d.expect(sources + 1, sources + 1);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  if (sources > 1) in.b = d.source(2, t);
  if (sources > 2) in.c = d.source(3, t);
}

// Of the first operands, which are never immediate.
void require_registers(const Decoder& d, size_t operands) {
  for (size_t i = 1; i <= operands; ++i) {
    if (d.operand(i).kind != Operand::kRegister) d.unknown("an operand is no register");
  }
}

// In pairs, since sm_100.
template <class Op, int arity>
void pair_rule(Decoder& d, Instr& in, Operation operation) {
  d.require_target(100);
  if (d.take("ftz")) in.flags |= kFtz;
  const int mode = d.take_one_of({"rn", "rz", "rm", "rp"});
  if (mode < 0 && operation > kMul) return;
  operands(d, in, Type::kF32x2, arity);
  require_registers(d, arity);
  if (mode <= 0) {
    in.run = in.flags & kFtz ? paired<Op, arity, true>() : paired<Op, arity, false>();
  } else {
    in.mode = static_cast<uint8_t>(operation | mode << 3);
    in.run = directed<float, uint64_t>;
  }
}

// Into float32 from `t`, float16 or bfloat16, and a last operand of float32: since sm_100.
template <class Op, int arity>
void mixed_rule(Decoder& d, Instr& in, Operation operation, Type t) {
  d.require_target(100);
  const bool bfloat = t == Type::kBf16;
  if (d.take("sat")) in.flags |= kSat;
  const int mode = d.take_one_of({"rn", "rz", "rm", "rp"});
  if (mode < 0 && operation > kMul) return;
  d.expect(arity + 1, arity + 1);
  in.d = d.destination(0, Type::kF32);
  in.a = d.source(1, t);
  if (arity > 2) in.b = d.source(2, t);
  (arity > 2 ? in.c : in.b) = d.source(arity, Type::kF32);
  require_registers(d, arity - 1);
  if (mode > 0) {
    in.mode = static_cast<uint8_t>(operation | mode << 3);
    in.run = bfloat ? directed_mixed<true> : directed_mixed<false>;
  } else if (in.flags & kSat) {
    in.run = bfloat ? mixed<Op, arity, true, true>() : mixed<Op, arity, false, true>();
  } else {
    in.run = bfloat ? mixed<Op, arity, true, false>() : mixed<Op, arity, false, false>();
  }
}

// The rounding may be left out of some, and some saturate.
template <class Op, int arity>
void arithmetic(Decoder& d, Instr& in, Operation operation) {
  const Type t = d.type_if_any();
  if constexpr (arity > 1) {
    const bool newer = d.base() != "mad" && operation != kDiv;
    if (newer && t == Type::kF32x2) return pair_rule<Op, arity>(d, in, operation);
    const Type other =
        newer && operation != kMul && t == Type::kF32 ? d.type_if_any() : Type::kNone;
    if (other == Type::kF16 || other == Type::kBf16) {
      return mixed_rule<Op, arity>(d, in, operation, other);
    }
    if (other != Type::kNone) return;
  }
  if (!is_float(t)) return;
  if (t == Type::kF32 && d.take("ftz")) in.flags |= kFtz;
  const bool saturates = operation <= kMul || operation == kFma;
  if (t == Type::kF32 && saturates && d.take("sat")) in.flags |= kSat;
  const int mode = d.take_one_of({"rn", "rz", "rm", "rp"});
  if (mode < 0 && operation > kMul) return;
  operands(d, in, t, arity);
  if (mode <= 0) {
    in.run =
        t == Type::kF32 ? framed<Op, float, arity>(in.flags) : framed<Op, double, arity>(in.flags);
  } else {
    in.mode = static_cast<uint8_t>(operation | mode << 3);
    in.run = t == Type::kF32 ? directed<float> : directed<double>;
  }
  if (t == Type::kF64) in.kind = Class::kDouble;
}

void add_rule(Decoder& d, Instr& in) { arithmetic<Add, 2>(d, in, kAdd); }
void sub_rule(Decoder& d, Instr& in) { arithmetic<Sub, 2>(d, in, kSub); }
void mul_rule(Decoder& d, Instr& in) { arithmetic<Mul, 2>(d, in, kMul); }
void fma_rule(Decoder& d, Instr& in) { arithmetic<Fma, 3>(d, in, kFma); }

void div_rule(Decoder& d, Instr& in) {
  const int how = d.take_one_of({"approx", "full"});
  if (how < 0) {
    arithmetic<Div, 2>(d, in, kDiv);
    if (in.kind == Class::kCount) in.kind = Class::kSpecial;
    return;
  }
  const Type t = d.type_if_any();
  if (t != Type::kF32) return;
  const bool ftz = d.take("ftz");
  operands(d, in, t, 2);
  in.run = how == 1
               ? (ftz ? approximate_division<true, true> : approximate_division<false, true>)
               : (ftz ? approximate_division<true, false> : approximate_division<false, false>);
}

template <class Op>
Handler approximate_handler(bool ftz) {
  return ftz ? approximation<Op, true> : approximation<Op, false>;
}

void special_rule(Decoder& d, Instr& in) {
  const std::string& base = d.base();
  const bool approx = d.take("approx");
  if (!approx) {
    if (base == "rcp") arithmetic<Rcp, 1>(d, in, kRcp);
    if (base == "sqrt") arithmetic<Sqrt, 1>(d, in, kSqrt);
    return;
  }
  const Type t = d.type_if_any();
  if (!is_float(t)) return;
  const bool ftz = d.take("ftz");
  operands(d, in, t, 1);
  if (t == Type::kF64) {
    if (!ftz) return;
    in.kind = Class::kDouble;
    if (base == "rcp") in.run = approximate_double<false>;
    if (base == "rsqrt") in.run = approximate_double<true>;
    return;
  }
  in.run = base == "ex2"            ? approximate_handler<Ex2>(ftz)
           : base == "rcp"          ? approximate_handler<RcpApprox>(ftz)
           : base == "sqrt"         ? approximate_handler<SqrtApprox>(ftz)
           : base == "rsqrt"        ? approximate_handler<Rsqrt>(ftz)
           : base == "lg2"          ? approximate_handler<Lg2>(ftz)
           : base == "sin"          ? approximate_handler<Sin>(ftz)
           : base == "cos"          ? approximate_handler<Cos>(ftz)
           : base == "tanh" && !ftz ? approximate_handler<Tanh>(false)
                                    : nullptr;
}

void sign_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (!is_float(t)) return;
  const bool ftz = t == Type::kF32 && d.take("ftz"), abs = d.base() == "abs";
  operands(d, in, t, 1);
  if (ftz) {
    in.run = abs ? map1<AbsFtz, float, float> : map1<NegFtz, float, float>;
  } else if (t == Type::kF32) {
    in.run =
        abs ? map1<Abs<uint32_t>, uint32_t, uint32_t> : map1<Neg<uint32_t>, uint32_t, uint32_t>;
  } else {
    in.run =
        abs ? map1<Abs<uint64_t>, uint64_t, uint64_t> : map1<Neg<uint64_t>, uint64_t, uint64_t>;
  }
}

void min_max_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (!is_float(t)) return;
  uint16_t flags = 0;
  if (t == Type::kF32) {
    if (d.take("ftz")) flags |= kFtz;
    if (d.take("NaN")) flags |= kNaN;
    if (d.take("xorsign")) {
      if (!d.take("abs")) d.unknown(".xorsign without .abs");
      flags |= kXorSign;
    }
  }
  const bool max = d.base() == "max";
  if (t == Type::kF32 && !(flags & kXorSign) && d.count() == 4) {
    d.require_target(100);
    const bool nan = flags & kNaN, abs = d.take("abs");
    operands(d, in, t, 3);
    in.run = flags & kFtz ? (max ? min_max_of_three<true, true>(nan, abs)
                                 : min_max_of_three<false, true>(nan, abs))
                          : (max ? min_max_of_three<true, false>(nan, abs)
                                 : min_max_of_three<false, false>(nan, abs));
    return;
  }
  operands(d, in, t, 2);
  in.run = t == Type::kF32 ? (max ? min_max<float, true>(flags) : min_max<float, false>(flags))
                           : (max ? min_max<double, true>(flags) : min_max<double, false>(flags));
  if (t == Type::kF64) in.kind = Class::kDouble;
}

void copysign_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (!is_float(t)) return;
  operands(d, in, t, 2);
  in.run = t == Type::kF32 ? map2<Copysign<float>, float, float>
                           : map2<Copysign<double>, double, double>;
}

void testp_rule(Decoder& d, Instr& in) {
  const int test =
      d.take_one_of({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  const Type t = d.type_if_any();
  if (test < 0 || !is_float(t)) return;
  d.expect(2, 2);
  in.d = d.destination(0, 1);
  in.a = d.source(1, t);
  in.mode = static_cast<uint8_t>(test);
  in.run = t == Type::kF32 ? testp<float> : testp<double>;
}

}  // namespace

std::vector<RuleEntry> float_rules() {
  const Class f = Class::kFloat, s = Class::kSpecial;
  return {
      {"add", add_rule, f},           {"sub", sub_rule, f},
      {"mul", mul_rule, f},           {"fma", fma_rule, f},
      {"mad", fma_rule, f},           {"div", div_rule, s},
      {"rcp", special_rule, s},       {"sqrt", special_rule, s},
      {"rsqrt", special_rule, s},     {"ex2", special_rule, s},
      {"lg2", special_rule, s},       {"sin", special_rule, s},
      {"cos", special_rule, s},       {"tanh", special_rule, s},
      {"abs", sign_rule, f},          {"neg", sign_rule, f},
      {"min", min_max_rule, f},       {"max", min_max_rule, f},
      {"copysign", copysign_rule, f}, {"testp", testp_rule, Class::kCompare},
  };
}

}  // namespace effnet_fast::ptx
