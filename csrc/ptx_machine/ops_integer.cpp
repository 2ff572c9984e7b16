// Integer arithmetic, logic, shifts and bit fields.
#include "decode.h"
#include "lanes.h"

namespace effnet_fast::ptx {
namespace {

// Signed arithmetic is done in unsigned types: it wraps, as the hardware's does.
template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
struct Wide;
template <>
struct Wide<uint16_t> {
  using type = uint32_t;
};
template <>
struct Wide<int16_t> {
  using type = int32_t;
};
template <>
struct Wide<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wide<int32_t> {
  using type = int64_t;
};
template <>
struct Wide<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct Wide<int64_t> {
  using type = __int128;
};
template <class T>
using WideOf = typename Wide<T>::type;

template <class T>
T wrap_add(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
}
template <class T>
T wrap_sub(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
}
// 16-bit unsigned values would be promoted to int, whose product can overflow.
template <class T>
T wrap_mul(T a, T b) {
  using U = std::conditional_t<sizeof(T) == 2, uint32_t, Unsigned<T>>;
  return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
}
template <class T>
T high_mul(T a, T b) {
  return static_cast<T>(static_cast<WideOf<T>>(a) * static_cast<WideOf<T>>(b) >> (8 * sizeof(T)));
}
template <class T>
T saturate(WideOf<T> x) {
  constexpr WideOf<T> low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  return static_cast<T>(x < low ? low : x > high ? high : x);
}

template <class T>
struct Add {
  static T f(T a, T b) { return wrap_add(a, b); }
};
template <class T>
struct Sub {
  static T f(T a, T b) { return wrap_sub(a, b); }
};
template <class T>
struct AddSat {
  static T f(T a, T b) { return saturate<T>(static_cast<WideOf<T>>(a) + b); }
};
template <class T>
struct SubSat {
  static T f(T a, T b) { return saturate<T>(static_cast<WideOf<T>>(a) - b); }
};
template <class T>
struct MulLo {
  static T f(T a, T b) { return wrap_mul(a, b); }
};
template <class T>
struct MulHi {
  static T f(T a, T b) { return high_mul(a, b); }
};
template <class T>
struct MulWide {
  static WideOf<T> f(T a, T b) {
    return wrap_mul(static_cast<WideOf<T>>(a), static_cast<WideOf<T>>(b));
  }
};
template <class T>
struct MadLo {
  static T f(T a, T b, T c) { return wrap_add(wrap_mul(a, b), c); }
};
template <class T>
struct MadHi {
  static T f(T a, T b, T c) { return wrap_add(high_mul(a, b), c); }
};
template <class T>
struct MadHiSat {
  static T f(T a, T b, T c) { return saturate<T>(static_cast<WideOf<T>>(high_mul(a, b)) + c); }
};
template <class T>
struct MadWide {
  static WideOf<T> f(T a, T b, WideOf<T> c) { return wrap_add(MulWide<T>::f(a, b), c); }
};
template <class T>
T low24(T a) {
  return static_cast<T>(static_cast<T>(static_cast<uint32_t>(a) << 8) >> 8);
}
template <class T>
struct Mul24Lo {
  static T f(T a, T b) { return wrap_mul(low24(a), low24(b)); }
};
template <class T>
struct Mul24Hi {
  static T f(T a, T b) { return static_cast<T>(static_cast<WideOf<T>>(low24(a)) * low24(b) >> 16); }
};
template <class T>
struct Mad24Lo {
  static T f(T a, T b, T c) { return wrap_add(Mul24Lo<T>::f(a, b), c); }
};
template <class T>
struct Mad24Hi {
  static T f(T a, T b, T c) { return wrap_add(Mul24Hi<T>::f(a, b), c); }
};
template <class T>
struct Sad {
  static T f(T a, T b, T c) { return wrap_add(c, a < b ? wrap_sub(b, a) : wrap_sub(a, b)); }
};
// Division by zero gives all ones, its remainder the dividend, the most negative number over -1
// itself and 0: unspecified by the ISA, and what GPUs return.
template <class T>
struct Div {
  static T f(T a, T b) {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return wrap_sub(T{0}, a);
    return static_cast<T>(a / b);
  }
};
template <class T>
struct Rem {
  static T f(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return T{0};
    return static_cast<T>(a % b);
  }
};
template <class T>
struct Abs {
  static T f(T a) { return a < 0 ? wrap_sub(T{0}, a) : a; }
};
template <class T>
struct Neg {
  static T f(T a) { return wrap_sub(T{0}, a); }
};
template <class T>
struct Min {
  static T f(T a, T b) { return a < b ? a : b; }
};
template <class T>
struct Max {
  static T f(T a, T b) { return a < b ? b : a; }
};

template <class T>
struct And {
  static T f(T a, T b) { return a & b; }
};
template <class T>
struct Or {
  static T f(T a, T b) { return a | b; }
};
template <class T>
struct Xor {
  static T f(T a, T b) { return a ^ b; }
};
template <class T>
struct Not {
  static T f(T a) { return static_cast<T>(~a); }
};
template <class T>
struct Cnot {
  static T f(T a) { return a == 0; }
};
// Shifts clamp at the width.
template <class T>
struct Shl {
  static T f(T a, uint32_t n) { return n < 8 * sizeof(T) ? static_cast<T>(a << n) : T{0}; }
};
template <class T>
struct Shr {
  static T f(T a, uint32_t n) {
    constexpr uint32_t last = 8 * sizeof(T) - 1;
    if (std::is_signed_v<T>) return static_cast<T>(a >> (n < last ? n : last));
    return n <= last ? static_cast<T>(a >> n) : T{0};
  }
};
struct ShfLeftWrap {
  static uint32_t f(uint32_t a, uint32_t b, uint32_t n) {
    return static_cast<uint32_t>(((uint64_t{b} << 32 | a) << (n & 31)) >> 32);
  }
};
struct ShfLeftClamp {
  static uint32_t f(uint32_t a, uint32_t b, uint32_t n) {
    return static_cast<uint32_t>(((uint64_t{b} << 32 | a) << (n < 32 ? n : 32)) >> 32);
  }
};
struct ShfRightWrap {
  static uint32_t f(uint32_t a, uint32_t b, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{b} << 32 | a) >> (n & 31));
  }
};
struct ShfRightClamp {
  static uint32_t f(uint32_t a, uint32_t b, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{b} << 32 | a) >> (n < 32 ? n : 32));
  }
};

