// Who touched which memory when, and what happened before what.
//
// Every warp has a clock. It ticks when the warp synchronises: with its own lanes (bar.warp.sync),
// with its block (a barrier), with other blocks (fence, then atomic). An access is recorded with
// its thread and the warp's clock. It happened before what another thread does now when that
// thread's warp has since learned, through barriers, of a later clock. Two accesses of which
// neither happened before the other, one of them a write of a different value, are a race, in
// whatever order the machine ran them.
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
  uint32_t clock[kMaxWarps];
  uint32_t seen[kMaxWarps][kMaxWarps];  // of warp a: clocks of warp b below this happened before
  uint32_t at_full[kMaxWarps];          // clock after the last full barrier

  void reset(uint32_t count) {
    warps = count;
    full_barriers = 1;
    for (uint32_t a = 0; a < count; ++a) {
      clock[a] = at_full[a] = 1;
      std::fill(seen[a], seen[a] + count, 0u);
    }
  }

  void tick(uint32_t warp) { ++clock[warp]; }

  // The warps of `waiting` go on after a barrier that `arrived` (waiting ones included) reached.
  void barrier(uint32_t arrived, uint32_t waiting, bool full) {
    uint32_t joined[kMaxWarps] = {};
    for (uint32_t p = 0; p < warps; ++p) {
      if (!(arrived >> p & 1)) continue;
      for (uint32_t b = 0; b < warps; ++b) joined[b] = std::max(joined[b], seen[p][b]);
    }
    for (uint32_t p = 0; p < warps; ++p) {
      if (arrived >> p & 1) joined[p] = ++clock[p];
    }
    for (uint32_t p = 0; p < warps; ++p) {
      if (waiting >> p & 1) std::copy(joined, joined + warps, seen[p]);
    }
    if (full) {
      ++full_barriers;
      std::copy(clock, clock + warps, at_full);
    }
  }

  bool before(uint32_t thread, uint32_t when, uint32_t now) const {
    if (thread == now) return true;
    const uint32_t theirs = thread >> 5, mine = now >> 5;
    return when < (theirs == mine ? clock[mine] : seen[mine][theirs]);
  }
};

enum class Conflict : uint8_t { kNone, kWriteWrite, kReadWrite };

struct SharedCell {
  enum : uint8_t { kWritten = 1, kPending = 2, kGap = 4, kManyLanes = 8, kAtomic = 16 };
  uint32_t writer = 0;        // clock, thread; 0: nobody
  uint32_t reader = 0;        // the last
  uint32_t reader_warps = 0;  // that read since the full barrier `epoch`
  uint32_t epoch = 0;         // and flags in the low byte

  uint8_t flags() const { return static_cast<uint8_t>(epoch); }
  void set(uint8_t flag) { epoch |= flag; }
  void clear(uint8_t flag) { epoch &= ~uint32_t{flag}; }

  static uint32_t stamp(const Ordering& o, uint32_t thread) {
    return o.clock[thread >> 5] << kThreadBits | thread;
  }

  // A read by `thread`, which must come after the last write.
  Conflict read(const Ordering& o, uint32_t thread) {
    if (writer && !o.before(writer & kThreadMask, writer >> kThreadBits, thread))
      return Conflict::kReadWrite;
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

  // May `thread` write here? `ww` is told of a write-write conflict, which equal values excuse.
  Conflict write_conflict(const Ordering& o, uint32_t thread) const {
    if (writer && !o.before(writer & kThreadMask, writer >> kThreadBits, thread))
      return Conflict::kWriteWrite;
    if (epoch >> 8 != (o.full_barriers & 0xFFFFFF)) return Conflict::kNone;
    const uint32_t mine = thread >> 5;
    for (uint32_t others = reader_warps & ~(1u << mine); others; others &= others - 1) {
      const auto warp = static_cast<uint32_t>(__builtin_ctz(others));
      if (o.seen[mine][warp] <= o.at_full[warp]) return Conflict::kReadWrite;
    }
    const uint32_t now = stamp(o, thread);
    if (reader && (reader ^ now) >> 5 == 0 && (reader != now || (flags() & kManyLanes)))
      return Conflict::kReadWrite;
    return Conflict::kNone;
  }

  void write(const Ordering& o, uint32_t thread, bool defined) {
    writer = stamp(o, thread);
    reader = reader_warps = 0;
    epoch = (epoch & kGap) | (defined ? kWritten : 0);
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

// Of global memory: 64 bits for the last writer and for the readers.
//   block serial : 32 | clock : 21 | atomic : 1 | thread : 10
// Serials grow over the launches of a device, so that what an earlier launch left behind is known
// to be old. A launch's first serial is no block's: it stands for several of its blocks.
struct GlobalCell {
  std::atomic<uint64_t> writer, reader;
};

inline constexpr uint64_t kAtomicBit = uint64_t{1} << kThreadBits;

inline uint64_t global_stamp(uint32_t serial, uint32_t clock, uint32_t thread, bool atomic) {
  return uint64_t{serial} << 32 | uint64_t{clock & 0x1FFFFF} << (kThreadBits + 1) |
         (atomic ? kAtomicBit : 0) | thread;
}
inline uint32_t stamp_block(uint64_t stamp) { return static_cast<uint32_t>(stamp >> 32); }
inline uint32_t stamp_clock(uint64_t stamp) {
  return static_cast<uint32_t>(stamp) >> (kThreadBits + 1);
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
