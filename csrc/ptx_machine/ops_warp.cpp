// What lanes and warps do together, and where they go: shuffles, votes, barriers, fences, branches.
#include <algorithm>

#include "access.h"
#include "decode.h"
#include "lanes.h"

namespace effnet_fast::ptx {
namespace {

void require_defined(const Warp& w, Ref r, uint32_t exec, const char* what) {
  const uint32_t undefined = exec & ~w.is_defined(r);
  if (undefined) {
    w.fail(Trap::kUninitialized, __builtin_ctz(undefined), std::string(what) + " was never set");
  }
}

// The masks that the lanes name in `r`: each lane must be in its own. Returns their union.
uint32_t member_masks(const Warp& w, Ref r, uint32_t exec, uint32_t* masks) {
  require_defined(w, r, exec, "its member mask");
  std::memcpy(masks, w.row<uint32_t>(r), kLanes * sizeof(uint32_t));
  uint32_t all = 0;
  for (uint32_t rest = exec; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (!(masks[l] >> l & 1)) {
      w.fail(Trap::kDivergentBarrier, l, "the thread is not in the member mask that it gives");
    }
    all |= masks[l];
  }
  return all;
}

// Calls f(lanes) for each set of lanes that name the same mask.
template <class F>
void for_groups(uint32_t exec, const uint32_t* masks, F f) {
  for (uint32_t rest = exec; rest;) {
    const uint32_t mask = masks[__builtin_ctz(rest)];
    uint32_t lanes = 0;
    for (int l = 0; l < kLanes; ++l) lanes |= uint32_t{masks[l] == mask} << l;
    lanes &= rest;
    f(lanes);
    rest &= ~lanes;
  }
}

// ---- shfl ---------------------------------------------------------------------------------------

enum Shuffle : uint8_t { kUp, kDown, kBfly, kIdx };

// d|p = in.d|in.c, a, b = in.a, in.b, the clamp and the member mask in the list.
void shuffle(Warp& w, const Instr& in, uint32_t exec) {
  const Ref* list = &w.block->launch->program.lists[in.list];
  uint32_t masks[kLanes];
  if (!w.gather(exec, member_masks(w, list[1], exec, masks))) return;
  require_defined(w, in.b, exec, "its lane");
  require_defined(w, list[0], exec, "its clamp");
  const auto* a = w.row<uint32_t>(in.a);
  const auto *b = w.row<uint32_t>(in.b), *c = w.row<uint32_t>(list[0]);
  uint32_t result[kLanes], inside = 0, sources = 0;
  for (int l = 0; l < kLanes; ++l) {
    const int segment = static_cast<int>(c[l] >> 8 & 31), clamp = static_cast<int>(c[l] & 31);
    const int value = static_cast<int>(b[l] & 31);
    const int most = (l & segment) | (clamp & ~segment), least = l & segment;
    int from = 0;
    bool in_range = false;
    switch (in.mode) {
      case kUp:
        from = l - value;
        in_range = from >= most;
        break;
      case kDown:
        from = l + value;
        in_range = from <= most;
        break;
      case kBfly:
        from = l ^ value;
        in_range = from <= most;
        break;
      default:
        from = least | (value & ~segment);
        in_range = from <= most;
        break;
    }
    if (!in_range) from = l;
    inside |= uint32_t{in_range} << l;
    result[l] = a[from];
    // What a lane that is not taking part holds is not defined.
    sources |= (exec & w.is_defined(in.a) & masks[l]) >> from & 1u ? 1u << l : 0u;
  }
  w.write(in.d, result, exec);
  w.define(in.d, exec, sources);
  if (in.count) {
    w.write_predicate(in.c, inside, exec);
    w.define(in.c, exec, kAllLanes);
  }
}

void shfl_rule(Decoder& d, Instr& in) {
  if (!d.take("sync")) return;
  const int mode = d.take_one_of({"up", "down", "bfly", "idx"});
  if (mode < 0 || d.type() != Type::kB32) return;
  d.expect(5, 5);
  Operand to = d.operand(0);
  in.count = 0;
  if (!to.parts.empty()) {
    in.c = d.destination(to.parts[0], 1);
    in.count = 1;
    to.parts.clear();
  }
  in.d = d.destination(to, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  in.list = d.list({d.source(3, 32), d.source(4, 32)});
  in.mode = static_cast<uint8_t>(mode);
  in.run = shuffle;
}

// ---- vote, match, redux -------------------------------------------------------------------------

enum Vote : uint8_t { kAll, kAny, kUni, kBallot };

void vote(Warp& w, const Instr& in, uint32_t exec) {
  uint32_t masks[kLanes];
  if (!w.gather(exec, member_masks(w, in.b, exec, masks))) return;
  require_defined(w, in.a, exec, "its predicate");
  const uint32_t p = w.predicate(in.a) ^ (in.immediate & 1 ? kAllLanes : 0);
  for_groups(exec, masks, [&](uint32_t lanes) {
    const uint32_t yes = p & lanes;
    if (in.mode == kBallot) {
      uint32_t result[kLanes];
      std::fill(result, result + kLanes, yes);
      w.write(in.d, result, lanes);
    } else {
      const bool holds = in.mode == kAll   ? yes == lanes
                         : in.mode == kAny ? yes != 0
                                           : yes == lanes || yes == 0;
      w.write_predicate(in.d, holds ? kAllLanes : 0, lanes);
    }
    w.define(in.d, lanes, kAllLanes);
  });
}

void vote_rule(Decoder& d, Instr& in) {
  if (!d.take("sync")) return;
  const int mode = d.take_one_of({"all", "any", "uni", "ballot"});
  const Type t = d.type();
  if (mode < 0 || t != (mode == kBallot ? Type::kB32 : Type::kPred)) return;
  d.expect(3, 3);
  Operand p = d.operand(1);
  in.immediate = p.negated;
  p.negated = false;
  in.d = d.destination(0, t);
  in.a = d.source(p, 1);
  in.b = d.source(2, 32);
  in.mode = static_cast<uint8_t>(mode);
  in.run = vote;
}

// Lanes with an equal value; of match.all the whole group or none.
template <class T>
void match(Warp& w, const Instr& in, uint32_t exec) {
  uint32_t masks[kLanes];
  if (!w.gather(exec, member_masks(w, in.b, exec, masks))) return;
  require_defined(w, in.a, exec, "its value");
  const T* a = w.row<T>(in.a);
  for_groups(exec, masks, [&](uint32_t lanes) {
    uint32_t result[kLanes] = {}, all_equal = 0;
    for (int l = 0; l < kLanes; ++l) {
      for (int other = 0; other < kLanes; ++other) {
        if (lanes >> other & 1) result[l] |= uint32_t{a[other] == a[l]} << other;
      }
      all_equal |= uint32_t{result[l] == lanes} << l;
      if (in.mode && result[l] != lanes) result[l] = 0;
    }
    w.write(in.d, result, lanes);
    w.define(in.d, lanes, kAllLanes);
    if (in.count) {
      w.write_predicate(in.c, all_equal, lanes);
      w.define(in.c, lanes, kAllLanes);
    }
  });
}

void match_rule(Decoder& d, Instr& in) {
  const int mode = d.take_one_of({"any", "all"});
  if (mode < 0 || !d.take("sync")) return;
  const Type t = d.type();
  d.expect(3, 3);
  Operand to = d.operand(0);
  in.count = 0;
  if (!to.parts.empty()) {
    if (mode == 0) return;
    in.c = d.destination(to.parts[0], 1);
    in.count = 1;
    to.parts.clear();
  }
  in.d = d.destination(to, 32);
  in.a = d.source(1, t);
  in.b = d.source(2, 32);
  in.mode = static_cast<uint8_t>(mode);
  if (t == Type::kB32) in.run = match<uint32_t>;
  if (t == Type::kB64) in.run = match<uint64_t>;
}

enum Reduce : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor };

void redux(Warp& w, const Instr& in, uint32_t exec) {
  uint32_t masks[kLanes];
  if (!w.gather(exec, member_masks(w, in.b, exec, masks))) return;
  require_defined(w, in.a, exec, "its value");
  const auto* a = w.row<uint32_t>(in.a);
  for_groups(exec, masks, [&](uint32_t lanes) {
    uint32_t total = a[__builtin_ctz(lanes)];
    for (uint32_t rest = lanes & (lanes - 1); rest; rest &= rest - 1) {
      const uint32_t x = a[__builtin_ctz(rest)];
      const auto sx = static_cast<int32_t>(x), st = static_cast<int32_t>(total);
      switch (in.mode) {
        case kAdd:
          total += x;
          break;
        case kMin:
          total = in.count ? static_cast<uint32_t>(std::min(st, sx)) : std::min(total, x);
          break;
        case kMax:
          total = in.count ? static_cast<uint32_t>(std::max(st, sx)) : std::max(total, x);
          break;
        case kAnd:
          total &= x;
          break;
        case kOr:
          total |= x;
          break;
        default:
          total ^= x;
          break;
      }
    }
    uint32_t result[kLanes];
    std::fill(result, result + kLanes, total);
    w.write(in.d, result, lanes);
    w.define(in.d, lanes, kAllLanes);
  });
}

void redux_rule(Decoder& d, Instr& in) {
  if (!d.take("sync")) return;
  const int op = d.take_one_of({"add", "min", "max", "and", "or", "xor"});
  const Type t = d.type();
  if (op < 0 || (op >= kAnd ? t != Type::kB32 : t != Type::kU32 && t != Type::kS32)) return;
  d.expect(3, 3);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.b = d.source(2, 32);
  in.mode = static_cast<uint8_t>(op);
  in.count = t == Type::kS32;
  in.run = redux;
}

void active_mask(Warp& w, const Instr& in, uint32_t exec) {
  uint32_t result[kLanes];
  std::fill(result, result + kLanes, exec);
  w.write(in.d, result, exec);
  w.define(in.d, exec, kAllLanes);
}

void activemask_rule(Decoder& d, Instr& in) {
  if (d.type() != Type::kB32) return;
  d.expect(1, 1);
  in.d = d.destination(0, 32);
  in.run = active_mask;
}

// ---- barriers -----------------------------------------------------------------------------------

// Lanes may meet at different instructions of this kind.
void warp_sync(Warp& w, const Instr& in, uint32_t exec) {
  uint32_t masks[kLanes];
  const uint32_t missing = member_masks(w, in.a, exec, masks) & w.live & ~exec;
  const auto& code = w.block->launch->program.code;
  uint32_t arrived = 0;
  for (uint32_t rest = missing & w.parked; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    if (code[w.pcs[l]].run == warp_sync) arrived |= 1u << l;
  }
  if (missing != arrived) {
    w.gather(exec, exec | missing);
    return;
  }
  for_groups(exec, masks, [&](uint32_t lanes) {
    const uint32_t group = lanes | (masks[__builtin_ctz(lanes)] & arrived);
    if (group == w.live) {
      w.block->ordering.sync_warp(w.index);
    } else {
      w.block->ordering.sync_lanes(w.index, group);
    }
  });
  if (!arrived) return;
  for (int l = 0; l < kLanes; ++l) {
    if (w.active >> l & 1) w.pcs[l] = w.pc + 1;
    if (arrived >> l & 1) ++w.pcs[l];
  }
  w.parked &= ~arrived;
  w.moved = true;
}

enum BarrierFlags : uint16_t { kAligned = 2, kArrive = 4, kReduce = 8, kNegated = 16 };
enum BarrierReduce : uint8_t { kPopc, kAndPred, kOrPred };

// One number for the whole warp.
uint32_t uniform(const Warp& w, Ref r, uint32_t exec, const char* what) {
  require_defined(w, r, exec, what);
  const auto* row = w.row<uint32_t>(r);
  const uint32_t value = row[__builtin_ctz(exec)];
  for (int l = 0; l < kLanes; ++l) {
    if (exec >> l & 1 && row[l] != value) {
      w.fail(Trap::kDivergentBarrier, l, std::string(what) + " differs within the warp");
    }
  }
  return value;
}

// in.a: number, in.b: threads (when in.count), in.c: predicate of bar.red, in.d: its result.
void block_barrier(Warp& w, const Instr& in, uint32_t exec) {
  if (exec != w.live) {
    if (in.flags & kAligned) {
      const int l = __builtin_ctz(w.live & ~exec);
      w.fail(Trap::kDivergentBarrier, l,
             "thread " + w.block->describe_thread(w.thread(l)) + " of the warp is not here");
    }
    if (!w.gather(exec, w.live)) return;
  }
  const uint32_t id = uniform(w, in.a, exec, "its barrier");
  if (id >= 16) w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec), "there are 16 barriers");
  Barrier& barrier = w.block->barriers[id];
  uint32_t expected = 0;
  if (in.count) {
    expected = uniform(w, in.b, exec, "its thread count");
    if (expected == 0 || expected % kLanes) {
      w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec),
             "its thread count " + std::to_string(expected) + " is not a multiple of 32");
    }
  }
  if (barrier.arrived_warps && barrier.expected != expected) {
    w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec),
           "barrier " + std::to_string(id) + " is already waiting for " +
               std::to_string(barrier.expected) + " threads, not " + std::to_string(expected));
  }
  if (barrier.arrived_warps >> w.index & 1) {
    w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec),
           "the warp is at barrier " + std::to_string(id) + " for the second time");
  }
  barrier.expected = expected;
  barrier.arrived_warps |= 1u << w.index;
  barrier.arrived_threads += kLanes;
  w.block->worker->arrive(w, barrier);
  if (in.flags & kReduce) {
    require_defined(w, in.c, exec, "its predicate");
    const uint32_t p = w.predicate(in.c) ^ (in.flags & kNegated ? kAllLanes : 0);
    barrier.votes += static_cast<uint32_t>(__builtin_popcount(p & exec));
    barrier.ballots += static_cast<uint32_t>(__builtin_popcount(exec));
  }
  if (in.flags & kArrive) return;
  w.stop = Stop::kAtBarrier;
  w.barrier = id;
  w.waiting = in.flags & kReduce ? &in : nullptr;
  w.waiting_exec = exec;
}