struct Popc {
  static uint32_t f(uint64_t a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }
};
template <class T>
struct Clz {
  static uint32_t f(T a) {
    if (a == 0) return 8 * sizeof(T);
    return static_cast<uint32_t>(sizeof(T) == 8 ? __builtin_clzll(a)
                                                : __builtin_clz(static_cast<uint32_t>(a)));
  }
};
// Position of the highest bit that differs from the sign; all ones when there is none.
template <class T, bool shift_amount>
struct Bfind {
  static uint32_t f(T a) {
    using U = Unsigned<T>;
    const U bits =
        std::is_signed_v<T> && a < 0 ? static_cast<U>(~static_cast<U>(a)) : static_cast<U>(a);
    if (bits == 0) return ~0u;
    const uint32_t at = 8 * sizeof(T) - 1 - Clz<U>::f(bits);
    return shift_amount ? 8 * sizeof(T) - 1 - at : at;
  }
};
template <class T>
struct Brev {
  static T f(T a) {
    T result = 0;
    for (unsigned i = 0; i < 8 * sizeof(T); ++i) result |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return result;
  }
};
template <class T>
struct Bfe {
  static T f(T a, uint32_t position, uint32_t length) {
    constexpr uint32_t msb = 8 * sizeof(T) - 1;
    const uint32_t p = position & 0xFF, n = length & 0xFF;
    using U = Unsigned<T>;
    const U bits = static_cast<U>(a);
    bool sign = false;
    if (std::is_signed_v<T> && n != 0) sign = bits >> (p + n - 1 < msb ? p + n - 1 : msb) & 1;
    U result = 0;
    for (uint32_t i = 0; i <= msb; ++i) {
      const bool bit = i < n && p + i <= msb ? bits >> (p + i) & 1 : sign;
      result |= static_cast<U>(bit) << i;
    }
    return static_cast<T>(result);
  }
};
template <class T>
T insert_bits(T a, T b, uint32_t position, uint32_t length) {
  const uint32_t p = position & 0xFF, n = length & 0xFF;
  T result = b;
  for (uint32_t i = 0; i < n && p + i < 8 * sizeof(T); ++i) {
    const T bit = T{1} << (p + i);
    result = (result & ~bit) | ((a >> i & 1) << (p + i));
  }
  return result;
}
template <class T>
void bfi(Warp& w, const Instr& in, uint32_t exec) {
  const T *a = w.row<T>(in.a), *b = w.row<T>(in.b);
  const uint32_t *p = w.row<uint32_t>(in.c), *n = w.row<uint32_t>(in.e);
  T result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = insert_bits(a[l], b[l], p[l], n[l]);
  w.write(in.d, result, exec);
  w.define(in.d, exec,
           w.is_defined(in.a) & w.is_defined(in.b) & w.is_defined(in.c) & w.is_defined(in.e));
}
template <bool wrap>
struct Bmsk {
  static uint32_t f(uint32_t position, uint32_t length) {
    const uint32_t p = wrap ? position & 31 : position, n = wrap ? length & 31 : length;
    if (p >= 32 || n == 0) return 0;
    const uint32_t ones = n >= 32 ? ~0u : (1u << n) - 1;
    return ones << p;
  }
};
template <class T, bool wrap>
struct Szext {
  static T f(T a, uint32_t length) {
    const uint32_t n = wrap ? length & 31 : length;
    if (n == 0) return 0;
    if (n >= 32) return a;
    const uint32_t kept = static_cast<uint32_t>(a) << (32 - n);
    return static_cast<T>(static_cast<T>(kept) >> (32 - n));
  }
};

