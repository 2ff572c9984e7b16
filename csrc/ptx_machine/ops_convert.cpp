// Moves, conversions, comparisons and selections.
#include <cfenv>

#include "decode.h"
#include "floats.h"
#include "launch_state.h"

namespace effnet_fast::ptx {
namespace {

bool is_signed(Type t) {
  return t == Type::kS8 || t == Type::kS16 || t == Type::kS32 || t == Type::kS64;
}
bool is_integer(Type t) { return t >= Type::kU8 && t <= Type::kS64; }
bool is_float(Type t) {
  return t == Type::kF16 || t == Type::kBf16 || t == Type::kF32 || t == Type::kF64;
}
// What mov, selp and slct know: not 8 or 128 bits, none of the half types.
bool is_plain(Type t) {
  const bool known = t <= Type::kS64 || t == Type::kF32 || t == Type::kF64;
  return known && bits_of(t) >= 16 && bits_of(t) <= 64;
}

template <class T>
struct Same {
  static T f(T a) { return a; }
};

// ---- values of any type -------------------------------------------------------------------------

// Registers may be wider than the type: `bits` is the register's.
void load_integers(const Warp& w, Ref r, unsigned bits, Type t, int64_t* x) {
  if (bits == 16) {
    const auto* row = w.row<uint16_t>(r);
    for (int l = 0; l < kLanes; ++l) x[l] = row[l];
  } else if (bits == 32) {
    const auto* row = w.row<uint32_t>(r);
    for (int l = 0; l < kLanes; ++l) x[l] = row[l];
  } else {
    std::memcpy(x, w.row<int64_t>(r), kLanes * sizeof(int64_t));
  }
  const unsigned drop = 64 - bits_of(t);
  if (is_signed(t)) {
    for (int l = 0; l < kLanes; ++l) {
      x[l] = static_cast<int64_t>(static_cast<uint64_t>(x[l]) << drop) >> drop;
    }
  } else {
    for (int l = 0; l < kLanes; ++l) {
      x[l] = static_cast<int64_t>(static_cast<uint64_t>(x[l]) << drop >> drop);
    }
  }
}

void store_integers(Warp& w, Ref r, unsigned bits, Type t, int64_t* x, uint32_t exec) {
  const unsigned drop = 64 - bits_of(t);
  for (int l = 0; l < kLanes; ++l) {
    const uint64_t high = static_cast<uint64_t>(x[l]) << drop;
    x[l] = is_signed(t) ? static_cast<int64_t>(high) >> drop : static_cast<int64_t>(high >> drop);
  }
  if (bits == 16) {
    uint16_t y[kLanes];
    for (int l = 0; l < kLanes; ++l) y[l] = static_cast<uint16_t>(x[l]);
    w.write(r, y, exec);
  } else if (bits == 32) {
    uint32_t y[kLanes];
    for (int l = 0; l < kLanes; ++l) y[l] = static_cast<uint32_t>(x[l]);
    w.write(r, y, exec);
  } else {
    w.write(r, x, exec);
  }
}

void load_floats(const Warp& w, Ref r, Type t, double* x) {
  switch (t) {
    case Type::kF16: {
      const auto* row = w.row<uint16_t>(r);
      for (int l = 0; l < kLanes; ++l) x[l] = half_to_float(row[l]);
      break;
    }
    case Type::kBf16: {
      const auto* row = w.row<uint16_t>(r);
      for (int l = 0; l < kLanes; ++l) x[l] = bfloat_to_float(row[l]);
      break;
    }
    case Type::kF32: {
      const auto* row = w.row<float>(r);
      for (int l = 0; l < kLanes; ++l) x[l] = row[l];
      break;
    }
    default:
      std::memcpy(x, w.row<double>(r), kLanes * sizeof(double));
  }
}

// ---- rounding -----------------------------------------------------------------------------------

// In PTX's order of names: rn, rz, rm, rp, rna.
enum class Round : uint8_t { kNearest, kZero, kDown, kUp, kNearestAway };

// `x` to a format of `kMantissa` stored bits, smallest exponent `kLowest` (of normals) and largest
// finite value `kLargest`. Returns the rounded value; overflow goes to infinity, or to kLargest
// where the direction says so.
template <int kMantissa, int kLowest>
double round_to(double x, Round how, double largest) {
  if (x == 0.0 || x != x || std::isinf(x)) return x;
  int exponent;
  std::frexp(x, &exponent);  // |x| in [2^(exponent-1), 2^exponent)
  const int step = std::max(exponent - 1, kLowest) - kMantissa;
  const double scaled = std::ldexp(x, -step);
  double rounded;
  switch (how) {
    case Round::kZero:
      rounded = std::trunc(scaled);
      break;
    case Round::kDown:
      rounded = std::floor(scaled);
      break;
    case Round::kUp:
      rounded = std::ceil(scaled);
      break;
    case Round::kNearestAway:
      rounded = std::round(scaled);
      break;
    default:
      rounded = std::nearbyint(scaled);
      break;
  }
  const double result = std::copysign(std::ldexp(rounded, step), x);
  if (std::fabs(result) <= largest) return result;
  const bool inward =
      how == Round::kZero || (how == Round::kDown && x > 0) || (how == Round::kUp && x < 0);
  return std::copysign(inward ? largest : std::numeric_limits<double>::infinity(), x);
}

// The bits of `x` in a format, rounded once.
uint64_t float_bits(double x, Type t, Round how) {
  constexpr double kLargestFloat = std::numeric_limits<float>::max();
  switch (t) {
    case Type::kF16:
      return how == Round::kNearest
                 ? double_to_half(x)
                 : float_to_half(static_cast<float>(round_to<10, -14>(x, how, 65504.0)));
    case Type::kBf16:
      return how == Round::kNearest
                 ? double_to_bfloat(x)
                 : float_to_bfloat(static_cast<float>(round_to<7, -126>(x, how, 0x1.FEp127)));
    case Type::kF32:
      return bit_cast<uint32_t>(canonical(static_cast<float>(
          how == Round::kNearest ? x : round_to<23, -126>(x, how, kLargestFloat))));
    case Type::kTf32:
      return bit_cast<uint32_t>(
          canonical(static_cast<float>(round_to<10, -126>(x, how, 0x1.FFCp127))));
    default:
      return bit_cast<uint64_t>(canonical(x));
  }
}

void store_float_bits(Warp& w, Ref r, Type t, const uint64_t* bits, uint32_t exec) {
  const unsigned width = bits_of(t);
  if (width == 16) {
    uint16_t y[kLanes];
    for (int l = 0; l < kLanes; ++l) y[l] = static_cast<uint16_t>(bits[l]);
    w.write(r, y, exec);
  } else if (width == 32) {
    uint32_t y[kLanes];
    for (int l = 0; l < kLanes; ++l) y[l] = static_cast<uint32_t>(bits[l]);
    w.write(r, y, exec);
  } else {
    w.write(r, bits, exec);
  }
}

// ---- cvt ----------------------------------------------------------------------------------------

enum Flags : uint16_t { kFtz = 2, kSat = 4, kRelu = 8 };

// in.count: source type, in.size: destination type, in.mode: rounding or register bits (below).
struct Registers {  // in.target
  static uint32_t pack(unsigned source, unsigned destination) { return source << 8 | destination; }
  static unsigned source(const Instr& in) { return in.target >> 8; }
  static unsigned destination(const Instr& in) { return in.target & 255; }
};

void integer_to_integer(Warp& w, const Instr& in, uint32_t exec) {
  const auto from = static_cast<Type>(in.count), to = static_cast<Type>(in.size);
  int64_t x[kLanes];
  load_integers(w, in.a, Registers::source(in), from, x);
  if (in.flags & kSat) {
    const unsigned bits = bits_of(to);
    const __int128 one = 1;
    const __int128 low = is_signed(to) ? -(one << (bits - 1)) : 0;
    const __int128 high = is_signed(to) ? (one << (bits - 1)) - 1 : (one << bits) - 1;
    for (int l = 0; l < kLanes; ++l) {
      __int128 v = x[l];
      if (from == Type::kU64) v = static_cast<uint64_t>(x[l]);
      x[l] = static_cast<int64_t>(v < low ? low : v > high ? high : v);
    }
  }
  store_integers(w, in.d, Registers::destination(in), to, x, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

double to_integer(double x, Round how) {
  switch (how) {
    case Round::kZero:
      return std::trunc(x);
    case Round::kDown:
      return std::floor(x);
    case Round::kUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

void float_to_integer(Warp& w, const Instr& in, uint32_t exec) {
  const auto from = static_cast<Type>(in.count), to = static_cast<Type>(in.size);
  double x[kLanes];
  load_floats(w, in.a, from, x);
  const unsigned bits = bits_of(to);
  const double low = is_signed(to) ? -std::ldexp(1.0, static_cast<int>(bits) - 1) : 0.0;
  const double beyond = std::ldexp(1.0, static_cast<int>(bits) - (is_signed(to) ? 1 : 0));
  const uint64_t most =
      is_signed(to) ? (uint64_t{1} << (bits - 1)) - 1 : ~uint64_t{0} >> (64 - bits);
  // NaN: 0, or for 64-bit types the highest bit
  const uint64_t nan = from != Type::kF64 && bits != 64 ? 0 : uint64_t{1} << (bits - 1);
  int64_t y[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    double v = x[l];
    if (in.flags & kFtz && std::fabs(v) < std::numeric_limits<float>::min()) v = 0.0;
    v = to_integer(v, static_cast<Round>(in.mode));
    if (v != v) {
      y[l] = static_cast<int64_t>(nan);
    } else if (v >= beyond) {
      y[l] = static_cast<int64_t>(most);
    } else if (v <= low) {
      y[l] = is_signed(to) ? static_cast<int64_t>(~uint64_t{0} << (bits - 1)) : 0;
    } else {
      y[l] = v < 0 ? static_cast<int64_t>(v) : static_cast<int64_t>(static_cast<uint64_t>(v));
    }
  }
  store_integers(w, in.d, Registers::destination(in), to, y, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

// A 64-bit integer may have more digits than a double: round it to odd, 11 bits short.
double integer_to_double(int64_t x, bool is_unsigned) {
  const bool negative = !is_unsigned && x < 0;
  uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(x) : static_cast<uint64_t>(x);
  if (magnitude >> 53) {
    magnitude = (magnitude & ~uint64_t{0x7FF}) | (magnitude & 0x7FF ? 0x800 : 0);
  }
  const double y = static_cast<double>(magnitude);
  return negative ? -y : y;
}

void integer_to_float(Warp& w, const Instr& in, uint32_t exec) {
  const auto from = static_cast<Type>(in.count), to = static_cast<Type>(in.size);
  const auto how = static_cast<Round>(in.mode);
  int64_t x[kLanes];
  load_integers(w, in.a, Registers::source(in), from, x);
  uint64_t bits[kLanes];
  if (to == Type::kF64) {
    const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    const int before = std::fegetround();
    std::fesetround(modes[in.mode]);
    for (int l = 0; l < kLanes; ++l) {
      volatile int64_t v = x[l];
      volatile double y;
      if (from == Type::kU64) {
        y = static_cast<double>(static_cast<uint64_t>(v));
      } else {
        y = static_cast<double>(v);
      }
      bits[l] = bit_cast<uint64_t>(in.flags & kSat ? saturate_unit<double>(y) : double{y});
    }
    std::fesetround(before);
  } else {
    for (int l = 0; l < kLanes; ++l) {
      double y = integer_to_double(x[l], from == Type::kU64);
      if (in.flags & kSat) y = saturate_unit(y);
      bits[l] = float_bits(y, to, how);
    }
  }
  store_float_bits(w, in.d, to, bits, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

template <bool integral>
void float_to_float(Warp& w, const Instr& in, uint32_t exec) {
  const auto from = static_cast<Type>(in.count), to = static_cast<Type>(in.size);
  const auto how = static_cast<Round>(in.mode);
  double x[kLanes];
  load_floats(w, in.a, from, x);
  uint64_t bits[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    double v = x[l];
    if (in.flags & kFtz && from == Type::kF32) v = flush(static_cast<float>(v));
    if (integral) v = std::copysign(to_integer(v, how), v);
    if (in.flags & kSat) v = saturate_unit(v);
    if (in.flags & kRelu) v = v > 0.0 || v != v ? v : 0.0;
    bits[l] = float_bits(v, to, integral ? Round::kNearest : how);
    if (in.flags & kFtz && to == Type::kF32) {
      bits[l] = bit_cast<uint32_t>(flush(bit_cast<float>(static_cast<uint32_t>(bits[l]))));
    }
  }
  store_float_bits(w, in.d, to, bits, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

// The common ones, in loops that vectorise.
struct HalfToFloat {
  static float f(uint16_t a) { return canonical(half_to_float(a)); }
};
struct FloatToHalf {
  static uint16_t f(float a) { return float_to_half(a); }
};
struct FloatToBfloat {
  static uint16_t f(float a) { return float_to_bfloat(a); }
};
struct BfloatToFloat {
  static float f(uint16_t a) { return canonical(bfloat_to_float(a)); }
};
struct S32ToFloat {
  static float f(int32_t a) { return static_cast<float>(a); }
};
template <class D, class S>
struct Extend {
  static D f(S a) { return static_cast<D>(a); }
};

// cvt.rn.f16x2.f32 d, a, b: a goes to the upper half.
void floats_to_pair(Warp& w, const Instr& in, uint32_t exec) {
  const float *a = w.row<float>(in.a), *b = w.row<float>(in.b);
  const bool bfloat = static_cast<Type>(in.size) == Type::kBf16x2;
  const Type half = bfloat ? Type::kBf16 : Type::kF16;
  uint32_t result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    float x = a[l], y = b[l];
    if (in.flags & kRelu) {
      x = x > 0.0f || x != x ? x : 0.0f;
      y = y > 0.0f || y != y ? y : 0.0f;
    }
    if (in.mode) {
      const auto how = static_cast<Round>(in.mode);
      result[l] = static_cast<uint32_t>(float_bits(x, half, how) << 16 | float_bits(y, half, how));
    } else if (bfloat) {
      result[l] = uint32_t{float_to_bfloat(x)} << 16 | float_to_bfloat(y);
    } else {
      result[l] = uint32_t{float_to_half(x)} << 16 | float_to_half(y);
    }
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b));
}

// Whether all values of `from` are values of `to`: then there is nothing to saturate.
bool holds_all(Type to, Type from) {
  if (is_signed(from)) return is_signed(to) && bits_of(to) >= bits_of(from);
  return is_signed(to) ? bits_of(to) > bits_of(from) : bits_of(to) >= bits_of(from);
}

// `round` is -1 or 0 to 4 for rn, rz, rm, rp, rna; `integral` the same of rni, rzi, rmi, rpi.
bool conversion_exists(Type to, Type from, int round, int integral, uint16_t flags) {
  if (flags & kFtz && to != Type::kF32 && from != Type::kF32) return false;
  if (round == 4) return to == Type::kTf32 && from == Type::kF32 && !flags && integral < 0;
  if (is_integer(to) && is_integer(from)) {
    return round < 0 && integral < 0 && !(flags & kRelu) && !(flags & kSat && holds_all(to, from));
  }
  if (flags & kRelu) {
    return (to == Type::kF16 || to == Type::kBf16) && from == Type::kF32 && flags == kRelu &&
           (round == 0 || round == 1) && integral < 0;
  }
  if (to == Type::kBf16) return from == Type::kF32 && round >= 0 && integral < 0 && !(flags & kSat);
  if (from == Type::kBf16) return to == Type::kF32 && round < 0 && integral < 0 && !flags;
  if (is_integer(to) && is_float(from)) return integral >= 0 && round < 0;
  if (is_float(to) && is_integer(from)) return round >= 0 && integral < 0;
  if (!is_float(to) || !is_float(from)) return false;
  if (integral >= 0) return to == from && round < 0;
  return (bits_of(to) < bits_of(from)) == (round >= 0);
}

void cvt_rule(Decoder& d, Instr& in) {
  const int integral = d.take_one_of({"rni", "rzi", "rmi", "rpi"});
  const int round = d.take_one_of({"rn", "rz", "rm", "rp", "rna"});
  if (d.take("ftz")) in.flags |= kFtz;
  if (d.take("sat")) in.flags |= kSat;
  if (d.take("relu")) in.flags |= kRelu;
  const Type to = d.type(), from = d.type();
  if (to == Type::kF16x2 || to == Type::kBf16x2) {
    if (from != Type::kF32 || round < 0 || round > 1 || integral >= 0) return;
    if (in.flags & (kFtz | kSat)) return;
    d.expect(3, 3);
    in.d = d.destination(0, 32);
    in.a = d.source(1, Type::kF32);
    in.b = d.source(2, Type::kF32);
    in.size = static_cast<uint8_t>(to);
    in.mode = static_cast<uint8_t>(round);
    in.run = floats_to_pair;
    return;
  }
  if (!conversion_exists(to, from, round, integral, in.flags)) return;
  d.expect(2, 2);
  in.count = static_cast<uint8_t>(from);
  in.size = static_cast<uint8_t>(to);
  in.mode = static_cast<uint8_t>(integral >= 0 ? integral : round >= 0 ? round : 0);
  const unsigned from_bits =
      d.register_bits(d.operand(1)) ? d.register_bits(d.operand(1)) : std::max(bits_of(from), 16u);
  const unsigned to_bits =
      d.register_bits(d.operand(0)) ? d.register_bits(d.operand(0)) : std::max(bits_of(to), 16u);
  if (from_bits < bits_of(from) || to_bits < bits_of(to)) d.unknown("a register is too narrow");
  // Only integers may lie in wider registers.
  if (!is_integer(from) && from_bits != bits_of(from)) return;
  if (!is_integer(to) && to_bits != bits_of(to)) return;
  in.target = Registers::pack(from_bits, to_bits);
  in.d = d.destination(0, to_bits);
  in.a = d.source(1, from_bits, from);
  if (is_integer(from)) {
    in.run = is_integer(to) ? integer_to_integer : integer_to_float;
  } else {
    in.run = is_integer(to)  ? float_to_integer
             : integral >= 0 ? float_to_float<true>
                             : float_to_float<false>;
  }
  // The common ones.
  if (in.flags || in.mode || integral >= 0) return;
  if (to_bits == 64 && from_bits == 32) {
    if (to == Type::kS64 && from == Type::kS32) {
      in.run = map1<Extend<int64_t, int32_t>, int64_t, int32_t>;
    }
    if (is_integer(to) && bits_of(to) == 64 && from == Type::kU32) {
      in.run = map1<Extend<uint64_t, uint32_t>, uint64_t, uint32_t>;
    }
  }
  if (to == Type::kF32 && from == Type::kS32 && from_bits == 32) {
    in.run = map1<S32ToFloat, float, int32_t>;
  }
  if (to == Type::kF32 && from == Type::kF16) in.run = map1<HalfToFloat, float, uint16_t>;
  if (to == Type::kF16 && from == Type::kF32) in.run = map1<FloatToHalf, uint16_t, float>;
  if (to == Type::kBf16 && from == Type::kF32) in.run = map1<FloatToBfloat, uint16_t, float>;
  if (to == Type::kF32 && from == Type::kBf16) in.run = map1<BfloatToFloat, float, uint16_t>;
}

// ---- mov ----------------------------------------------------------------------------------------

// Elements of 16 or 32 bits to one register, lowest first; and back.
template <class Whole, class Part>
void pack(Warp& w, const Instr& in, uint32_t exec) {
  const Ref* parts = &w.block->launch->program.lists[in.list];
  Whole result[kLanes] = {};
  uint32_t sources = kAllLanes;
  for (unsigned i = 0; i < in.count; ++i) {
    const Part* part = w.row<Part>(parts[i]);
    for (int l = 0; l < kLanes; ++l)
      result[l] |= static_cast<Whole>(part[l]) << (8 * sizeof(Part) * i);
    sources &= w.is_defined(parts[i]);
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, sources);
}
template <class Whole, class Part>
void unpack(Warp& w, const Instr& in, uint32_t exec) {
  const Ref* parts = &w.block->launch->program.lists[in.list];
  Whole whole[kLanes];
  std::memcpy(whole, w.row<Whole>(in.a), sizeof(whole));
  const uint32_t sources = w.is_defined(in.a);
  for (unsigned i = 0; i < in.count; ++i) {
    Part result[kLanes];
    for (int l = 0; l < kLanes; ++l)
      result[l] = static_cast<Part>(whole[l] >> (8 * sizeof(Part) * i));
    w.write(parts[i], result, exec);
    w.define(parts[i], exec, sources);
  }
}

enum Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kSmid,
  kNsmid,
  kGridid,
  kClock,
  kClockHigh,
  kLanemaskEq,
  kLanemaskLe,
  kLanemaskLt,
  kLanemaskGe,
  kLanemaskGt,
  kDynamicShared,
  kTotalShared,
};
const std::pair<const char*, Special> kSpecials[] = {
    {"%tid.x", kTidX},
    {"%tid.y", kTidY},
    {"%tid.z", kTidZ},
    {"%ntid.x", kNtidX},
    {"%ntid.y", kNtidY},
    {"%ntid.z", kNtidZ},
    {"%ctaid.x", kCtaidX},
    {"%ctaid.y", kCtaidY},
    {"%ctaid.z", kCtaidZ},
    {"%nctaid.x", kNctaidX},
    {"%nctaid.y", kNctaidY},
    {"%nctaid.z", kNctaidZ},
    {"%laneid", kLaneid},
    {"%warpid", kWarpid},
    {"%nwarpid", kNwarpid},
    {"%smid", kSmid},
    {"%nsmid", kNsmid},
    {"%gridid", kGridid},
    {"%clock", kClock},
    {"%clock_hi", kClockHigh},
    {"%clock64", kClock},
    {"%globaltimer", kClock},
    {"%globaltimer_lo", kClock},
    {"%globaltimer_hi", kClockHigh},
    {"%lanemask_eq", kLanemaskEq},
    {"%lanemask_le", kLanemaskLe},
    {"%lanemask_lt", kLanemaskLt},
    {"%lanemask_ge", kLanemaskGe},
    {"%lanemask_gt", kLanemaskGt},
    {"%dynamic_smem_size", kDynamicShared},
    {"%total_smem_size", kTotalShared},
};

uint64_t special_value(const Warp& w, uint8_t which, int lane) {
  const Block& block = *w.block;
  const Launch& launch = block.launch->launch;
  const Dim3 &b = launch.block, &g = launch.grid;
  const uint32_t thread = w.thread(lane), bit = 1u << lane;
  switch (which) {
    case kTidX:
      return thread % b.x;
    case kTidY:
      return thread / b.x % b.y;
    case kTidZ:
      return thread / (b.x * b.y);
    case kNtidX:
      return b.x;
    case kNtidY:
      return b.y;
    case kNtidZ:
      return b.z;
    case kCtaidX:
      return block.ctaid[0];
    case kCtaidY:
      return block.ctaid[1];
    case kCtaidZ:
      return block.ctaid[2];
    case kNctaidX:
      return g.x;
    case kNctaidY:
      return g.y;
    case kNctaidZ:
      return g.z;
    case kLaneid:
      return static_cast<uint64_t>(lane);
    case kWarpid:
      return w.index;
    case kNwarpid:
      return block.warps.size();
    case kClock:
      return block.instructions;
    case kClockHigh:
      return block.instructions >> 32;
    case kLanemaskEq:
      return bit;
    case kLanemaskLt:
      return bit - 1;
    case kLanemaskLe:
      return bit | (bit - 1);
    case kLanemaskGe:
      return ~(bit - 1);
    case kLanemaskGt:
      return ~(bit | (bit - 1));
    case kDynamicShared:
      return launch.dynamic_shared;
    case kTotalShared:
      return launch.dynamic_shared + launch.kernel->static_shared;
    case kSmid:
      return block.linear % 108;
    case kNsmid:
      return 108;
    default:
      return 1;
  }
}

template <class T>
void move_special(Warp& w, const Instr& in, uint32_t exec) {
  T result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = static_cast<T>(special_value(w, in.mode, l));
  w.write(in.d, result, exec);
  w.define(in.d, exec, kAllLanes);
}

void move_predicate(Warp& w, const Instr& in, uint32_t exec) {
  w.write_predicate(in.d, w.predicate(in.a), exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

template <class T>
constexpr Handler move_handler = map1<Same<T>, T, T>;

Handler move_of(unsigned bits) {
  return bits == 16   ? move_handler<uint16_t>
         : bits == 32 ? move_handler<uint32_t>
                      : move_handler<uint64_t>;
}

void mov_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  d.expect(2, 2);
  const unsigned bits = bits_of(t);
  const Operand &to = d.operand(0), &from = d.operand(1);
  if (t == Type::kPred) {
    in.d = d.destination(0, 1);
    in.a = d.source(1, 1);
    in.run = move_predicate;
    return;
  }
  if (!is_plain(t)) return;
  if (from.kind == Operand::kVector || to.kind == Operand::kVector) {
    if (t != Type::kB32 && t != Type::kB64) return;
    const bool packs = from.kind == Operand::kVector;
    const std::vector<Operand> parts = d.parts(packs ? 1 : 0);
    const unsigned part = parts.empty() ? 0 : bits / static_cast<unsigned>(parts.size());
    if ((part != 16 && part != 32) || part * parts.size() != bits) {
      d.unknown("the parts do not make up the whole");
    }
    std::vector<Ref> refs;
    for (const Operand& p : parts) {
      Ref ref = packs ? d.source(p, part) : d.destination(p, part);
      // nvcc packs a register that nothing writes where it looks at the other parts only.
      if (packs && !d.is_assigned(p)) ref = d.constant(0, part);
      refs.push_back(ref);
    }
    in.count = static_cast<uint8_t>(parts.size());
    in.list = d.list(refs);
    if (packs) {
      in.d = d.destination(0, bits);
      in.run = bits == 32   ? pack<uint32_t, uint16_t>
               : part == 32 ? pack<uint64_t, uint32_t>
                            : pack<uint64_t, uint16_t>;
    } else {
      in.a = d.source(1, bits);
      in.run = bits == 32   ? unpack<uint32_t, uint16_t>
               : part == 32 ? unpack<uint64_t, uint32_t>
                            : unpack<uint64_t, uint16_t>;
    }
    return;
  }
  in.d = d.destination(0, bits);
  if (from.kind == Operand::kSpecial) {
    if (t == Type::kF32 || t == Type::kF64) return;
    for (const auto& [name, special] : kSpecials) {
      if (from.name != name) continue;
      const std::string text = name;
      const bool wide = text == "%clock64" || text == "%globaltimer";
      // Once all had 16 bits; the first few still may.
      if (bits != (wide ? 64u : 32u) && !(bits == 16 && special <= kNctaidZ) &&
          !(bits == 64 && special == kGridid)) {
        d.unknown(from.name + " has not " + std::to_string(bits) + " bits");
      }
      in.mode = special;
      in.run = bits == 16   ? move_special<uint16_t>
               : bits == 32 ? move_special<uint32_t>
                            : move_special<uint64_t>;
    }
    if (!in.run) d.unknown("special register " + from.name + " is not known here");
    return;
  }
  in.a = d.source(1, t);
  in.run = move_of(bits);
}

// Between a window's own addresses and generic ones: in.immediate is added.
struct AddressMove {
  static void run(Warp& w, const Instr& in, uint32_t exec) {
    const auto* a = w.row<uint64_t>(in.a);
    uint64_t result[kLanes];
    for (int l = 0; l < kLanes; ++l) result[l] = a[l] + static_cast<uint64_t>(in.immediate);
    w.write(in.d, result, exec);
    w.define(in.d, exec, w.is_defined(in.a));
  }
};

int take_space(Decoder& d) {
  const int space = d.take_one_of({"global", "shared", "local", "const", "param", "shared::cta"});
  return space == 5 ? 1 : space;
}

uint64_t window(int space) {
  const uint64_t windows[] = {0, kSharedWindow, kLocalWindow, 0, kParamWindow};
  return windows[space];
}

void cvta_rule(Decoder& d, Instr& in) {
  const bool to = d.take("to");
  const int space = take_space(d);
  const Type t = d.type();
  if (t != Type::kU64 || space < 0) return;
  d.expect(2, 2);
  in.d = d.destination(0, 64);
  in.a = d.source(1, 64);
  in.immediate = static_cast<int64_t>(to ? 0 - window(space) : window(space));
  in.run = AddressMove::run;
}

void is_in_space(Warp& w, const Instr& in, uint32_t exec) {
  const auto* a = w.row<uint64_t>(in.a);
  uint32_t holds = 0;
  for (int l = 0; l < kLanes; ++l) {
    int space = 0;  // global
    for (const int i : {1, 2, 4}) {
      if (a[l] - window(i) < kWindowBytes) space = i;
    }
    holds |= uint32_t{space == in.mode} << l;
  }
  w.write_predicate(in.d, holds, exec);
  w.define(in.d, exec, w.is_defined(in.a));
}

void isspacep_rule(Decoder& d, Instr& in) {
  const int space = take_space(d);
  if (space < 0 || space == 3) return;  // constants have no window of their own here
  d.expect(2, 2);
  in.d = d.destination(0, 1);
  in.a = d.source(1, 64);
  in.mode = static_cast<uint8_t>(space);
  in.run = is_in_space;
}

// ---- comparisons --------------------------------------------------------------------------------

struct Eq {
  template <class T>
  static bool f(T a, T b) {
    return a == b;
  }
};
struct Ne {
  template <class T>
  static bool f(T a, T b) {
    return a < b || a > b;
  }
};
struct Lt {
  template <class T>
  static bool f(T a, T b) {
    return a < b;
  }
};
struct Le {
  template <class T>
  static bool f(T a, T b) {
    return a <= b;
  }
};
struct Gt {
  template <class T>
  static bool f(T a, T b) {
    return a > b;
  }
};
struct Ge {
  template <class T>
  static bool f(T a, T b) {
    return a >= b;
  }
};
// True when either is NaN, too.
struct Equ {
  template <class T>
  static bool f(T a, T b) {
    return !(a < b || a > b);
  }
};
struct Neu {
  template <class T>
  static bool f(T a, T b) {
    return !(a == b);
  }
};
struct Ltu {
  template <class T>
  static bool f(T a, T b) {
    return !(a >= b);
  }
};
struct Leu {
  template <class T>
  static bool f(T a, T b) {
    return !(a > b);
  }
};
struct Gtu {
  template <class T>
  static bool f(T a, T b) {
    return !(a <= b);
  }
};
struct Geu {
  template <class T>
  static bool f(T a, T b) {
    return !(a < b);
  }
};
struct Num {
  template <class T>
  static bool f(T a, T b) {
    return a == a && b == b;
  }
};
struct Nan {
  template <class T>
  static bool f(T a, T b) {
    return a != a || b != b;
  }
};

const char* const kComparisons[] = {"eq", "ne",  "lt",  "le",  "gt",  "ge",  "lo",  "ls",  "hi",
                                    "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

template <class T>
uint32_t compare(uint8_t how, const T* a, const T* b) {
  switch (how) {
    case 0:
      return compare_lanes<Eq>(a, b);
    case 1:
      return compare_lanes<Ne>(a, b);
    case 2:
    case 6:
      return compare_lanes<Lt>(a, b);
    case 3:
    case 7:
      return compare_lanes<Le>(a, b);
    case 4:
    case 8:
      return compare_lanes<Gt>(a, b);
    case 5:
    case 9:
      return compare_lanes<Ge>(a, b);
    case 10:
      return compare_lanes<Equ>(a, b);
    case 11:
      return compare_lanes<Neu>(a, b);
    case 12:
      return compare_lanes<Ltu>(a, b);
    case 13:
      return compare_lanes<Leu>(a, b);
    case 14:
      return compare_lanes<Gtu>(a, b);
    case 15:
      return compare_lanes<Geu>(a, b);
    case 16:
      return compare_lanes<Num>(a, b);
    default:
      return compare_lanes<Nan>(a, b);
  }
}

// in.count: the type, in.mode: the comparison. `upper` of a pair of halves.
uint32_t compare_operands(const Warp& w, const Instr& in, bool upper) {
  const auto t = static_cast<Type>(in.count);
  switch (t) {
    case Type::kU16:
    case Type::kB16:
      return compare(in.mode, w.row<uint16_t>(in.a), w.row<uint16_t>(in.b));
    case Type::kS16:
      return compare(in.mode, w.row<int16_t>(in.a), w.row<int16_t>(in.b));
    case Type::kU32:
    case Type::kB32:
      return compare(in.mode, w.row<uint32_t>(in.a), w.row<uint32_t>(in.b));
    case Type::kS32:
      return compare(in.mode, w.row<int32_t>(in.a), w.row<int32_t>(in.b));
    case Type::kU64:
    case Type::kB64:
      return compare(in.mode, w.row<uint64_t>(in.a), w.row<uint64_t>(in.b));
    case Type::kS64:
      return compare(in.mode, w.row<int64_t>(in.a), w.row<int64_t>(in.b));
    case Type::kF64:
      return compare(in.mode, w.row<double>(in.a), w.row<double>(in.b));
    default:
      break;
  }
  float a[kLanes], b[kLanes];
  const auto load = [&](Ref r, float* x) {
    for (int l = 0; l < kLanes; ++l) {
      if (t == Type::kF32) {
        x[l] = w.row<float>(r)[l];
      } else if (t == Type::kF16) {
        x[l] = half_to_float(w.row<uint16_t>(r)[l]);
      } else {
        x[l] = half_to_float(static_cast<uint16_t>(w.row<uint32_t>(r)[l] >> (upper ? 16 : 0)));
      }
    }
  };
  load(in.a, a);
  load(in.b, b);
  if (in.flags & kFtz) {
    const float smallest = t == Type::kF32 ? std::numeric_limits<float>::min() : 0x1p-14f;
    for (int l = 0; l < kLanes; ++l) {
      if (std::fabs(a[l]) < smallest) a[l] = 0.0f;
      if (std::fabs(b[l]) < smallest) b[l] = 0.0f;
    }
  }
  return compare(in.mode, a, b);
}

enum Combine : uint8_t { kPlain, kAnd, kOr, kXor };
uint32_t combine(uint8_t how, uint32_t a, uint32_t b) {
  return how == kAnd ? a & b : how == kOr ? a | b : how == kXor ? a ^ b : a;
}

// in.size: Combine; in.immediate: 1 when c is negated, 2 when there is a second destination (in.e).
void setp(Warp& w, const Instr& in, uint32_t exec) {
  const auto t = static_cast<Type>(in.count);
  const bool pair = t == Type::kF16x2;
  const uint32_t first = compare_operands(w, in, false);
  uint32_t sources = w.is_defined(in.a) & w.is_defined(in.b), c = 0;
  if (in.size != kPlain) {
    c = w.predicate(in.c) ^ (in.immediate & 1 ? kAllLanes : 0);
    sources &= w.is_defined(in.c);
  }
  const uint32_t second = pair ? compare_operands(w, in, true) : ~first;
  w.write_predicate(in.d, combine(in.size, first, c), exec);
  w.define(in.d, exec, sources);
  if (in.immediate & 2) {
    w.write_predicate(in.e, combine(in.size, second, c), exec);
    w.define(in.e, exec, sources);
  }
}

// The result as all ones or 1.0. in.target: destination's type.
void set(Warp& w, const Instr& in, uint32_t exec) {
  const auto t = static_cast<Type>(in.count), to = static_cast<Type>(in.target);
  const bool pair = t == Type::kF16x2;
  uint32_t sources = w.is_defined(in.a) & w.is_defined(in.b), c = 0;
  if (in.size != kPlain) {
    c = w.predicate(in.c) ^ (in.immediate & 1 ? kAllLanes : 0);
    sources &= w.is_defined(in.c);
  }
  const uint32_t low = combine(in.size, compare_operands(w, in, false), c);
  const uint32_t high = pair ? combine(in.size, compare_operands(w, in, true), c) : 0;
  const uint32_t one = to == Type::kF32                         ? 0x3F800000u
                       : to == Type::kF16 || to == Type::kF16x2 ? 0x3C00u
                       : pair                                   ? 0xFFFFu
                                                                : ~0u;
  uint32_t result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    result[l] = (low >> l & 1 ? one : 0) | (high >> l & 1 ? one << 16 : 0);
  }
  if (bits_of(to) == 16) {
    uint16_t narrow[kLanes];
    for (int l = 0; l < kLanes; ++l) narrow[l] = static_cast<uint16_t>(result[l]);
    w.write(in.d, narrow, exec);
  } else {
    w.write(in.d, result, exec);
  }
  w.define(in.d, exec, sources);
}

bool comparison(Decoder& d, Instr& in) {
  int how = -1;
  for (int i = 0; i < 18 && how < 0; ++i) {
    if (d.take(kComparisons[i])) how = i;
  }
  in.size = static_cast<uint8_t>(d.take_one_of({"and", "or", "xor"}) + 1);
  if (d.take("ftz")) in.flags |= kFtz;
  in.mode = static_cast<uint8_t>(how);
  return how >= 0;
}

// bfloat16 has comparisons since sm_90.
bool comparable(const Instr& in, Type t) {
  const uint8_t how = in.mode;
  const bool floating = t == Type::kF16 || t == Type::kF16x2 || t == Type::kF32 || t == Type::kF64;
  if (in.flags & kFtz && (!floating || t == Type::kF64)) return false;
  const bool bits = t == Type::kB16 || t == Type::kB32 || t == Type::kB64;
  if (how < 2) return floating || bits || (is_integer(t) && bits_of(t) > 8);
  if (how < 6) return floating || (is_integer(t) && bits_of(t) > 8);
  if (how < 10) return t == Type::kU16 || t == Type::kU32 || t == Type::kU64;
  return floating;
}

void third_predicate(Decoder& d, Instr& in, size_t i) {
  if (in.size == kPlain) return;
  Operand c = d.operand(i);
  if (c.negated) in.immediate |= 1;
  c.negated = false;
  in.c = d.source(c, 1);
}

void setp_rule(Decoder& d, Instr& in) {
  if (!comparison(d, in)) return;
  const Type t = d.type();
  if (!comparable(in, t)) return;
  d.expect(in.size ? 4 : 3, in.size ? 4 : 3);
  in.count = static_cast<uint8_t>(t);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  third_predicate(d, in, 3);
  Operand first = d.operand(0);
  if (!first.parts.empty()) {
    if (t == Type::kF16) return;
    in.e = d.destination(first.parts[0], 1);
    in.immediate |= 2;
    first.parts.clear();
  }
  in.d = d.destination(first, 1);
  in.run = setp;
}

void set_rule(Decoder& d, Instr& in) {
  if (!comparison(d, in)) return;
  const Type to = d.type(), t = d.type();
  const bool word = to == Type::kU32 || to == Type::kS32;
  const bool exists =
      word || (t == Type::kF16x2 ? to == Type::kF16x2
               : t == Type::kF16 ? to == Type::kF16 || to == Type::kU16 || to == Type::kS16
                                 : to == Type::kF16 || to == Type::kF32);
  if (!exists || !comparable(in, t)) return;
  d.expect(in.size ? 4 : 3, in.size ? 4 : 3);
  in.count = static_cast<uint8_t>(t);
  in.target = static_cast<uint32_t>(to);
  in.d = d.destination(0, to);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  third_predicate(d, in, 3);
  in.run = set;
}

template <class T>
void selp(Warp& w, const Instr& in, uint32_t exec) {
  const T *a = w.row<T>(in.a), *b = w.row<T>(in.b);
  const uint32_t p = w.predicate(in.c) ^ (in.immediate & 1 ? kAllLanes : 0);
  T result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = p >> l & 1 ? a[l] : b[l];
  w.write(in.d, result, exec);
  // What is not selected need not be defined.
  w.define(in.d, exec, w.is_defined(in.c) & ((p & w.is_defined(in.a)) | (~p & w.is_defined(in.b))));
}

void selp_rule(Decoder& d, Instr& in) {
  const Type t = d.type();
  const unsigned bits = bits_of(t);
  if (!is_plain(t)) return;
  d.expect(4, 4);
  in.d = d.destination(0, bits);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  in.size = kAnd;
  third_predicate(d, in, 3);
  in.run = bits == 16 ? selp<uint16_t> : bits == 32 ? selp<uint32_t> : selp<uint64_t>;
}

template <class T, class C>
void slct(Warp& w, const Instr& in, uint32_t exec) {
  const T *a = w.row<T>(in.a), *b = w.row<T>(in.b);
  const C* c = w.row<C>(in.c);
  T result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    C value = c[l];
    if constexpr (std::is_same_v<C, float>) {
      if (in.flags & kFtz) value = flush(value);
    }
    result[l] = value >= 0 ? a[l] : b[l];
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, w.is_defined(in.a) & w.is_defined(in.b) & w.is_defined(in.c));
}

void slct_rule(Decoder& d, Instr& in) {
  const Type t = d.type(), c = d.type();
  const unsigned bits = bits_of(t);
  if (!is_plain(t) || (c != Type::kF32 && c != Type::kS32)) return;
  if (c == Type::kF32 && d.take("ftz")) in.flags |= kFtz;
  d.expect(4, 4);
  in.d = d.destination(0, bits);
  in.a = d.source(1, t);
  in.b = d.source(2, t);
  in.c = d.source(3, c);
  if (c == Type::kF32) {
    in.run = bits == 16   ? slct<uint16_t, float>
             : bits == 32 ? slct<uint32_t, float>
                          : slct<uint64_t, float>;
  } else {
    in.run = bits == 16   ? slct<uint16_t, int32_t>
             : bits == 32 ? slct<uint32_t, int32_t>
                          : slct<uint64_t, int32_t>;
  }
}

}  // namespace

std::vector<RuleEntry> convert_rules() {
  return {
      {"mov", mov_rule, Class::kMove},      {"cvt", cvt_rule, Class::kConvert},
      {"cvta", cvta_rule, Class::kMove},    {"isspacep", isspacep_rule, Class::kCompare},
      {"setp", setp_rule, Class::kCompare}, {"set", set_rule, Class::kCompare},
      {"selp", selp_rule, Class::kMove},    {"slct", slct_rule, Class::kMove},
  };
}

}  // namespace effnet_fast::ptx