void barrier_rule(Decoder& d, Instr& in) {
  if (d.base() == "bar" && d.take("warp")) {
    if (!d.take("sync")) return;
    d.expect(1, 1);
    in.a = d.source(0, 32);
    in.run = warp_sync;
    return;
  }
  d.take("cta");
  const int what = d.take_one_of({"sync", "arrive", "red"});
  if (d.base() == "bar" || d.take("aligned")) in.flags |= kAligned;
  if (what < 0) return;
  size_t first = 0, last = d.count();
  if (what == 1) in.flags |= kArrive;
  if (what == 2) {
    in.flags |= kReduce;
    const int op = d.take_one_of({"popc", "and", "or"});
    const Type t = d.type();
    if (op < 0 || t != (op == 0 ? Type::kU32 : Type::kPred)) return;
    d.expect(3, 4);
    in.mode = static_cast<uint8_t>(op);
    in.d = d.destination(0, t);
    Operand p = d.operand(d.count() - 1);
    if (p.negated) in.flags |= kNegated;
    p.negated = false;
    in.c = d.source(p, 1);
    first = 1;
    --last;
  }
  if (last - first < (what == 1 ? 2u : 1u) || last - first > 2) d.unknown("wrong operands");
  in.a = d.source(first, 32);
  in.count = last - first == 2;
  if (in.count) in.b = d.source(first + 1, 32);
  in.run = block_barrier;
}

