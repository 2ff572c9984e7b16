// Loads, stores, atomics, cp.async, ldmatrix, stmatrix.
#include <algorithm>

#include "access.h"
#include "decode.h"
#include "floats.h"

namespace effnet_fast::ptx {
namespace {

enum Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };

// Beside kAddress32.
enum Flags : uint16_t { kSigned = 2, kStrong = 4, kRelease = 8, kNoFtz = 16, kZeroFill = 32 };

Access access_of(const Instr& in, Kind kind) {
  return {kind, (in.flags & kStrong) != 0, (in.flags & kRelease) != 0};
}

void addresses(const Warp& w, const Instr& in, uint32_t exec, uint64_t* out) {
  const auto offset = static_cast<uint64_t>(in.immediate);
  if (in.flags & kAddress32) {
    const auto* a = w.row<uint32_t>(in.a);
    for (int l = 0; l < kLanes; ++l) out[l] = static_cast<uint32_t>(a[l] + offset);
  } else {
    const auto* a = w.row<uint64_t>(in.a);
    for (int l = 0; l < kLanes; ++l) out[l] = a[l] + offset;
  }
  const uint32_t undefined = exec & ~w.is_defined(in.a);
  if (undefined) {
    w.fail(Trap::kUninitialized, __builtin_ctz(undefined), "its address was never set");
  }
}

void require_defined(const Warp& w, Ref r, uint32_t exec, const char* what) {
  const uint32_t undefined = exec & ~w.is_defined(r);
  if (undefined) {
    w.fail(Trap::kUninitialized, __builtin_ctz(undefined), std::string(what) + " was never set");
  }
}

// Calls f(space, lanes, offsets) once per space that the generic addresses lie in; the offsets are
// into the space.
template <class F>
void for_spaces(uint8_t space, uint32_t exec, uint64_t* address, F f) {
  if (space != kGeneric) {
    f(space, exec, address);
    return;
  }
  constexpr std::pair<uint8_t, uint64_t> windows[] = {
      {kShared, kSharedWindow}, {kLocal, kLocalWindow}, {kParam, kParamWindow}};
  uint32_t rest = exec;
  for (const auto& [its, base] : windows) {
    uint32_t lanes = 0;
    for (int l = 0; l < kLanes; ++l) lanes |= uint32_t{address[l] - base < kWindowBytes} << l;
    lanes &= exec;
    if (!lanes) continue;
    uint64_t offset[kLanes];
    for (int l = 0; l < kLanes; ++l) offset[l] = address[l] - base;
    f(its, lanes, offset);
    rest &= ~lanes;
  }
  if (rest) f(uint8_t{kGlobal}, rest, address);
}

void read_param(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, uint8_t** host) {
  const Launch& launch = w.block->launch->launch;
  for (int l = 0; l < kLanes; ++l) {
    if (!(exec >> l & 1)) continue;
    if (offset[l] > launch.parameters.size() || offset[l] + n > launch.parameters.size()) {
      w.fail(Trap::kOutOfBounds, l,
             "parameter bytes at " + std::to_string(offset[l]) + " of " +
                 std::to_string(launch.parameters.size()));
    }
    host[l] = const_cast<uint8_t*>(launch.parameters.data()) + offset[l];
  }
}

// ---- ld -----------------------------------------------------------------------------------------

// Element `i` of what host[lane] points to, into a register of T, extended from `size` bytes.
template <class T>
void load_element(Warp& w, const Instr& in, Ref d, uint32_t exec, uint32_t defined,
                  uint8_t* const* host, unsigned i) {
  T* to = w.row<T>(d);
  const unsigned size = in.size;
  if (size == sizeof(T)) {
    for (uint32_t rest = exec; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      std::memcpy(&to[l], host[l] + i * sizeof(T), sizeof(T));
    }
  } else {
    const unsigned drop = 64 - 8 * size;
    for (uint32_t rest = exec; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      uint64_t bits = 0;
      std::memcpy(&bits, host[l] + i * size, size);
      to[l] = static_cast<T>(in.flags & kSigned
                                 ? static_cast<uint64_t>(static_cast<int64_t>(bits << drop) >> drop)
                                 : bits);
    }
  }
  w.define(d, exec, defined);
}

// in.mode: space; in.target: register bits.
void load(Warp& w, const Instr& in, uint32_t exec) {
  uint64_t address[kLanes];
  addresses(w, in, exec, address);
  const uint32_t n = uint32_t{in.size} * in.count;
  uint8_t* host[kLanes];
  uint32_t defined = kAllLanes;
  for_spaces(in.mode, exec, address, [&](uint8_t space, uint32_t lanes, const uint64_t* at) {
    switch (space) {
      case kGlobal:
        read_global(w, lanes, at, n, access_of(in, Kind::kLoad), host);
        break;
      case kShared:
        count_wavefronts(w.block->worker->shared_load, lanes, at, n);
        defined &= read_shared(w, lanes, at, n, access_of(in, Kind::kLoad), host);
        break;
      case kLocal:
        defined &= read_local(w, lanes, at, n, host);
        break;
      default:
        read_param(w, lanes, at, n, host);
    }
  });
  const Ref* list = &w.block->launch->program.lists[in.list];
  for (unsigned i = 0; i < in.count; ++i) {
    if (in.target == 16) {
      load_element<uint16_t>(w, in, list[i], exec, defined, host, i);
    } else if (in.target == 32) {
      load_element<uint32_t>(w, in, list[i], exec, defined, host, i);
    } else {
      load_element<uint64_t>(w, in, list[i], exec, defined, host, i);
    }
  }
}

// ---- st -----------------------------------------------------------------------------------------

void store(Warp& w, const Instr& in, uint32_t exec) {
  uint64_t address[kLanes];
  addresses(w, in, exec, address);
  const uint32_t n = uint32_t{in.size} * in.count;
  const Ref* list = &w.block->launch->program.lists[in.list];
  alignas(16) uint8_t values[kLanes * 16];
  uint32_t defined = kAllLanes;
  for (unsigned i = 0; i < in.count; ++i) {
    defined &= w.is_defined(list[i]);
    // Little endian: the low bytes of a wider register come first.
    const uint8_t* from = w.row<uint8_t>(list[i]);
    const size_t stride = in.target / 8;
    for (int l = 0; l < kLanes; ++l) {
      std::memcpy(values + 16 * l + i * in.size, from + static_cast<size_t>(l) * stride, in.size);
    }
  }
  for_spaces(in.mode, exec, address, [&](uint8_t space, uint32_t lanes, const uint64_t* at) {
    switch (space) {
      case kGlobal:
        if (lanes & ~defined) {
          w.fail(Trap::kUninitialized, __builtin_ctz(lanes & ~defined),
                 "the value that it stores was never set");
        }
        write_global(w, lanes, at, n, access_of(in, Kind::kStore), values);
        break;
      case kShared:
        count_wavefronts(w.block->worker->shared_store, lanes, at, n);
        write_shared(w, lanes, at, n, access_of(in, Kind::kStore), values, defined);
        break;
      case kLocal:
        write_local(w, lanes, at, n, values, defined);
        break;
      default:
        w.fail(Trap::kUndeclared, __builtin_ctz(lanes), "parameters cannot be written");
    }
  });
}

// What a cache should do with a line changes no value: taken and forgotten.
void take_cache_hints(Decoder& d, bool is_load) {
  d.take_one_of({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
                 "L1::no_allocate"});
  if (is_load) d.take_one_of({"L2::64B", "L2::128B", "L2::256B"});
}

// The memory order, its scope and what they mean for races. False when there is none.
bool take_order(Decoder& d, Instr& in) {
  const std::string& base = d.base();
  const bool atomic = base == "atom" || base == "red";
  if (!atomic && d.take("weak")) return true;
  if (!atomic && d.take("volatile")) {
    in.flags |= kStrong;
    return true;
  }
  const bool acquires = base == "ld" || base == "atom", releases = base != "ld";
  const int order = d.take("relaxed")                     ? 0
                    : acquires && d.take("acquire")       ? 1
                    : releases && d.take("release")       ? 2
                    : base == "atom" && d.take("acq_rel") ? 3
                                                          : -1;
  if (order >= 0) in.flags |= kStrong;
  if (order >= 2) in.flags |= kRelease;
  if (order < 0 && !atomic) return false;
  const int scope = d.take_one_of({"cta", "gpu", "sys"});
  if (order >= 0 && !atomic && scope < 0) d.unknown("the order has no scope");
  return order >= 0;
}

Space take_space(Decoder& d, std::string& name) {
  const int space =
      d.take_one_of({"global", "shared", "shared::cta", "local", "const", "param", "param::entry"});
  const std::pair<Space, const char*> spaces[] = {
      {kGlobal, "global"}, {kShared, "shared"}, {kShared, "shared"}, {kLocal, "local"},
      {kGlobal, "const"},  {kParam, "param"},   {kParam, "param"}};
  if (space < 0) {
    name.clear();
    return kGeneric;
  }
  name = spaces[space].second;
  return spaces[space].first;
}

bool is_signed(Type t) {
  return t == Type::kS8 || t == Type::kS16 || t == Type::kS32 || t == Type::kS64;
}

void note_access(Decoder& d, Space space, uint32_t bytes) {
  if (space == kShared || space == kGeneric) d.smallest_shared_access(bytes);
  if (space == kGlobal || space == kGeneric) d.smallest_global_access(bytes);
}

// The last operand, of L2::cache_hint.
void take_policy(Decoder& d, bool policy) {
  if (policy) d.source(d.count() - 1, 64);
}

void transfer_rule(Decoder& d, Instr& in, bool is_load) {
  const bool uniform = d.base() == "ldu", ordered = !uniform && take_order(d, in);
  std::string name;
  const Space space = take_space(d, name);
  const bool global = name == "global";
  if (uniform && !global && space != kGeneric) return;
  const bool constant = name == "const" || space == kParam;
  if (constant && !is_load) return;
  if (in.flags & kStrong && (constant || space == kLocal)) return;
  if (is_load && global && !uniform && !ordered) d.take("nc");
  if (!uniform && !(in.flags & kStrong)) {
    is_load ? d.take_one_of({"ca", "cg", "cs", "lu", "cv"})
            : d.take_one_of({"wb", "cg", "cs", "wt"});
  }
  if (!uniform && (global || space == kGeneric)) take_cache_hints(d, is_load);
  const bool policy = global && !uniform && d.take("L2::cache_hint");
  const int vector = d.take_one_of({"v2", "v4"});
  const Type t = d.type();
  const unsigned bits = bits_of(t);
  const bool floating = t == Type::kF32 || t == Type::kF64;
  if ((t > Type::kS64 && !floating) || bits < 8 || bits > 64) return;
  d.expect(policy ? 3 : 2, policy ? 3 : 2);
  take_policy(d, policy);
  const size_t value = is_load ? 0 : 1;
  const std::vector<Operand> parts = d.parts(value);
  in.count = static_cast<uint8_t>(vector < 0 ? 1 : vector == 0 ? 2 : 4);
  if (parts.size() != in.count) d.unknown("the number of registers is not that of its vector");
  in.size = static_cast<uint8_t>(bits / 8);
  if (in.size * in.count > 16) return;
  unsigned register_bits = 0;
  for (const Operand& p : parts) register_bits = std::max(register_bits, d.register_bits(p));
  if (register_bits == 0) register_bits = std::max(bits, 16u);
  if (register_bits < bits) d.unknown("a register is too narrow");
  std::vector<Ref> refs;
  for (const Operand& p : parts) {
    refs.push_back(is_load ? d.destination(p, register_bits) : d.source(p, register_bits, t));
  }
  in.target = register_bits;
  in.list = d.list(refs);
  if (is_signed(t)) in.flags |= kSigned;
  in.mode = space;
  d.address(is_load ? 1 : 0, name, in);
  note_access(d, space, in.size * uint32_t{in.count});
  in.kind = space == kShared  ? (is_load ? Class::kSharedLoad : Class::kSharedStore)
            : space == kLocal ? Class::kLocal
            : space == kParam ? Class::kParam
                              : (is_load ? Class::kGlobalLoad : Class::kGlobalStore);
  in.run = is_load ? load : store;
}

void ld_rule(Decoder& d, Instr& in) { transfer_rule(d, in, true); }
void st_rule(Decoder& d, Instr& in) { transfer_rule(d, in, false); }

// ---- atom, red ----------------------------------------------------------------------------------

enum Atomic : uint8_t { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor, kExch, kCas };

template <class T>
T combine_integers(uint8_t op, T old, T b) {
  using U = std::make_unsigned_t<T>;
  switch (op) {
    case kAdd:
      return static_cast<T>(static_cast<U>(old) + static_cast<U>(b));
    case kMin:
      return old < b ? old : b;
    case kMax:
      return old > b ? old : b;
    case kInc:
      return old >= b ? T{0} : static_cast<T>(old + 1);
    case kDec:
      return old == 0 || old > b ? b : static_cast<T>(old - 1);
    case kAnd:
      return old & b;
    case kOr:
      return old | b;
    case kXor:
      return old ^ b;
    default:
      return b;
  }
}

uint16_t add_halves(uint64_t a, uint64_t b) {
  return float_to_half(half_to_float(static_cast<uint16_t>(a)) +
                       half_to_float(static_cast<uint16_t>(b)));
}

// The value after `op`, of old and operand bits.
uint64_t combine(uint8_t op, Type t, uint64_t old, uint64_t b, bool global) {
  switch (t) {
    case Type::kS32:
      return static_cast<uint32_t>(
          combine_integers(op, static_cast<int32_t>(old), static_cast<int32_t>(b)));
    case Type::kU32:
    case Type::kB32:
      return combine_integers(op, static_cast<uint32_t>(old), static_cast<uint32_t>(b));
    case Type::kS64:
      return static_cast<uint64_t>(
          combine_integers(op, static_cast<int64_t>(old), static_cast<int64_t>(b)));
    case Type::kU64:
    case Type::kB64:
      return combine_integers(op, old, b);
    case Type::kF32: {
      // Global memory's adder flushes denormals.
      float x = bit_cast<float>(static_cast<uint32_t>(old)),
            y = bit_cast<float>(static_cast<uint32_t>(b));
      if (global) x = flush(x), y = flush(y);
      return bit_cast<uint32_t>(canonical(global ? flush(x + y) : x + y));
    }
    case Type::kF64:
      return bit_cast<uint64_t>(canonical(bit_cast<double>(old) + bit_cast<double>(b)));
    case Type::kF16x2:
      return uint32_t{add_halves(old >> 16, b >> 16)} << 16 | add_halves(old, b);
    default:
      return add_halves(old, b);
  }
}

uint64_t register_value(const Warp& w, Ref r, unsigned bits, int l) {
  return bits == 16   ? w.row<uint16_t>(r)[l]
         : bits == 32 ? w.row<uint32_t>(r)[l]
                      : w.row<uint64_t>(r)[l];
}

// in.count: type, in.target: operation and whether there is a destination, in.mode: space.
void atomic(Warp& w, const Instr& in, uint32_t exec) {
  const auto t = static_cast<Type>(in.count);
  const unsigned bits = bits_of(t);
  const auto op = static_cast<uint8_t>(in.target & 255);
  uint64_t address[kLanes];
  addresses(w, in, exec, address);
  require_defined(w, in.b, exec, "its operand");
  if (op == kCas) require_defined(w, in.c, exec, "its operand");
  LaunchState& state = *w.block->launch;
  // One read-modify-write at a time, over all host threads.
  std::unique_lock<std::mutex> lock(state.atomics, std::defer_lock);
  if (state.concurrent) lock.lock();
  uint64_t olds[kLanes] = {};
  for_spaces(in.mode, exec, address, [&](uint8_t space, uint32_t lanes, const uint64_t* at) {
    if (space != kGlobal && space != kShared) {
      w.fail(Trap::kUndeclared, __builtin_ctz(lanes), "atomics are of global and shared memory");
    }
    uint8_t* host[kLanes];
    if (space == kGlobal) {
      read_global(w, lanes, at, bits / 8, access_of(in, Kind::kAtomic), host);
    } else {
      count_wavefronts(w.block->worker->shared_store, lanes, at, bits / 8);
      read_shared(w, lanes, at, bits / 8, access_of(in, Kind::kAtomic), host);
    }
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      uint64_t old = 0;
      std::memcpy(&old, host[l], bits / 8);
      const uint64_t b = register_value(w, in.b, bits, l);
      const uint64_t after = op == kCas    ? (old == b ? register_value(w, in.c, bits, l) : old)
                             : op == kExch ? b
                                           : combine(op, t, old, b, space == kGlobal);
      std::memcpy(host[l], &after, bits / 8);
      olds[l] = old;
    }
  });
  if (!(in.target >> 8)) return;
  if (bits == 16) {
    uint16_t narrow[kLanes];
    for (int l = 0; l < kLanes; ++l) narrow[l] = static_cast<uint16_t>(olds[l]);
    w.write(in.d, narrow, exec);
  } else if (bits == 32) {
    uint32_t narrow[kLanes];
    for (int l = 0; l < kLanes; ++l) narrow[l] = static_cast<uint32_t>(olds[l]);
    w.write(in.d, narrow, exec);
  } else {
    w.write(in.d, olds, exec);
  }
  w.define(in.d, exec, kAllLanes);
}