void lop3(Warp& w, const Instr& in, uint32_t exec) {
  const uint32_t *a = w.row<uint32_t>(in.a), *b = w.row<uint32_t>(in.b), *c = w.row<uint32_t>(in.c);
  uint32_t result[kLanes] = {};
  for (int term = 0; term < 8; ++term) {
    if (!(in.mode >> term & 1)) continue;
    const uint32_t na = term & 4 ? 0 : ~0u, nb = term & 2 ? 0 : ~0u, nc = term & 1 ? 0 : ~0u;
    for (int l = 0; l < kLanes; ++l) result[l] |= (a[l] ^ na) & (b[l] ^ nb) & (c[l] ^ nc);
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b) & w.is_defined(in.c));
}

uint32_t byte_of(uint64_t bytes, uint32_t selector) {
  const auto byte = static_cast<uint32_t>(bytes >> (8 * (selector & 7)) & 0xFF);
  return selector & 8 ? (byte & 0x80 ? 0xFF : 0) : byte;
}
// in.mode: 0 the default, else 1 + f4e, b4e, rc8, ecl, ecr, rc16.
void prmt(Warp& w, const Instr& in, uint32_t exec) {
  const uint32_t *a = w.row<uint32_t>(in.a), *b = w.row<uint32_t>(in.b), *c = w.row<uint32_t>(in.c);
  uint32_t result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const uint64_t bytes = uint64_t{b[l]} << 32 | a[l];
    const uint32_t s = c[l] & 3;
    uint32_t chosen[4];
    for (uint32_t i = 0; i < 4; ++i) {
      switch (in.mode) {
        case 1:
          chosen[i] = (s + i) & 7;
          break;
        case 2:
          chosen[i] = (s - i) & 7;
          break;
        case 3:
          chosen[i] = s;
          break;
        case 4:
          chosen[i] = i > s ? i : s;
          break;
        case 5:
          chosen[i] = i < s ? i : s;
          break;
        case 6:
          chosen[i] = (s & 1) * 2 + (i & 1);
          break;
        default:
          chosen[i] = c[l] >> (4 * i) & 15;
      }
    }
    result[l] = 0;
    for (uint32_t i = 0; i < 4; ++i) result[l] |= byte_of(bytes, chosen[i]) << (8 * i);
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b) & w.is_defined(in.c));
}

// Dot products of 4 bytes, or of 2 halves and 2 bytes.
template <class A, class B>
struct Dp4a {
  static uint32_t f(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 4; ++i) {
      c += static_cast<uint32_t>(static_cast<A>(a >> (8 * i)) * static_cast<B>(b >> (8 * i)));
    }
    return c;
  }
};
template <class A, class B, bool high>
struct Dp2a {
  static uint32_t f(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 2; ++i) {
      c += static_cast<uint32_t>(static_cast<A>(a >> (16 * i)) *
                                 static_cast<B>(b >> (8 * i + (high ? 16 : 0))));
    }
    return c;
  }
};