void fence_all(Warp& w, const Instr&, uint32_t) { fence(w); }
void fence_block(Warp&, const Instr&, uint32_t) {}

void fence_rule(Decoder& d, Instr& in) {
  d.expect(0, 0);
  if (d.base() == "membar") {
    const int scope = d.take_one_of({"cta", "gl", "sys"});
    if (scope >= 0) in.run = scope ? fence_all : fence_block;
    return;
  }
  d.take_one_of({"acq_rel", "sc", "acquire", "release"});
  const int scope = d.take_one_of({"cta", "gpu", "sys"});
  if (scope >= 0) in.run = scope ? fence_all : fence_block;
}

// ---- control ------------------------------------------------------------------------------------

void branch(Warp& w, const Instr& in, uint32_t exec) { w.diverge(exec, in.target); }

void bra_rule(Decoder& d, Instr& in) {
  d.take("uni");
  d.expect(1, 1);
  in.target = d.label(0);
  in.run = branch;
}

void leave(Warp& w, const Instr&, uint32_t exec) { w.exit_lanes(exec); }

void ret_rule(Decoder& d, Instr& in) {
  if (d.base() == "ret") d.take("uni");
  d.expect(0, 0);
  in.run = leave;
}

void device_trap(Warp& w, const Instr&, uint32_t exec) {
  w.fail(Trap::kDeviceTrap, __builtin_ctz(exec), "the kernel stopped itself");
}

