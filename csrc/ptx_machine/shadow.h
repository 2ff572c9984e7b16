// Who touched which memory when, and what happened before what.
//
// Every warp has a clock. It ticks when the warp synchronises: with its own lanes (bar.warp.sync),
// with its block (a barrier), with other blocks (fence, then atomic). An access is recorded with
// its thread and the warp's clock. It happened before what another thread does now when that
// thread's warp has since learned, through barriers, of a later clock. Two accesses of which
// neither happened before the other, one of them a write of a different value, are a race, in
// whatever order the machine ran them. Strong accesses, atomic or volatile, do not race with each
// other.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace effnet_fast::ptx {

inline constexpr uint32_t kMaxWarps = 32;
inline constexpr uint32_t kThreadBits = 10;
inline constexpr uint32_t kThreadMask = (1u << kThreadBits) - 1;

// Within a block.
struct Ordering {
  uint32_t warps = 0;
  uint32_t full_barriers = 0;  // in which every live warp took part
  uint32_t other_barriers = 0;
  uint32_t clock[kMaxWarps];
  uint32_t synced[kMaxWarps];           // the clock when all lanes of the warp last synchronised
  uint32_t seen[kMaxWarps][kMaxWarps];  // of warp a: clocks of warp b below this happened before
  uint32_t at_full[kMaxWarps];          // clock after the last full barrier
  // [lane a][lane b]: clocks of b below this happened before, of warps of which some lanes alone
  // have synchronised.
  std::unique_ptr<uint32_t[]> lanes[kMaxWarps];

  void reset(uint32_t count) {
    warps = count;
    full_barriers = 1;
    other_barriers = 0;
    for (uint32_t a = 0; a < count; ++a) {
      clock[a] = synced[a] = at_full[a] = 1;
      lanes[a].reset();
      std::fill(seen[a], seen[a] + count, 0u);
    }
  }

  void tick(uint32_t warp) { ++clock[warp]; }
  void sync_warp(uint32_t warp) { synced[warp] = ++clock[warp]; }
  void sync_lanes(uint32_t warp, uint32_t group) {
    if (!lanes[warp]) lanes[warp] = std::make_unique<uint32_t[]>(32 * 32);
    uint32_t* known = lanes[warp].get();
    uint32_t joined[32] = {};
    const uint32_t now = ++clock[warp];
    for (uint32_t a = 0; a < 32; ++a) {
      if (!(group >> a & 1)) continue;
      for (uint32_t b = 0; b < 32; ++b) joined[b] = std::max(joined[b], known[32 * a + b]);
      joined[a] = now;
    }
    for (uint32_t a = 0; a < 32; ++a) {
      if (group >> a & 1) std::copy(joined, joined + 32, known + size_t{32} * a);
    }
  }

  // A warp reaches a barrier. What it does afterwards, when it only arrives, is not in `joined`.
  void arrive(uint32_t warp, uint32_t* joined) {
    for (uint32_t b = 0; b < warps; ++b) joined[b] = std::max(joined[b], seen[warp][b]);
    sync_warp(warp);
    joined[warp] = clock[warp];
  }

  // The warps of `waiting` go on, and know what those that arrived knew.
  void release(const uint32_t* joined, uint32_t waiting, bool full) {
    for (uint32_t p = 0; p < warps; ++p) {
      if (waiting >> p & 1) std::copy(joined, joined + warps, seen[p]);
    }
    if (full) {
      ++full_barriers;
      std::copy(clock, clock + warps, at_full);
    } else {
      ++other_barriers;
    }
  }

  bool before(uint32_t thread, uint32_t when, uint32_t now) const {
    if (thread == now) return true;
    const uint32_t theirs = thread >> 5, mine = now >> 5;
    if (theirs != mine) return when < seen[mine][theirs];
    return when < synced[mine] ||
           (lanes[mine] && when < lanes[mine][(now & 31) * 32 + (thread & 31)]);
  }
};

enum class Conflict : uint8_t { kNone, kWrite, kRead, kPlainWrite };