// ---- with carry ---------------------------------------------------------------------------------

enum Carry : uint8_t { kCarryIn = 1, kCarryOut = 2, kSubtract = 4, kMadLo = 8, kMadHi = 16 };

// add, sub and mad with .cc or c: the condition code is one bit a lane.
template <class T>
void with_carry(Warp& w, const Instr& in, uint32_t exec) {
  using U = Unsigned<T>;
  const T *a = w.row<T>(in.a), *b = w.row<T>(in.b);
  const U* c = in.mode & (kMadLo | kMadHi) ? w.row<U>(in.c) : nullptr;
  U result[kLanes];
  uint32_t carry = 0;
  for (int l = 0; l < kLanes; ++l) {
    const uint32_t carry_in = in.mode & kCarryIn ? w.carry >> l & 1 : 0;
    unsigned __int128 sum;
    if (c) {
      const U product =
          static_cast<U>(in.mode & kMadLo ? wrap_mul(a[l], b[l]) : high_mul(a[l], b[l]));
      sum = static_cast<unsigned __int128>(product) + c[l] + carry_in;
    } else if (in.mode & kSubtract) {
      sum = static_cast<unsigned __int128>(static_cast<U>(a[l])) - static_cast<U>(b[l]) - carry_in;
    } else {
      sum = static_cast<unsigned __int128>(static_cast<U>(a[l])) + static_cast<U>(b[l]) + carry_in;
    }
    result[l] = static_cast<U>(sum);
    carry |= static_cast<uint32_t>(sum >> (8 * sizeof(T)) & 1) << l;
  }
  w.write(in.d, result, exec);
  uint32_t sources = w.is_defined(in.a) & w.is_defined(in.b);
  if (c) sources &= w.is_defined(in.c);
  w.define(in.d, exec, sources);
  if (in.mode & kCarryOut) w.carry = (w.carry & ~exec) | (carry & exec);
}

// ---- predicates ---------------------------------------------------------------------------------

enum PredicateOp : uint8_t { kPredAnd, kPredOr, kPredXor, kPredNot };
void predicate_logic(Warp& w, const Instr& in, uint32_t exec) {
  const uint32_t a = w.predicate(in.a);
  const bool one = in.mode == kPredNot;
  const uint32_t b = one ? 0 : w.predicate(in.b);
  const uint32_t result = in.mode == kPredAnd   ? a & b
                          : in.mode == kPredOr  ? a | b
                          : in.mode == kPredXor ? a ^ b
                                                : ~a;
  w.write_predicate(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & (one ? kAllLanes : w.is_defined(in.b)));
}

// ---- rules --------------------------------------------------------------------------------------

bool is_integer(Type t) { return t >= Type::kU16 && t <= Type::kS64 && bits_of(t) != 8; }
bool is_bits(Type t) { return t == Type::kB16 || t == Type::kB32 || t == Type::kB64; }

// The handler for a type, of a template over it.
#define PICK(type, handler)                   \
  ((type) == Type::kU16   ? handler(uint16_t) \
   : (type) == Type::kS16 ? handler(int16_t)  \
   : (type) == Type::kU32 ? handler(uint32_t) \
   : (type) == Type::kS32 ? handler(int32_t)  \
   : (type) == Type::kU64 ? handler(uint64_t) \
   : (type) == Type::kS64 ? handler(int64_t)  \
                          : static_cast<Handler>(nullptr))
#define PICK_NARROW(type, handler)            \
  ((type) == Type::kU16   ? handler(uint16_t) \
   : (type) == Type::kS16 ? handler(int16_t)  \
   : (type) == Type::kU32 ? handler(uint32_t) \
   : (type) == Type::kS32 ? handler(int32_t)  \
                          : static_cast<Handler>(nullptr))
#define PICK_WIDE(type, handler)              \
  ((type) == Type::kU32   ? handler(uint32_t) \
   : (type) == Type::kS32 ? handler(int32_t)  \
   : (type) == Type::kU64 ? handler(uint64_t) \
   : (type) == Type::kS64 ? handler(int64_t)  \
                          : static_cast<Handler>(nullptr))