void trap_rule(Decoder& d, Instr& in) {
  d.expect(0, 0);
  in.run = device_trap;
}

void nothing(Warp&, const Instr&, uint32_t) {}

void nothing_rule(Decoder& d, Instr& in) {
  if (d.base() == "nanosleep") {
    if (d.type() != Type::kU32) return;
    d.expect(1, 1);
    in.a = d.source(0, 32);
  }
  in.run = nothing;
}

}  // namespace

uint32_t barrier_result(const Instr& in, const Barrier& barrier) {
  switch (in.mode) {
    case kPopc:
      return barrier.votes;
    case kAndPred:
      return barrier.votes == barrier.ballots;
    default:
      return barrier.votes != 0;
  }
}
bool barrier_counts(const Instr& in) { return in.mode == kPopc; }

std::vector<RuleEntry> warp_rules() {
  const Class w = Class::kWarp, b = Class::kBranch;
  return {
      {"shfl", shfl_rule, w},
      {"vote", vote_rule, w},
      {"match", match_rule, w},
      {"redux", redux_rule, w},
      {"activemask", activemask_rule, w},
      {"bar", barrier_rule, Class::kBarrier},
      {"barrier", barrier_rule, Class::kBarrier},
      {"membar", fence_rule, Class::kBarrier},
      {"fence", fence_rule, Class::kBarrier},
      {"bra", bra_rule, b},
      {"ret", ret_rule, b},
      {"exit", ret_rule, b},
      {"trap", trap_rule, Class::kOther},
      {"brkpt", trap_rule, Class::kOther},
      {"nanosleep", nothing_rule, Class::kOther},
  };
}

}  // namespace effnet_fast::ptx
