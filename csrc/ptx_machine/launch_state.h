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

// A region of the launch, or an allocation that it touches undeclared.
struct View {
  std::string name;
  uint64_t base = 0, end = 0;
  bool readable = true, writable = true;
  bool holds(uint64_t address, uint64_t n) const {
    return n <= end - base && address - base <= end - base - n;
  }
  Allocation* allocation = nullptr;
  GlobalCell* races = nullptr;  // of the allocation, from its start; null: nobody can write
  size_t index = 0;
  std::atomic<bool> touched_by_writes{false};
};

// What a host thread writes to all the time shares no cache line with what another one does.
inline constexpr size_t kLines = 128;

// A host thread's counts of a view.
struct alignas(kLines) ViewCounts {
  Traffic traffic[kDirections];
  SectorCell* cells[kDirections] = {};
};

// The big buffers of a host thread.
struct alignas(kLines) Scratch {
  std::vector<uint8_t> rows, local, shared;
  std::vector<uint32_t> defined;
  std::vector<SharedCell> cells;
  uint32_t request = 0;  // the last one of the thread
};

struct RunState {
  std::mutex running;        // one launch at a time
  uint32_t next_serial = 1;  // of a launch, and so of its first block less one
  uint32_t launches = 0;
  std::vector<std::unique_ptr<Scratch>> scratch;  // by host thread
};

struct LaunchState {
  const Launch& launch;
  const Program& program;
  Memory& memory;
  const Options& options;
  bool concurrent = false;    // more than one host thread
  uint32_t global_shift = 0;  // log2 of the program's global granule

  uint32_t first_serial = 0;  // less one
  uint32_t number = 0;        // of the launch

  std::mutex mutex;  // of views and shadows while they are made
  std::deque<View> views;
  size_t declared = 0;  // of views, the first ones
  std::mutex atomics;   // one read-modify-write at a time
  Publication publication;

  std::vector<uint64_t> order;  // of blocks; empty: all, in the order of their numbers
  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex fault_mutex;
  std::exception_ptr fault;

  LaunchState(const Launch& launch, Memory& memory, const Options& options);
  GlobalCell* races_of(Allocation& allocation);
  // The view that holds [address, address + n) and permits the access; else throws through `warp`.
  View& find(const Warp& warp, int lane, uint64_t address, size_t n, bool write, bool read);
};

// A host thread.
struct alignas(kLines) Worker {
  LaunchState& state;
  Scratch& scratch;  // of all warps of the block
  Block block;
  uint32_t index;  // of the thread

  std::vector<uint64_t> hits, lanes;  // by pc: warp instructions, threads of them
  std::vector<View*> view_of;         // by pc: the last one
  std::vector<ViewCounts> views;      // by View::index
  Counts::Shared shared_load, shared_store;
  uint64_t branches = 0, divergent_branches = 0;
  Publication::Known known;  // to the block at hand
  // What a warp's last fence made ready to publish, and whether there is one.
  Publication::Clocks fence[kMaxWarps];
  bool fenced[kMaxWarps] = {};
  uint64_t random;

  Worker(LaunchState& state, Scratch& scratch, uint32_t index);
  void run();  // blocks, until there are none or one fails
  void arrive(const Warp& warp, Barrier& barrier);
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