// bfloat16 has atomics since sm_90.
bool atomic_exists(uint8_t op, Type t, bool returns) {
  const bool integer = t == Type::kU32 || t == Type::kS32 || t == Type::kU64;
  const bool bits = t == Type::kB32 || t == Type::kB64;
  switch (op) {
    case kAdd:
      return integer || t == Type::kF32 || t == Type::kF64 || t == Type::kF16 || t == Type::kF16x2;
    case kMin:
    case kMax:
      return integer || t == Type::kS64;
    case kInc:
    case kDec:
      return t == Type::kU32;
    case kExch:
      return bits && returns;
    case kCas:
      return (bits || t == Type::kB16) && returns;
    default:
      return bits;
  }
}

void atomic_rule(Decoder& d, Instr& in) {
  const bool returns = d.base() == "atom";
  take_order(d, in);
  std::string name;
  const Space space = take_space(d, name);
  const int op =
      d.take_one_of({"add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"});
  const bool noftz = d.take("noftz"), policy = space == kGlobal && d.take("L2::cache_hint");
  const Type t = d.type();
  if (op < 0 || !atomic_exists(static_cast<uint8_t>(op), t, returns) || space > kShared) return;
  if (noftz != (t == Type::kF16 || t == Type::kF16x2)) return;
  const size_t first = returns ? 1 : 0, operands = first + (op == kCas ? 3 : 2) + (policy ? 1 : 0);
  d.expect(operands, operands);
  take_policy(d, policy);
  const unsigned bits = bits_of(t);
  if (returns) in.d = d.destination(0, bits);
  d.address(first, name, in);
  in.b = d.source(first + 1, t);
  if (op == kCas) in.c = d.source(first + 2, t);
  in.count = static_cast<uint8_t>(t);
  in.target = static_cast<uint32_t>(op) | (returns ? 256u : 0u);
  in.mode = space;
  note_access(d, space, bits / 8);
  in.run = atomic;
}