struct SharedCell {
  // kStrong: written so last; kManyWriters: by several threads that nothing orders.
  enum : uint8_t {
    kWritten = 1,
    kPending = 2,
    kGap = 4,
    kManyLanes = 8,
    kStrong = 16,
    kManyWriters = 32
  };
  uint32_t writer = 0;        // clock, thread; 0: nobody
  uint32_t reader = 0;        // the last; with none since a strong write, the last plain writer
  uint32_t reader_warps = 0;  // that read since the full barrier `epoch`
  uint32_t epoch = 0;         // and flags in the low byte

  uint8_t flags() const { return static_cast<uint8_t>(epoch); }
  void set(uint8_t flag) { epoch |= flag; }
  void clear(uint8_t flag) { epoch &= ~uint32_t{flag}; }

  static uint32_t stamp(const Ordering& o, uint32_t thread) {
    return o.clock[thread >> 5] << kThreadBits | thread;
  }

  // Is the last write one that `thread` cannot rely on?
  bool conflicts_with_writer(const Ordering& o, uint32_t thread, bool strong) const {
    if (!writer || (strong && flags() & kStrong)) return false;
    if (flags() & kManyWriters && writer == stamp(o, thread)) return true;
    return !o.before(writer & kThreadMask, writer >> kThreadBits, thread);
  }

  // A read by `thread`. Strong reads are not remembered.
  Conflict read(const Ordering& o, uint32_t thread, bool strong) {
    if (conflicts_with_writer(o, thread, strong)) return Conflict::kWrite;
    if (strong) return Conflict::kNone;
    const uint32_t now = stamp(o, thread), warp = 1u << (thread >> 5);
    if (epoch >> 8 != (o.full_barriers & 0xFFFFFF)) {
      epoch = o.full_barriers << 8 | (epoch & 0xFF & ~uint32_t{kManyLanes});
      reader_warps = 0;
    } else if (reader != now) {
      const bool same_warp = (reader ^ now) >> 5 == 0;  // and clock
      if (same_warp) {
        set(kManyLanes);
      } else {
        clear(kManyLanes);
      }
    }
    reader = now;
    reader_warps |= warp;
    return Conflict::kNone;
  }

  // May `thread` write here?
  Conflict write_conflict(const Ordering& o, uint32_t thread, bool strong) const {
    if (conflicts_with_writer(o, thread, strong)) return Conflict::kWrite;
    if (flags() & kStrong && reader && !reader_warps) {
      return o.before(reader & kThreadMask, reader >> kThreadBits, thread) ? Conflict::kNone
                                                                           : Conflict::kPlainWrite;
    }
    if (epoch >> 8 != (o.full_barriers & 0xFFFFFF)) return Conflict::kNone;
    const uint32_t mine = thread >> 5;
    for (uint32_t others = reader_warps & ~(1u << mine); others; others &= others - 1) {
      const auto warp = static_cast<uint32_t>(__builtin_ctz(others));
      if (o.seen[mine][warp] <= o.at_full[warp]) return Conflict::kRead;
    }
    if (!reader) return Conflict::kNone;
    const bool same_warp = (reader ^ stamp(o, thread)) >> 5 == 0;  // and clock
    if (same_warp && flags() & kManyLanes) return Conflict::kRead;
    return o.before(reader & kThreadMask, reader >> kThreadBits, thread) ? Conflict::kNone
                                                                         : Conflict::kRead;
  }

  void write(const Ordering& o, uint32_t thread, bool defined, bool strong) {
    uint32_t its = defined ? kWritten : 0, plain = 0;
    if (strong) {
      const bool was_strong = flags() & kStrong;
      plain = !was_strong ? writer : reader_warps ? 0 : reader;
      const bool beside_another = was_strong && (writer & kThreadMask) != thread &&
                                  !o.before(writer & kThreadMask, writer >> kThreadBits, thread);
      its |= kStrong;
      if (beside_another || (flags() & kManyWriters && writer == stamp(o, thread)))
        its |= kManyWriters;
    }
    writer = stamp(o, thread);
    reader = plain;
    reader_warps = 0;
    epoch = (epoch & kGap) | its;
  }
};

