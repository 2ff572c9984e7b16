// A warp and its block while they run.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"
#include "shadow.h"

namespace effnet_fast::ptx {

struct Block;
struct LaunchState;

// How a warp stands after it stopped running.
enum class Stop : uint8_t { kRunnable, kAtBarrier, kDone };

struct Warp {
  // ---- registers -------------------------------------------------------------------------------
  uint8_t* bases[2] = {nullptr, nullptr};  // rows of registers, rows of constants
  uint32_t* defined = nullptr;             // by Ref::id

  template <class T>
  T* row(Ref r) const {
    return reinterpret_cast<T*>(bases[r.offset >> 31] + (r.offset & ~Ref::kConstant));
  }
  uint32_t is_defined(Ref r) const { return defined[r.id]; }
  // Lanes `exec` of d were written, from sources defined in `sources`.
  void define(Ref d, uint32_t exec, uint32_t sources) {
    defined[d.id] = (defined[d.id] & ~exec) | (exec & sources);
  }
  template <class T>
  void write(Ref d, const T* values, uint32_t exec) {
    T* to = row<T>(d);
    if (exec == kAllLanes) {
      std::memcpy(to, values, kLanes * sizeof(T));
      return;
    }
    for (int l = 0; l < kLanes; ++l) to[l] = exec >> l & 1 ? values[l] : to[l];
  }
  uint32_t predicate(Ref r) const { return *row<uint32_t>(r); }
  void write_predicate(Ref d, uint32_t values, uint32_t exec) {
    uint32_t& to = *row<uint32_t>(d);
    to = (to & ~exec) | (values & exec);
  }

  // ---- control ---------------------------------------------------------------------------------
  uint32_t pc = 0, next = 0;
  uint32_t active = 0;        // lanes at pc
  uint32_t live = 0;          // lanes that exist and have not exited
  uint32_t parked = 0;        // lanes that wait at a warp-wide instruction for others
  uint32_t rejoin = ~0u;      // lowest pc of the other lanes: meeting it, the lanes converge
  uint32_t pcs[kLanes] = {};  // of lanes that are live and not active
  uint32_t carry = 0;         // condition code
  Stop stop = Stop::kRunnable;
  bool moved = false;              // pcs are up to date and `active` is not: reschedule
  uint32_t barrier = 0;            // that it waits at
  const Instr* waiting = nullptr;  // its instruction, when that returns something
  uint32_t waiting_exec = 0;

  void exit_lanes(uint32_t lanes);
  void diverge(uint32_t taken, uint32_t target);  // of active; the others go on at pc + 1
  void reschedule();                              // lowest pc first
  // Are all live lanes of `members` among `exec`, which are here? If not, those of `exec` wait here
  // until the others come, and the instruction is not done.
  bool gather(uint32_t exec, uint32_t members);

  // ---- place -----------------------------------------------------------------------------------
  Block* block = nullptr;
  uint32_t index = 0;                // in the block
  uint32_t exists = 0;               // lanes that are threads at all
  uint32_t clock = 1;                // of memory ordering: shadow.h
  uint32_t last_exec = 0;            // for messages
  uint8_t* local = nullptr;          // [lane][bytes]
  uint8_t* local_written = nullptr;  // one byte a byte

  uint32_t thread(int lane) const { return index * kLanes + static_cast<uint32_t>(lane); }

  // ---- cp.async --------------------------------------------------------------------------------
  struct Copy {
    uint32_t to = 0;  // shared offset
    uint8_t bytes = 0, lane = 0;
    uint32_t group = 0;  // of its lane
    uint8_t data[16];
  };
  std::vector<Copy> copies;         // issued, not yet waited for
  uint32_t committed[kLanes] = {};  // groups of each lane

  // Where the last undefined value came from, and out of what.
  uint32_t undefined_pc = 0;
  std::string undefined_what;

  [[noreturn]] void fail(Trap trap, int lane, const std::string& detail) const;
};

struct Barrier {
  uint32_t arrived_warps = 0;       // mask; a warp may wait at one barrier only
  uint32_t arrived_threads = 0;     // in multiples of 32, barrier.arrive included
  uint32_t expected = 0;            // 0: all threads of the block
  uint32_t votes = 0, ballots = 0;  // of bar.red: threads with a true predicate, threads in all
  // What those that arrived knew, and what they had fenced.
  uint32_t joined[kMaxWarps] = {};
  Publication::Clocks fence;
  bool fenced = false;
};

struct Worker;

// One block. Its memory is its worker's, used again for the next block.
struct Block {
  Worker* worker = nullptr;
  LaunchState* launch = nullptr;
  uint32_t ctaid[3] = {};
  uint64_t linear = 0;  // index in the grid
  uint32_t serial = 0;  // linear + 1: 0 is nobody
  std::vector<Warp> warps;
  uint8_t* shared = nullptr;
  size_t shared_bytes = 0;
  SharedShadow shared_shadow;
  Ordering ordering;
  Barrier barriers[16];
  uint64_t instructions = 0;  // thread instructions

  std::string describe_thread(uint32_t thread) const;
};

}  // namespace effnet_fast::ptx
