// A launch and the host threads that run its blocks.
#pragma once

#include <atomic>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "machine.h"
#include "shadow.h"
#include "warp.h"

namespace effnet_fast::ptx {

// Memory that is mapped when touched and starts as zeros: shadows are far larger than what of them
// is used.
class LazyMemory {
 public:
  LazyMemory() = default;
  explicit LazyMemory(size_t bytes);
  ~LazyMemory();
  LazyMemory(LazyMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
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

enum class Direction : uint8_t { kRead, kWrite, kAtomic };
inline constexpr size_t kDirections = 3;
inline constexpr uint32_t kSectorBytes = 32;

// A region of the launch, or an allocation that it touches undeclared.
struct View {
  std::string name;
  uint64_t base = 0, end = 0;
  bool readable = true, writable = true;
  Allocation* allocation = nullptr;
  GlobalCell* races = nullptr;  // of the allocation, from its start; null: nobody can write
  size_t index = 0;
  std::atomic<bool> touched_by_writes{false};
  std::mutex mutex;              // of `seen` while it is made
  LazyMemory seen[kDirections];  // one bit a sector: touched in this launch
  std::atomic<uint64_t> dram[kDirections] = {};
};

// A host thread's view of a sector: the last block and the last request that touched it.
struct SectorCell {
  uint32_t block = 0, request = 0, bytes = 0;
};
struct ViewCounts {
  Traffic traffic[kDirections];
  LazyMemory cells[kDirections];
};

struct LaunchState {
  const Launch& launch;
  const Program& program;
  Memory& memory;
  const Options& options;
  bool concurrent = false;  // more than one host thread
  uint32_t global_shift = 2;

  std::mutex mutex;  // of views and races
  std::deque<View> views;
  std::map<const Allocation*, LazyMemory> races;  // of allocations that the launch may write
  std::mutex atomics;                             // one read-modify-write at a time
  Publication publication;

  std::vector<uint64_t> order;  // of blocks, when shuffled
  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex fault_mutex;
  std::exception_ptr fault;

  LaunchState(const Launch& launch, Memory& memory, const Options& options);
  // The view that holds [address, address + n) and permits the access; else throws through `warp`.
  View& find(const Warp& warp, int lane, uint64_t address, size_t n, bool write, bool read);
};

// A host thread.
struct Worker {
  LaunchState& state;
  Block block;
  std::vector<uint8_t> rows, local;  // of all warps of the block
  std::vector<uint32_t> defined;

  std::vector<uint64_t> hits, lanes;  // by pc: warp instructions, threads of them
  std::vector<View*> view_of;         // by pc: the last one
  std::vector<ViewCounts> views;      // by View::index
  Counts::Shared shared_load, shared_store;
  uint64_t branches = 0, divergent_branches = 0;
  uint32_t request = 0;
  Publication::Known known;  // to the block at hand
  // What a warp's last fence made ready to publish, and whether there is one.
  Publication::Clocks fence[kMaxWarps];
  bool fenced[kMaxWarps] = {};
  uint64_t random;

  Worker(LaunchState& state, uint64_t seed);
  void run();  // blocks, until there are none or one fails
  ViewCounts& counts_of(const View& view) {
    if (view.index >= views.size()) views.resize(view.index + 1);
    return views[view.index];
  }

 private:
  void start_block(uint64_t linear);
  void run_block();
  void run_warp(Warp& warp);
  bool release_barriers();
  [[noreturn]] void fail_deadlock();
};

// Of bar.red: the value, and whether it is a count rather than a predicate.
uint32_t barrier_result(const Instr& in, const Barrier& barrier);
bool barrier_counts(const Instr& in);

// For each lane a number in [-1, 1] that depends on its value, the instruction and the seed; zeros
// when approximations are to be exact.
void error_amounts(const Warp& warp, const uint32_t* values, double* amounts);

}  // namespace effnet_fast::ptx