struct SharedShadow {
  SharedCell* cells = nullptr;
  uint32_t shift = 0;  // log2 of the granule
};

// Memory that is mapped when touched and starts as zeros: shadows are far larger than what of them
// is used. Mapping a page costs microseconds, so what can be used again is.
class LazyMemory {
 public:
  LazyMemory() = default;
  explicit LazyMemory(size_t bytes);
  ~LazyMemory();
  LazyMemory(LazyMemory&& other) noexcept { *this = std::move(other); }
  LazyMemory& operator=(LazyMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Of global memory: 64 bits for the writer and for the readers since. Strong writers are taken
// together, as readers are; with no readers since, `reader` is the last plain writer before them.
//   block serial : 32 | whose : 2 | clock : 19 | atomic : 1 | thread : 10
// Serials grow over the launches of a device, so that what an earlier launch left behind is known
// to be old. A launch's first serial is no block's: it stands for several of its blocks.
struct GlobalCell {
  std::atomic<uint64_t> writer, reader;
};

inline constexpr uint64_t kAtomicBit = uint64_t{1} << kThreadBits;
inline constexpr uint32_t kClockBits = 19;
inline constexpr uint32_t kClockMask = (1u << kClockBits) - 1;

// Whose access a stamp stands for: one thread's; those of several lanes of its warp at its clock;
// or of several warps, since as many barriers as it has instead of clock and thread; or a thread's
// that wrote, where readers are expected.
enum class Whose : uint32_t { kThread, kLanes, kWarps, kWriter };

inline uint64_t global_stamp(uint32_t serial, uint32_t clock, uint32_t thread, bool atomic) {
  return uint64_t{serial} << 32 | uint64_t{clock & kClockMask} << (kThreadBits + 1) |
         (atomic ? kAtomicBit : 0) | thread;
}
inline Whose stamp_whose(uint64_t stamp) { return static_cast<Whose>(stamp >> 30 & 3); }
inline uint64_t with_whose(uint64_t stamp, Whose whose) {
  return (stamp & ~(uint64_t{3} << 30)) | static_cast<uint64_t>(whose) << 30;
}
inline uint64_t stamp_of_warps(uint32_t serial, const Ordering& o, bool atomic) {
  return with_whose(global_stamp(serial, o.full_barriers, o.other_barriers & kThreadMask, atomic),
                    Whose::kWarps);
}
inline uint32_t stamp_block(uint64_t stamp) { return static_cast<uint32_t>(stamp >> 32); }
inline uint32_t stamp_clock(uint64_t stamp) {
  return static_cast<uint32_t>(stamp) >> (kThreadBits + 1) & kClockMask;
}
inline uint32_t stamp_thread(uint64_t stamp) { return static_cast<uint32_t>(stamp) & kThreadMask; }

enum class Direction : uint8_t { kRead, kWrite, kAtomic };
inline constexpr size_t kDirections = 3;
inline constexpr uint32_t kSectorBytes = 32;

// One sector and one host thread: the last block and the last request that touched it.
struct SectorCell {
  uint32_t block = 0, request = 0, bytes = 0;
};

// All shadows of an allocation; they live as long as it does. Sectors are counted from the one that
// its first byte is in.
struct AllocationShadow {
  LazyMemory races;                  // GlobalCell, by granule
  uint32_t races_shift = 0;          // log2 of the granule
  LazyMemory launches[kDirections];  // by sector, the last launch that touched it
  std::vector<std::array<LazyMemory, kDirections>> sectors;  // SectorCell, by host thread
};

// What blocks told each other: a fence and then an atomic publishes what a block did so far to
// whoever does an atomic at the same address later ("the last block sums up").
class Publication {
 public:
  struct Clocks {
    uint32_t of[kMaxWarps] = {};
  };
  using Known = std::unordered_map<uint32_t, Clocks>;  // by block serial

  void publish(uint64_t address, uint32_t serial, const Clocks& clocks, const Known& known);
  void learn(uint64_t address, Known& known);

 private:
  std::mutex mutex_;
  std::unordered_map<uint64_t, Known> at_;
};

}  // namespace effnet_fast::ptx