#define PICK_32(type, handler)                \
  ((type) == Type::kU32   ? handler(uint32_t) \
   : (type) == Type::kS32 ? handler(int32_t)  \
                          : static_cast<Handler>(nullptr))
#define PICK_BITS(type, handler)             \
  (bits_of(type) == 16   ? handler(uint16_t) \
   : bits_of(type) == 32 ? handler(uint32_t) \
   : bits_of(type) == 64 ? handler(uint64_t) \
                         : static_cast<Handler>(nullptr))

void binary(Decoder& d, Instr& in, Type t) {
  d.expect(3, 3);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
}
void unary(Decoder& d, Instr& in, Type t) {
  d.expect(2, 2);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
}

void carry_rule(Decoder& d, Instr& in, Type t, uint8_t mode) {
  binary(d, in, t);
  in.mode = mode;
#define H(T) with_carry<T>
  in.run = PICK_WIDE(t, H);
#undef H
}

// Two 16-bit integers in a register.
template <class F, class T>
struct Paired {
  static uint32_t f(uint32_t a, uint32_t b) {
    const auto low = F::f(static_cast<T>(a), static_cast<T>(b));
    const auto high = F::f(static_cast<T>(a >> 16), static_cast<T>(b >> 16));
    return static_cast<uint16_t>(low) | uint32_t{static_cast<uint16_t>(high)} << 16;
  }
};
template <class F>
struct Relu {
  template <class T>
  static T f(T a, T b) {
    const T x = F::f(a, b);
    return x < 0 ? T{0} : x;
  }
};

bool is_pair(Type t) { return t == Type::kU16x2 || t == Type::kS16x2; }

// Since sm_90, as is .relu.
void pair_rule(Decoder& d, Instr& in, Type t) {
  d.require_target(90);
  const std::string& base = d.base();
  const bool is_signed = t == Type::kS16x2, relu = is_signed && base != "add" && d.take("relu");
  binary(d, in, t);
  if (d.operand(1).kind != Operand::kRegister || d.operand(2).kind != Operand::kRegister) {
    d.unknown("an operand is no register");
  }
#define PAIR(F)                                                      \
  (is_signed ? map2<Paired<F<int16_t>, int16_t>, uint32_t, uint32_t> \
             : map2<Paired<F<uint16_t>, uint16_t>, uint32_t, uint32_t>)
#define RELU(F) map2<Paired<Relu<F<int16_t>>, int16_t>, uint32_t, uint32_t>
  in.run = base == "add"   ? PAIR(Add)
           : base == "min" ? (relu ? RELU(Min) : PAIR(Min))
           : base == "max" ? (relu ? RELU(Max) : PAIR(Max))
                           : nullptr;
#undef PAIR
#undef RELU
}

void add_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (is_pair(t)) return pair_rule(d, in, t);
  if (!is_integer(t)) return;
  const bool subtract = d.base() == "sub" || d.base() == "subc";
  const bool carry_in = d.base() == "addc" || d.base() == "subc";
  const bool carry_out = d.take("cc");
  if (carry_in || carry_out) {
    carry_rule(d, in, t,
               static_cast<uint8_t>((carry_in ? kCarryIn : 0) | (carry_out ? kCarryOut : 0) |
                                    (subtract ? kSubtract : 0)));
    return;
  }
  binary(d, in, t);
  if (d.take("sat")) {
    if (t != Type::kS32) d.unknown(".sat is of .s32 only");
    in.run = subtract ? map2<SubSat<int32_t>, int32_t, int32_t>
                      : map2<AddSat<int32_t>, int32_t, int32_t>;
    return;
  }
#define ADD(T) map2<Add<T>, T, T>
#define SUB(T) map2<Sub<T>, T, T>
  in.run = subtract ? PICK(t, SUB) : PICK(t, ADD);
}

void mul_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (!is_integer(t)) return;
  const int part = d.take_one_of({"lo", "hi", "wide"});
  if (part < 0) d.unknown("it needs .lo, .hi or .wide");
  d.expect(3, 3);
  const unsigned bits = bits_of(t) * (part == 2 ? 2 : 1);
  in.d = d.destination(0, bits);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