// ---- cp.async -----------------------------------------------------------------------------------

// in.d: shared address, in.a: global, in.b: bytes to read when not all (kZeroFill).
void copy_async(Warp& w, const Instr& in, uint32_t exec) {
  uint64_t from[kLanes], to[kLanes];
  addresses(w, in, exec, from);
  require_defined(w, in.d, exec, "its destination");
  for (int l = 0; l < kLanes; ++l) {
    to[l] = in.target == 32 ? w.row<uint32_t>(in.d)[l] : w.row<uint64_t>(in.d)[l];
    to[l] += static_cast<uint64_t>(static_cast<int32_t>(in.list));
    if (in.target == 32) to[l] &= ~0u;
  }
  const uint32_t n = in.size;
  uint32_t size[kLanes];
  std::fill(size, size + kLanes, n);
  if (in.flags & kZeroFill) {
    require_defined(w, in.b, exec, "its source size");
    for (int l = 0; l < kLanes; ++l) {
      size[l] = std::min(w.row<uint32_t>(in.b)[l], n);
    }
  }
  reserve_shared(w, exec, to, n);
  count_wavefronts(w.block->worker->shared_store, exec, to, n);
  uint8_t data[kLanes][16] = {};
  // What is short of n bytes is rare: it is read in powers of two.
  for (uint32_t part = n; part >= 1; part /= 2) {
    uint32_t lanes = 0;
    uint64_t at[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      lanes |= uint32_t{(size[l] & part) != 0} << l;
      at[l] = from[l] + (size[l] & ~(2 * part - 1));
    }
    lanes &= exec;
    if (!lanes) continue;
    uint8_t* host[kLanes];
    read_global(w, lanes, at, part, {Kind::kLoad, false, false}, host);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      std::memcpy(data[l] + (at[l] - from[l]), host[l], part);
    }
  }
  for (uint32_t rest = exec; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    Warp::Copy copy;
    copy.to = static_cast<uint32_t>(to[l]);
    copy.bytes = static_cast<uint8_t>(n);
    copy.lane = static_cast<uint8_t>(l);
    copy.group = w.committed[l];
    std::memcpy(copy.data, data[l], sizeof(copy.data));
    w.copies.push_back(copy);
  }
}