#define LO(T) map2<MulLo<T>, T, T>
#define HI(T) map2<MulHi<T>, T, T>
#define WIDE(T) map2<MulWide<T>, WideOf<T>, T>
  in.run = part == 0 ? PICK(t, LO) : part == 1 ? PICK(t, HI) : PICK_NARROW(t, WIDE);
#undef LO
#undef HI
#undef WIDE
}

void mad_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (!is_integer(t)) return;
  const bool carry_in = d.base() == "madc", carry_out = d.take("cc");
  const int part = d.take_one_of({"lo", "hi", "wide"});
  if (part < 0) d.unknown("it needs .lo, .hi or .wide");
  d.expect(4, 4);
  const unsigned bits = bits_of(t) * (part == 2 ? 2 : 1);
  in.d = d.destination(0, bits);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  in.c = d.source(3, bits);
  if (carry_in || carry_out) {
    if (part == 2) d.unknown("no carry with .wide");
    in.mode = static_cast<uint8_t>((carry_in ? kCarryIn : 0) | (carry_out ? kCarryOut : 0) |
                                   (part == 0 ? kMadLo : kMadHi));
#define H(T) with_carry<T>
    in.run = PICK_WIDE(t, H);
#undef H
    return;
  }
  if (d.take("sat")) {
    if (t != Type::kS32 || part != 1) d.unknown(".sat is of .hi.s32 only");
    in.run = map3<MadHiSat<int32_t>, int32_t, int32_t>;
    return;
  }
#define LO(T) map3<MadLo<T>, T, T>
#define HI(T) map3<MadHi<T>, T, T>
#define WIDE(T) map3<MadWide<T>, WideOf<T>, T, T, WideOf<T>>
  in.run = part == 0 ? PICK(t, LO) : part == 1 ? PICK(t, HI) : PICK_NARROW(t, WIDE);
#undef LO
#undef HI
#undef WIDE
}

void mul24_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  const int part = d.take_one_of({"lo", "hi"});
  const bool mad = d.base() == "mad24";
  d.expect(mad ? 4 : 3, mad ? 4 : 3);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  if (mad) in.c = d.source(3, t);
#define LO(T) map2<Mul24Lo<T>, T, T>
#define HI(T) map2<Mul24Hi<T>, T, T>
#define MLO(T) map3<Mad24Lo<T>, T, T>
#define MHI(T) map3<Mad24Hi<T>, T, T>
  if (part == 0) in.run = mad ? PICK_32(t, MLO) : PICK_32(t, LO);
  if (part == 1) in.run = mad ? PICK_32(t, MHI) : PICK_32(t, HI);
#undef LO
#undef HI
}

void sad_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  d.expect(4, 4);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  in.c = d.source(3, t);
#define H(T) map3<Sad<T>, T, T>
  in.run = PICK(t, H);
#undef H
}

void binary_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (is_pair(t)) return pair_rule(d, in, t);
  if (!is_integer(t)) return;
  binary(d, in, t);
  if (t == Type::kS32 && (d.base() == "min" || d.base() == "max") && d.take("relu")) {
    d.require_target(90);
    in.run = d.base() == "min" ? map2<Relu<Min<int32_t>>, int32_t, int32_t>
                               : map2<Relu<Max<int32_t>>, int32_t, int32_t>;
    return;
  }
#define DIV(T) map2<Div<T>, T, T>
#define REM(T) map2<Rem<T>, T, T>
#define MIN(T) map2<Min<T>, T, T>
#define MAX(T) map2<Max<T>, T, T>
  const std::string& base = d.base();
  in.run = base == "div"   ? PICK(t, DIV)
           : base == "rem" ? PICK(t, REM)
           : base == "min" ? PICK(t, MIN)
                           : PICK(t, MAX);
}

void unary_rule(Decoder& d, Instr& in) {
  const Type t = d.type_if_any();
  if (t != Type::kS16 && t != Type::kS32 && t != Type::kS64) return;
  unary(d, in, t);
#define ABS(T) map1<Abs<T>, T, T>
#define NEG(T) map1<Neg<T>, T, T>
  in.run = d.base() == "abs" ? PICK(t, ABS) : PICK(t, NEG);
}

void logic_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  const std::string& base = d.base();
  const bool one = base == "not" || base == "cnot";
  if (t == Type::kPred && base != "cnot") {
    d.expect(one ? 2 : 3, one ? 2 : 3);
    in.d = d.destination(0, 1);
    in.a = d.source(1, 1);
    if (!one) in.b = d.source(2, 1);
    in.mode = base == "and"   ? kPredAnd
              : base == "or"  ? kPredOr
              : base == "xor" ? kPredXor
                              : kPredNot;
    in.run = predicate_logic;
    return;
  }
  if (!is_bits(t)) return;
  if (one) {
    unary(d, in, t);
#define NOT(T) map1<Not<T>, T, T>
#define CNOT(T) map1<Cnot<T>, T, T>
    in.run = base == "not" ? PICK_BITS(t, NOT) : PICK_BITS(t, CNOT);
    return;
  }
  binary(d, in, t);
#define AND(T) map2<And<T>, T, T>
#define OR(T) map2<Or<T>, T, T>
#define XOR(T) map2<Xor<T>, T, T>
  in.run = base == "and" ? PICK_BITS(t, AND) : base == "or" ? PICK_BITS(t, OR) : PICK_BITS(t, XOR);
}

void shift_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  d.expect(3, 3);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  in.b = d.source(2, 32);
#define SHL(T) map2<Shl<T>, T, T, uint32_t>
#define SHR(T) map2<Shr<T>, T, T, uint32_t>
  if (d.base() == "shl") {
    in.run = is_bits(t) ? PICK_BITS(t, SHL) : nullptr;
  } else {
    in.run = is_integer(t) ? PICK(t, SHR) : is_bits(t) ? PICK_BITS(t, SHR) : nullptr;
  }
}

void shf_rule(Decoder& d, Instr& in) {
  const int side = d.take_one_of({"l", "r"});
  const int how = d.take_one_of({"clamp", "wrap"});
  if (d.type() != Type::kB32 || side < 0 || how < 0) return;
  d.expect(4, 4);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  in.c = d.source(3, 32);
  const Handler handlers[2][2] = {
      {map3<ShfLeftClamp, uint32_t, uint32_t>, map3<ShfLeftWrap, uint32_t, uint32_t>},
      {map3<ShfRightClamp, uint32_t, uint32_t>, map3<ShfRightWrap, uint32_t, uint32_t>}};
  in.run = handlers[side][how];
}

void count_rule(Decoder& d, Instr& in) {
  const std::string& base = d.base();
  const bool shift_amount = d.take("shiftamt");
  const Type t = d.type();
  const unsigned bits = bits_of(t);
  if (bits != 32 && bits != 64) return;
  d.expect(2, 2);
  in.d = d.destination(0, base == "brev" ? bits : 32);
  in.a = d.source(1, t);
  if (shift_amount && base != "bfind") return;
  const bool wide = bits == 64;
  if (base == "popc" && is_bits(t)) {
    in.run = wide ? map1<Popc, uint32_t, uint64_t> : map1<Popc, uint32_t, uint32_t>;
  } else if (base == "clz" && is_bits(t)) {
    in.run =
        wide ? map1<Clz<uint64_t>, uint32_t, uint64_t> : map1<Clz<uint32_t>, uint32_t, uint32_t>;
  } else if (base == "brev" && is_bits(t)) {
    in.run =
        wide ? map1<Brev<uint64_t>, uint64_t, uint64_t> : map1<Brev<uint32_t>, uint32_t, uint32_t>;
  } else if (base == "bfind" && is_integer(t)) {
#define FIND(T) map1<Bfind<T, false>, uint32_t, T>
#define AMOUNT(T) map1<Bfind<T, true>, uint32_t, T>
    in.run = shift_amount ? PICK_WIDE(t, AMOUNT) : PICK_WIDE(t, FIND);
  }
}

void field_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  if (d.base() == "bfe") {
    d.expect(4, 4);
    in.d = d.destination(0, t);
    in.a = d.source(1, t);
    in.b = d.source(2, 32);
    in.c = d.source(3, 32);
#define BFE(T) map3<Bfe<T>, T, T, uint32_t, uint32_t>
    in.run = PICK_WIDE(t, BFE);
    return;
  }
  d.expect(5, 5);
  in.d = d.destination(0, t);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  in.c = d.source(3, 32);
  in.e = d.source(4, 32);
  if (t == Type::kB32) in.run = bfi<uint32_t>;
  if (t == Type::kB64) in.run = bfi<uint64_t>;
}