void commit_group(Warp& w, const Instr&, uint32_t exec) {
  for (int l = 0; l < kLanes; ++l) w.committed[l] += exec >> l & 1;
}

// The copies of all but the last in.immediate groups of each lane are done.
void wait_group(Warp& w, const Instr& in, uint32_t exec) {
  if (in.mode) commit_group(w, in, exec);
  const auto pending = static_cast<uint32_t>(in.immediate);
  size_t kept = 0;
  for (size_t i = 0; i < w.copies.size(); ++i) {
    const Warp::Copy& copy = w.copies[i];
    if (exec >> copy.lane & 1 && copy.group + pending < w.committed[copy.lane]) {
      land_copy(w, copy);
    } else {
      w.copies[kept++] = copy;
    }
  }
  w.copies.resize(kept);
}

void cp_rule(Decoder& d, Instr& in) {
  if (!d.take("async")) return;
  if (d.take("commit_group")) {
    d.expect(0, 0);
    in.run = commit_group;
    return;
  }
  if (d.take("wait_all")) {
    d.expect(0, 0);
    in.mode = 1;
    in.run = wait_group;
    return;
  }
  if (d.take("wait_group")) {
    d.expect(1, 1);
    in.immediate = static_cast<int64_t>(d.immediate(0, 1u << 20));
    in.run = wait_group;
    return;
  }
  const int cache = d.take_one_of({"ca", "cg"});
  if (cache < 0) return;
  if (d.take_one_of({"shared", "shared::cta"}) < 0 || !d.take("global")) return;
  d.take_one_of({"L2::64B", "L2::128B", "L2::256B"});
  const bool policy = d.take("L2::cache_hint");
  d.expect(policy ? 4 : 3, policy ? 5 : 4);
  take_policy(d, policy);
  const uint64_t n = d.immediate(2, 16);
  if (n != 16 && (cache == 1 || (n != 4 && n != 8))) {
    d.unknown(cache ? "it copies 16 bytes" : "it copies 4, 8 or 16 bytes");
  }
  in.size = static_cast<uint8_t>(n);
  // The shared address first: Decoder::address fills in.a.
  Instr shared;
  d.address(0, "shared", shared);
  d.address(1, "global", in);
  in.d = shared.a;
  in.target = shared.flags & kAddress32 ? 32 : 64;
  if (shared.immediate != static_cast<int32_t>(shared.immediate)) return;
  in.list = static_cast<uint32_t>(shared.immediate);
  if (d.count() > (policy ? 4u : 3u)) {
    in.b = d.source(3, 32);
    in.flags |= kZeroFill;
  }
  note_access(d, kGeneric, static_cast<uint32_t>(n));
  in.run = copy_async;
}

// ---- ldmatrix, stmatrix -------------------------------------------------------------------------

// in.count matrices of 8 rows of 16 bytes; in.mode: transposed, in.target: generic addresses.
// Returns the lanes that have a row's address.
uint32_t row_addresses(Warp& w, const Instr& in, uint32_t exec, uint64_t* address) {
  if (exec != kAllLanes) {
    w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec), "not all 32 threads of the warp are here");
  }
  const uint32_t rows = in.count == 4 ? kAllLanes : (1u << (8 * in.count)) - 1;
  addresses(w, in, rows, address);
  if (in.target) {
    for (int l = 0; l < kLanes; ++l) address[l] -= kSharedWindow;
  }
  return rows;
}

void load_matrix(Warp& w, const Instr& in, uint32_t exec) {
  uint64_t address[kLanes];
  const uint32_t rows = row_addresses(w, in, exec, address);
  uint8_t* host[kLanes];
  count_wavefronts(w.block->worker->shared_load, rows, address, 16);
  const uint32_t defined = read_shared(w, rows, address, 16, {Kind::kLoad, false, false}, host);
  const Ref* list = &w.block->launch->program.lists[in.list];
  for (int m = 0; m < in.count; ++m) {
    uint32_t result[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      uint32_t pair = 0;
      for (int e = 0; e < 2; ++e) {
        const int row = in.mode ? 2 * (l % 4) + e : l / 4,
                  column = in.mode ? l / 4 : 2 * (l % 4) + e;
        uint16_t element;
        std::memcpy(&element, host[8 * m + row] + 2 * column, 2);
        pair |= uint32_t{element} << (16 * e);
      }
      result[l] = pair;
    }
    uint32_t sources = 0;
    for (int l = 0; l < kLanes; ++l) {
      const uint32_t rows_read = in.mode ? 3u << (2 * (l % 4)) : 1u << (l / 4);
      sources |= uint32_t{(defined >> (8 * m) & rows_read) == rows_read} << l;
    }
    w.write(list[m], result, exec);
    w.define(list[m], exec, sources);
  }
}