void mask_rule(Decoder& d, Instr& in) {
  const bool szext = d.base() == "szext";
  const int how = d.take_one_of({"clamp", "wrap"});
  const Type t = d.type();
  if (how < 0) return;
  d.expect(3, 3);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  if (!szext && t == Type::kB32) {
    in.run = how ? map2<Bmsk<true>, uint32_t, uint32_t> : map2<Bmsk<false>, uint32_t, uint32_t>;
  } else if (szext && t == Type::kU32) {
    in.run = how ? map2<Szext<uint32_t, true>, uint32_t, uint32_t>
                 : map2<Szext<uint32_t, false>, uint32_t, uint32_t>;
  } else if (szext && t == Type::kS32) {
    in.run = how ? map2<Szext<int32_t, true>, int32_t, int32_t, uint32_t>
                 : map2<Szext<int32_t, false>, int32_t, int32_t, uint32_t>;
  }
}

void lop3_rule(Decoder& d, Instr& in) {
  if (d.type() != Type::kB32) return;
  d.expect(5, 5);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  in.c = d.source(3, 32);
  in.mode = static_cast<uint8_t>(d.immediate(4, 255));
  in.run = lop3;
}

void prmt_rule(Decoder& d, Instr& in) {
  const int mode = d.take_one_of({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  if (d.type() != Type::kB32) return;
  d.expect(4, 4);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  in.c = d.source(3, 32);
  in.mode = static_cast<uint8_t>(mode + 1);
  in.run = prmt;
}

void dot_rule(Decoder& d, Instr& in) {
  const bool two = d.base() == "dp2a", high = d.take("hi");
  if (two && !high && !d.take("lo")) return;
  const Type ta = d.type(), tb = d.type();
  d.expect(4, 4);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  in.c = d.source(3, 32);
  const auto is_32 = [](Type t) { return t == Type::kU32 || t == Type::kS32; };
  if (!is_32(ta) || !is_32(tb)) return;
  const bool sa = ta == Type::kS32, sb = tb == Type::kS32;
#define DP4(A, B) map3<Dp4a<A, B>, uint32_t, uint32_t>
#define DP2(A, B) \
  (high ? map3<Dp2a<A, B, true>, uint32_t, uint32_t> : map3<Dp2a<A, B, false>, uint32_t, uint32_t>)
  if (two) {
    in.run = sa ? (sb ? DP2(int16_t, int8_t) : DP2(int16_t, uint8_t))
                : (sb ? DP2(uint16_t, int8_t) : DP2(uint16_t, uint8_t));
  } else {
    in.run = sa ? (sb ? DP4(int8_t, int8_t) : DP4(int8_t, uint8_t))
                : (sb ? DP4(uint8_t, int8_t) : DP4(uint8_t, uint8_t));
  }
}

}  // namespace

std::vector<RuleEntry> integer_rules() {
  const Class i = Class::kInteger, l = Class::kLogic;
  return {
      {"add", add_rule, i},    {"addc", add_rule, i},    {"sub", add_rule, i},
      {"subc", add_rule, i},   {"mul", mul_rule, i},     {"mad", mad_rule, i},
      {"madc", mad_rule, i},   {"mul24", mul24_rule, i}, {"mad24", mul24_rule, i},
      {"sad", sad_rule, i},    {"div", binary_rule, i},  {"rem", binary_rule, i},
      {"min", binary_rule, i}, {"max", binary_rule, i},  {"abs", unary_rule, i},
      {"neg", unary_rule, i},  {"dp4a", dot_rule, i},    {"dp2a", dot_rule, i},
      {"and", logic_rule, l},  {"or", logic_rule, l},    {"xor", logic_rule, l},
      {"not", logic_rule, l},  {"cnot", logic_rule, l},  {"shl", shift_rule, l},
      {"shr", shift_rule, l},  {"shf", shf_rule, l},     {"popc", count_rule, l},
      {"clz", count_rule, l},  {"bfind", count_rule, l}, {"brev", count_rule, l},
      {"bfe", field_rule, l},  {"bfi", field_rule, l},   {"bmsk", mask_rule, l},
      {"szext", mask_rule, l}, {"lop3", lop3_rule, l},   {"prmt", prmt_rule, l},
  };
}

}  // namespace effnet_fast::ptx