void store_matrix(Warp& w, const Instr& in, uint32_t exec) {
  uint64_t address[kLanes];
  const uint32_t rows = row_addresses(w, in, exec, address);
  const Ref* list = &w.block->launch->program.lists[in.list];
  alignas(16) uint16_t values[kLanes][8];
  uint32_t defined[8] = {};  // of each column, the rows
  for (int m = 0; m < in.count; ++m) {
    const auto* pairs = w.row<uint32_t>(list[m]);
    for (int l = 0; l < kLanes; ++l) {
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * m + (in.mode ? 2 * (l % 4) + e : l / 4),
                  column = in.mode ? l / 4 : 2 * (l % 4) + e;
        values[row][column] = static_cast<uint16_t>(pairs[l] >> (16 * e));
        defined[column] |= (w.is_defined(list[m]) >> l & 1) << row;
      }
    }
  }
  check_shared(w, rows, address, 16);
  count_wavefronts(w.block->worker->shared_store, rows, address, 16);
  // A row at a time; where elements are undefined, the cells that memory has.
  uint32_t all = rows;
  for (const uint32_t column : defined) all &= column;
  const uint32_t n = all == rows ? 16 : std::max(w.block->launch->program.shared_granule, 2u);
  for (uint32_t at = 0; at < 16; at += n) {
    uint32_t whole = kAllLanes;
    for (uint32_t column = at / 2; column < (at + n) / 2; ++column) whole &= defined[column];
    const auto* bytes = reinterpret_cast<const uint8_t*>(values) + at;
    write_shared(w, rows, address, n, {Kind::kStore, false, false}, bytes, whole);
    for (uint64_t& a : address) a += n;
  }
}

void matrix_rule(Decoder& d, Instr& in, bool is_load) {
  if (!d.take("sync") || !d.take("aligned") || !d.take("m8n8")) return;
  const int matrices = d.take_one_of({"x1", "x2", "x4"});
  in.mode = d.take("trans");
  const bool shared = d.take("shared") || d.take("shared::cta");
  if (matrices < 0 || d.type() != Type::kB16) return;
  d.expect(2, 2);
  in.count = static_cast<uint8_t>(1 << matrices);
  const Operand& registers = d.operand(is_load ? 0 : 1);
  const std::vector<Operand>& parts = registers.parts;
  if (registers.kind != Operand::kVector || parts.size() != in.count) {
    d.unknown("the number of registers is not that of its matrices");
  }
  std::vector<Ref> refs;
  for (const Operand& p : parts) {
    if (!is_load && p.kind != Operand::kRegister) d.unknown("a matrix is in registers");
    refs.push_back(is_load ? d.destination(p, 32) : d.source(p, 32));
  }
  in.list = d.list(refs);
  d.address(is_load ? 1 : 0, shared ? "shared" : "", in);
  in.target = !shared;
  in.run = is_load ? load_matrix : store_matrix;
}

void ldmatrix_rule(Decoder& d, Instr& in) { matrix_rule(d, in, true); }
void stmatrix_rule(Decoder& d, Instr& in) {
  d.require_target(90);
  matrix_rule(d, in, false);
}

// ---- the rest -----------------------------------------------------------------------------------

void nothing(Warp&, const Instr&, uint32_t) {}

void prefetch_rule(Decoder& d, Instr& in) {
  std::string name;
  if (d.base() == "prefetchu") {
    if (!d.take("L1")) return;
  } else {
    const Space space = take_space(d, name);
    if (space != kGeneric && name != "global" && space != kLocal) return;
    const bool hint =
        name == "global" && d.take_one_of({"L2::evict_last", "L2::evict_normal"}) >= 0;
    if (!hint && d.take_one_of({"L1", "L2"}) < 0) return;
  }
  d.expect(1, 1);
  d.address(0, name, in);
  in.run = nothing;
}

void policy_value(Warp& w, const Instr& in, uint32_t exec) {
  const uint64_t value[kLanes] = {};
  w.write(in.d, value, exec);
  w.define(in.d, exec, kAllLanes);
}

void createpolicy_rule(Decoder& d, Instr& in) {
  if (!d.take("fractional")) return;
  const int primary = d.take_one_of(
      {"L2::evict_last", "L2::evict_normal", "L2::evict_first", "L2::evict_unchanged"});
  if (primary < 0) return;
  d.take_one_of({"L2::evict_first", "L2::evict_unchanged"});
  if (d.type() != Type::kB64) return;
  d.expect(1, 2);
  in.d = d.destination(0, 64);
  in.run = policy_value;
}

}  // namespace

std::vector<RuleEntry> memory_rules() {
  return {
      {"ld", ld_rule, Class::kGlobalLoad},
      {"ldu", ld_rule, Class::kGlobalLoad},
      {"st", st_rule, Class::kGlobalStore},
      {"atom", atomic_rule, Class::kAtomic},
      {"red", atomic_rule, Class::kAtomic},
      {"cp", cp_rule, Class::kAsyncCopy},
      {"ldmatrix", ldmatrix_rule, Class::kSharedLoad},
      {"stmatrix", stmatrix_rule, Class::kSharedStore},
      {"prefetch", prefetch_rule, Class::kOther},
      {"prefetchu", prefetch_rule, Class::kOther},
      {"createpolicy", createpolicy_rule, Class::kOther},
  };
}

}  // namespace effnet_fast::ptx
