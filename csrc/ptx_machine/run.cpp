// Running a launch: blocks over host threads, warps of a block in turn, lanes in lockstep.
#include <sys/mman.h>

#include <cxxabi.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>
#include <thread>

#include "lanes.h"
#include "launch_state.h"

namespace effnet_fast::ptx {
namespace {

// Instructions after which another warp has its turn: a warp that waits for another one in a loop
// must not wait for ever.
constexpr uint64_t kTurn = 20000;

std::string coordinates(uint64_t linear, const Dim3& size) {
  return "(" + std::to_string(linear % size.x) + ", " + std::to_string(linear / size.x % size.y) +
         ", " + std::to_string(linear / (uint64_t{size.x} * size.y)) + ")";
}

std::string lanes_text(const Warp& w, uint32_t lanes) {
  const int first = __builtin_ctz(lanes), more = __builtin_popcount(lanes) - 1;
  return "thread " + w.block->describe_thread(w.thread(first)) +
         (more ? " and " + std::to_string(more) + " more" : "");
}

// As its author wrote it, without template arguments and parameters when they would fill the
// screen.
std::string readable(const std::string& kernel) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(kernel.c_str(), nullptr, nullptr, &status);
  const std::string full = demangled ? demangled : kernel;
  std::free(demangled);
  if (full.size() <= 60) return full;
  std::string text;
  if (full.rfind("_ZN", 0) == 0) {  // some of nvcc's names the demangler does not know
    for (size_t at = 3; std::isdigit(static_cast<unsigned char>(full[at]));) {
      size_t digits = 0;
      const size_t length = std::stoul(full.substr(at, 4), &digits);
      text += (text.empty() ? "" : "::") + full.substr(at + digits, length);
      at += digits + length;
      if (at >= full.size()) break;
    }
    return text + "<...>";
  }
  int depth = 0;
  for (const char c : full) {
    if (c == '(' && depth == 0) break;
    depth += c == '<';
    if (depth == 0) text += c;
    if (depth == 1 && c == '<') text += "<...>";
    depth -= c == '>';
  }
  return text.substr(text.find_last_of(' ') + 1);
}

std::string place(const Program& program, uint32_t pc) {
  const Program::Source& source = program.source[pc];
  return "PTX line " + std::to_string(source.line) + " \"" + source.text + "\"" +
         (source.location.empty() ? "" : " (" + source.location + ")");
}

}  // namespace

const char* trap_name(Trap trap) {
  switch (trap) {
    case Trap::kOutOfBounds:
      return "out of bounds";
    case Trap::kUndeclared:
      return "undeclared access";
    case Trap::kMisaligned:
      return "misaligned";
    case Trap::kUninitialized:
      return "uninitialized";
    case Trap::kSharedRace:
      return "shared race";
    case Trap::kGlobalRace:
      return "global race";
    case Trap::kAsyncCopy:
      return "missing cp.async wait";
    case Trap::kDivergentBarrier:
      return "divergent barrier";
    case Trap::kUnknownOpcode:
      return "unknown opcode";
    case Trap::kEndlessLoop:
      return "endless loop";
    case Trap::kDeviceTrap:
      return "device trap";
  }
  return "fault";
}

LazyMemory::LazyMemory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
  data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
               -1, 0);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    throw std::bad_alloc();
  }
}

LazyMemory::~LazyMemory() {
  if (data_) munmap(data_, bytes_);
}

void Publication::publish(uint64_t address, uint32_t serial, const Clocks& clocks,
                          const Known& known) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Known& here = at_[address];
  const auto add = [&](uint32_t block, const Clocks& its) {
    Clocks& merged = here[block];
    for (uint32_t i = 0; i < kMaxWarps; ++i) merged.of[i] = std::max(merged.of[i], its.of[i]);
  };
  add(serial, clocks);
  for (const auto& [block, its] : known) add(block, its);
}

void Publication::learn(uint64_t address, Known& known) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto here = at_.find(address);
  if (here == at_.end()) return;
  for (const auto& [block, its] : here->second) {
    Clocks& merged = known[block];
    for (uint32_t i = 0; i < kMaxWarps; ++i) merged.of[i] = std::max(merged.of[i], its.of[i]);
  }
}

void error_amounts(const Warp& warp, const uint32_t* values, double* amounts) {
  const Options& options = warp.block->launch->options;
  if (options.exact_approximations) {
    std::fill(amounts, amounts + kLanes, 0.0);
    return;
  }
  const uint64_t salt = mix(options.seed ^ uint64_t{warp.pc} << 32);
  for (int l = 0; l < kLanes; ++l) {
    amounts[l] = static_cast<double>(static_cast<int64_t>(mix(salt ^ values[l]))) * 0x1p-63;
  }
}

// ---- warps --------------------------------------------------------------------------------------

void Warp::fail(Trap trap, int lane, const std::string& detail) const {
  const Program& program = block->launch->program;
  const Dim3& grid = block->launch->launch.grid;
  std::string origin;
  if (trap == Trap::kUninitialized && !undefined_what.empty()) {
    origin = "; the last undefined value of the warp was read from " + undefined_what + " at " +
             place(program, undefined_pc);
  }
  throw Fault(trap, std::string(trap_name(trap)) + ": kernel " + readable(program.kernel) +
                        ", block " + coordinates(block->linear, grid) + ", thread " +
                        block->describe_thread(thread(lane)) + ", " + place(program, pc) + ": " +
                        detail + origin);
}

std::string Block::describe_thread(uint32_t thread) const {
  return coordinates(thread, launch->launch.block);
}

void Warp::exit_lanes(uint32_t lanes) {
  live &= ~lanes;
  active &= ~lanes;
  if (active == 0) moved = true;
}

void Warp::diverge(uint32_t taken, uint32_t target) {
  if (taken == active) {
    next = target;
    // Lanes that wait at a lower place must be met there.
    if (target <= pc && parked) {
      for (int l = 0; l < kLanes; ++l) pcs[l] = active >> l & 1 ? target : pcs[l];
      moved = true;
    }
    return;
  }
  for (int l = 0; l < kLanes; ++l) {
    if (active >> l & 1) pcs[l] = taken >> l & 1 ? target : pc + 1;
  }
  ++block->worker->divergent_branches;
  moved = true;
}

bool Warp::gather(uint32_t exec, uint32_t members) {
  if ((members & live & ~exec) == 0) return true;
  for (int l = 0; l < kLanes; ++l) {
    if (active >> l & 1) pcs[l] = exec >> l & 1 ? pc : pc + 1;
  }
  parked |= exec;
  moved = true;
  return false;
}

void Warp::reschedule() {
  moved = false;
  const uint32_t ready = live & ~parked;
  if (ready == 0) {
    active = 0;
    if (live == 0) {
      stop = Stop::kDone;
      return;
    }
    // Everybody waits for somebody who will not come.
    const int lane = __builtin_ctz(live);
    pc = pcs[lane];
    uint32_t there = 0;
    for (int l = 0; l < kLanes; ++l) there |= uint32_t{pcs[l] == pc} << l;
    const uint32_t elsewhere = live & ~there;
    fail(Trap::kDivergentBarrier, lane,
         elsewhere
             ? "the threads that it waits for wait elsewhere: " + lanes_text(*this, elsewhere) +
                   " at " + place(block->launch->program, pcs[__builtin_ctz(elsewhere)])
             : "the threads that it waits for never come");
  }
  uint32_t lowest = ~0u;
  for (int l = 0; l < kLanes; ++l) lowest = ready >> l & 1 ? std::min(lowest, pcs[l]) : lowest;
  active = 0;
  rejoin = ~0u;
  for (int l = 0; l < kLanes; ++l) {
    if (!(live >> l & 1)) continue;
    if (pcs[l] == lowest) {
      active |= 1u << l;
    } else if (pcs[l] > lowest) {
      rejoin = std::min(rejoin, pcs[l]);
    }
  }
  parked &= ~active;
  pc = lowest;
}

// ---- launches -----------------------------------------------------------------------------------

LaunchState::LaunchState(const Launch& launch, Memory& memory, const Options& options)
    : launch(launch), program(*launch.kernel->program), memory(memory), options(options) {
  while ((1u << global_shift) < program.global_granule) ++global_shift;
  RunState& run = *memory.run_state;
  // After four billion blocks or launches, what the old ones left would look new.
  if (run.launches == ~0u || launch.grid.count() + 1 >= ~0u - run.next_serial) {
    memory.forget_shadows();
    run.next_serial = 1;
    run.launches = 0;
  }
  first_serial = run.next_serial;
  run.next_serial += static_cast<uint32_t>(launch.grid.count()) + 1;
  number = ++run.launches;
  for (const Region& region : launch.regions) {
    if (region.bytes == 0) continue;
    Allocation* a = memory.find(region.base);
    if (!a || !a->holds(region.base, region.bytes)) {
      throw Fault(Trap::kOutOfBounds,
                  "out of bounds: kernel " + readable(program.kernel) + ": region " + region.name +
                      " of " + std::to_string(region.bytes) + " bytes is not in one allocation: " +
                      memory.describe(region.base, region.bytes));
    }
    View& view = views.emplace_back();
    view.name = region.name;
    view.base = region.base;
    view.end = region.base + region.bytes;
    view.readable = region.readable;
    view.writable = region.writable;
    view.allocation = a;
    view.index = views.size() - 1;
  }
  // Memory that nobody can write has no races.
  for (View& view : views) {
    const bool writable = std::any_of(views.begin(), views.end(), [&](const View& v) {
      return v.allocation == view.allocation && v.writable;
    });
    if (writable) view.races = races_of(*view.allocation);
  }
  declared = views.size();
  const uint64_t blocks = launch.grid.count();
  const bool some = options.last_blocks > 0 && options.last_blocks < blocks;
  if (some || options.shuffle) {
    order.resize(some ? options.last_blocks : blocks);
    std::iota(order.begin(), order.end(), blocks - order.size());
  }
  if (options.shuffle) {
    std::mt19937_64 generator(options.seed);
    std::shuffle(order.begin(), order.end(), generator);
  }
}

GlobalCell* LaunchState::races_of(Allocation& allocation) {
  AllocationShadow& shadow = allocation.mapping->shadow;
  if (!shadow.races || shadow.races_shift != global_shift) {
    shadow.races = LazyMemory();
    const size_t cells = (allocation.mapping->bytes >> global_shift) + 1;
    shadow.races = LazyMemory(cells * sizeof(GlobalCell));
    shadow.races_shift = global_shift;
  }
  return shadow.races.as<GlobalCell>();
}

View& LaunchState::find(const Warp& warp, int lane, uint64_t address, size_t n, bool write,
                        bool read) {
  const std::lock_guard<std::mutex> lock(mutex);
  View* refused = nullptr;
  for (View& view : views) {
    if (!view.holds(address, n)) continue;
    if ((!read || view.readable) && (!write || view.writable)) return view;
    refused = &view;
  }
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(address));
  const std::string what =
      std::string(write ? "write" : "read") + " of " + std::to_string(n) + " bytes at " + text;
  if (refused) {
    warp.fail(Trap::kUndeclared, lane,
              what + " in " + refused->name + ", which the launch declares " +
                  (refused->readable ? "read-only" : "write-only"));
  }
  Allocation* a = memory.find(address);
  if (!a || !a->holds(address, n)) {
    warp.fail(Trap::kOutOfBounds, lane, what + ": " + memory.describe(address, n));
  }
  if (write && a->constant) {
    warp.fail(Trap::kUndeclared, lane, what + ": a constant variable cannot be written");
  }
  if (!launch.regions.empty() && !a->variable) {
    std::string nearest;
    uint64_t distance = ~uint64_t{0};
    for (const View& v : views) {
      const uint64_t gap = address < v.base ? v.base - address : address - v.end;
      if (v.allocation != a || gap >= distance) continue;
      distance = gap;
      nearest = "; " + std::to_string(gap) +
                (address < v.base ? " bytes before " : " bytes past ") + v.name;
    }
    warp.fail(Trap::kUndeclared, lane, what + ": in no region that the launch declares" + nearest);
  }
  View& view = views.emplace_back();
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(a->base));
  view.name = std::string(text) + "+" + std::to_string(a->bytes);
  view.base = a->base;
  view.end = a->base + a->bytes;
  view.writable = !a->constant;
  view.allocation = a;
  view.index = views.size() - 1;
  if (view.writable) view.races = races_of(*a);
  return view;
}

// ---- blocks -------------------------------------------------------------------------------------

Worker::Worker(LaunchState& state, Scratch& scratch, uint32_t index)
    : state(state), scratch(scratch), index(index), random(mix(state.options.seed + index)) {
  const Program& program = state.program;
  const auto threads = static_cast<uint32_t>(state.launch.block.count());
  const uint32_t warps = (threads + kLanes - 1) / kLanes;
  const size_t code = program.code.size();
  hits.assign(code, 0);
  lanes.assign(code, 0);
  view_of.assign(code, nullptr);
  const auto grow = [](auto& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  };
  grow(scratch.rows, program.row_bytes * warps);
  grow(scratch.defined, size_t{program.ids} * warps);
  grow(scratch.local, state.launch.kernel->local * kLanes * warps * 2);
  block.worker = this;
  block.launch = &state;
  block.warps.resize(warps);
  block.shared_bytes = program.dynamic_shared + state.launch.dynamic_shared;
  grow(scratch.shared, block.shared_bytes);
  block.shared = scratch.shared.data();
  uint32_t shift = 0;
  while ((1u << shift) < program.shared_granule) ++shift;
  block.shared_shadow.shift = shift;
  grow(scratch.cells, (block.shared_bytes >> shift) + 1);
  block.shared_shadow.cells = scratch.cells.data();
}

void Worker::start_block(uint64_t linear) {
  const Program& program = state.program;
  const Dim3& grid = state.launch.grid;
  block.linear = linear;
  block.serial = state.first_serial + 1 + static_cast<uint32_t>(linear);
  block.ctaid[0] = static_cast<uint32_t>(linear % grid.x);
  block.ctaid[1] = static_cast<uint32_t>(linear / grid.x % grid.y);
  block.ctaid[2] = static_cast<uint32_t>(linear / (uint64_t{grid.x} * grid.y));
  block.instructions = 0;
  std::fill(std::begin(block.barriers), std::end(block.barriers), Barrier());
  const auto warps = static_cast<uint32_t>(block.warps.size());
  block.ordering.reset(warps);
  known.clear();
  std::fill(std::begin(fenced), std::end(fenced), false);

  SharedCell* cells = block.shared_shadow.cells;
  const uint32_t shift = block.shared_shadow.shift;
  SharedCell gap;
  gap.set(SharedCell::kGap);
  std::fill(cells, cells + (program.dynamic_shared >> shift), gap);
  for (const Extent& e : program.shared) {
    const uint32_t end = (e.offset + e.bytes + (1u << shift) - 1) >> shift;
    std::fill(cells + (e.offset >> shift), cells + end, SharedCell());
  }
  std::fill(cells + (program.dynamic_shared >> shift), cells + (block.shared_bytes >> shift) + 1,
            SharedCell());

  std::fill_n(scratch.defined.begin(), size_t{program.ids} * warps, 0u);
  const size_t local_bytes = state.launch.kernel->local * kLanes;
  std::fill_n(scratch.local.begin() + static_cast<ptrdiff_t>(local_bytes * warps),
              local_bytes * warps, uint8_t{0});
  const uint64_t threads = state.launch.block.count();
  for (uint32_t i = 0; i < warps; ++i) {
    Warp& w = block.warps[i];
    w.bases[0] = scratch.rows.data() + program.row_bytes * i;
    w.bases[1] = const_cast<uint8_t*>(program.constants.data());
    w.defined = scratch.defined.data() + size_t{program.ids} * i;
    w.defined[0] = kAllLanes;
    w.pc = w.next = 0;
    const uint64_t rest = threads - uint64_t{i} * kLanes;
    w.exists = rest >= kLanes ? kAllLanes : (1u << rest) - 1;
    w.active = w.live = w.exists;
    w.parked = w.carry = 0;
    w.rejoin = ~0u;
    w.stop = Stop::kRunnable;
    w.moved = false;
    w.waiting = nullptr;
    w.block = &block;
    w.index = i;
    w.local = scratch.local.data() + local_bytes * i;
    w.local_written = scratch.local.data() + local_bytes * (warps + i);
    w.copies.clear();
    w.undefined_what.clear();
    std::fill(std::begin(w.committed), std::end(w.committed), 0u);
  }
}

void Worker::run_warp(Warp& w) {
  const Instr* code = state.program.code.data();
  const uint64_t limit = state.options.max_instructions;
  for (uint64_t turn = 0; turn < kTurn; ++turn) {
    const uint32_t pc = w.pc;
    const Instr& in = code[pc];
    uint32_t exec = w.active;
    if (in.guarded) {
      const uint32_t undefined = exec & ~w.is_defined(in.guard);
      if (undefined) {
        w.fail(Trap::kUninitialized, __builtin_ctz(undefined), "its predicate was never set");
      }
      exec &= w.predicate(in.guard) ^ (in.guard_negated ? kAllLanes : 0);
    }
    const auto threads = static_cast<uint64_t>(__builtin_popcount(exec));
    ++hits[pc];
    lanes[pc] += threads;
    block.instructions += threads + 1;
    if (block.instructions > limit) {
      w.fail(Trap::kEndlessLoop, __builtin_ctz(w.active),
             "the block has run " + std::to_string(limit) + " instructions");
    }
    w.next = pc + 1;
    if (exec) in.run(w, in, exec);
    if (!w.moved) {
      w.pc = w.next;
      if (w.pc >= w.rejoin) {
        for (int l = 0; l < kLanes; ++l) w.pcs[l] = w.active >> l & 1 ? w.pc : w.pcs[l];
        w.moved = true;
      }
    }
    if (w.moved) w.reschedule();
    if (w.stop != Stop::kRunnable) return;
  }
}

void Worker::arrive(const Warp& w, Barrier& barrier) {
  block.ordering.arrive(w.index, barrier.joined);
  if (!fenced[w.index]) return;
  barrier.fenced = true;
  for (uint32_t i = 0; i < kMaxWarps; ++i) {
    barrier.fence.of[i] = std::max(barrier.fence.of[i], fence[w.index].of[i]);
  }
}

bool Worker::release_barriers() {
  uint32_t alive = 0;
  for (const Warp& w : block.warps) alive |= uint32_t{w.stop != Stop::kDone} << w.index;
  bool released = false;
  for (uint32_t id = 0; id < 16; ++id) {
    Barrier& barrier = block.barriers[id];
    if (!barrier.arrived_warps) continue;
    uint32_t waiting = 0;
    for (const Warp& w : block.warps) {
      waiting |= uint32_t{w.stop == Stop::kAtBarrier && w.barrier == id} << w.index;
    }
    const bool complete =
        barrier.expected ? barrier.arrived_threads >= barrier.expected : waiting == alive;
    if (!complete) continue;
    block.ordering.release(barrier.joined, waiting,
                           waiting == alive && waiting == barrier.arrived_warps);
    for (Warp& w : block.warps) {
      if (!(waiting >> w.index & 1)) continue;
      // What those that arrived had fenced, any of them may publish from now on.
      if (barrier.fenced) {
        fence[w.index] = barrier.fence;
        fenced[w.index] = true;
      }
      if (w.waiting) {
        const uint32_t value = barrier_result(*w.waiting, barrier);
        if (barrier_counts(*w.waiting)) {
          uint32_t row[kLanes];
          std::fill(row, row + kLanes, value);
          w.write(w.waiting->d, row, w.waiting_exec);
        } else {
          w.write_predicate(w.waiting->d, value ? kAllLanes : 0, w.waiting_exec);
        }
        w.define(w.waiting->d, w.waiting_exec, kAllLanes);
        w.waiting = nullptr;
      }
      w.stop = Stop::kRunnable;
    }
    barrier = Barrier();
    released = true;
  }
  return released;
}

void Worker::fail_deadlock() {
  const Warp* stuck = nullptr;
  std::string others;
  for (Warp& w : block.warps) {
    if (w.stop != Stop::kAtBarrier) continue;
    if (!stuck) {
      stuck = &w;
    } else if (others.empty() && w.barrier != stuck->barrier) {
      others = "; warp " + std::to_string(w.index) + " waits at barrier " +
               std::to_string(w.barrier) + ", " + place(state.program, w.pc - 1);
    }
  }
  // pc is past the barrier: the message is about the barrier
  Warp at = *stuck;
  --at.pc;
  at.fail(Trap::kDivergentBarrier, __builtin_ctz(at.live),
          "warp " + std::to_string(at.index) + " waits at barrier " + std::to_string(at.barrier) +
              " for threads that never come" + others);
}

void Worker::run_block() {
  std::vector<uint32_t> order(block.warps.size());
  std::iota(order.begin(), order.end(), 0u);
  for (;;) {
    if (state.options.shuffle) {
      for (size_t i = order.size(); i > 1; --i) {
        random = mix(random);
        std::swap(order[i - 1], order[random % i]);
      }
    }
    bool runnable = false, alive = false;
    for (const uint32_t i : order) {
      Warp& w = block.warps[i];
      if (w.stop == Stop::kRunnable) run_warp(w);
      runnable |= w.stop == Stop::kRunnable;
      alive |= w.stop != Stop::kDone;
    }
    if (!alive) return;
    if (release_barriers() || runnable) continue;
    fail_deadlock();
  }
}

void Worker::run() {
  const uint64_t count = state.order.empty() ? state.launch.grid.count() : state.order.size();
  try {
    for (;;) {
      if (state.stop.load(std::memory_order_relaxed)) return;
      const uint64_t i = state.next.fetch_add(1);
      if (i >= count) return;
      start_block(state.order.empty() ? i : state.order[i]);
      run_block();
    }
  } catch (...) {
    const std::lock_guard<std::mutex> lock(state.fault_mutex);
    if (!state.fault) state.fault = std::current_exception();
    state.stop = true;
  }
}

// ---- the launch ---------------------------------------------------------------------------------

namespace {

void add(Traffic& to, const Traffic& from) {
  to.requests += from.requests;
  to.bytes += from.bytes;
  to.used_bytes += from.used_bytes;
  to.sectors += from.sectors;
  to.l2_sectors += from.l2_sectors;
  to.dram_sectors += from.dram_sectors;
}

void add(Counts::Shared& to, const Counts::Shared& from) {
  to.requests += from.requests;
  to.wavefronts += from.wavefronts;
  to.ideal_wavefronts += from.ideal_wavefronts;
  to.bytes += from.bytes;
}

Counts collect(const LaunchState& state, const std::deque<Worker>& workers) {
  const Program& program = state.program;
  Counts counts;
  counts.kernel = program.kernel;
  counts.grid = state.launch.grid;
  counts.block = state.launch.block;
  counts.shared_bytes = state.launch.kernel->static_shared + state.launch.dynamic_shared;
  std::vector<ClassCounts> by_opcode(program.opcodes.size());
  counts.tensors.resize(state.views.size());
  for (const View& view : state.views) {
    TensorCounts& tensor = counts.tensors[view.index];
    tensor.name = view.name;
    tensor.base = view.base;
    tensor.bytes = view.end - view.base;
  }
  for (const Worker& worker : workers) {
    for (size_t pc = 0; pc < program.code.size(); ++pc) {
      if (!worker.hits[pc]) continue;
      const Program::Source& source = program.source[pc];
      for (ClassCounts* c : {&counts.classes[static_cast<size_t>(source.kind)],
                             &by_opcode[source.opcode], &counts.lines[source.line]}) {
        c->warp += worker.hits[pc];
        c->thread += worker.lanes[pc];
      }
    }
    for (size_t i = 0; i < worker.views.size(); ++i) {
      add(counts.tensors[i].read, worker.views[i].traffic[0]);
      add(counts.tensors[i].write, worker.views[i].traffic[1]);
      add(counts.tensors[i].atomic, worker.views[i].traffic[2]);
    }
    add(counts.shared_load, worker.shared_load);
    add(counts.shared_store, worker.shared_store);
    counts.divergent_branches += worker.divergent_branches;
  }
  // Undeclared ones are in the order of their first use, which is that of blocks.
  std::sort(counts.tensors.begin() + static_cast<ptrdiff_t>(state.declared), counts.tensors.end(),
            [](const auto& a, const auto& b) { return a.base < b.base; });
  counts.branches = counts.classes[static_cast<size_t>(Class::kBranch)].warp;
  for (size_t i = 0; i < by_opcode.size(); ++i) {
    if (by_opcode[i].warp) counts.opcodes.emplace_back(program.opcodes[i], by_opcode[i]);
  }
  std::stable_sort(counts.opcodes.begin(), counts.opcodes.end(),
                   [](const auto& a, const auto& b) { return a.second.thread > b.second.thread; });
  return counts;
}

// Allocations that are written completely now need no more looking at.
void note_completed(const LaunchState& state) {
  for (const View& view : state.views) {
    Allocation& a = *view.allocation;
    if (a.all_written || !view.touched_by_writes.load()) continue;
    const size_t whole = a.bytes / 8;
    const auto rest = static_cast<uint8_t>((1u << a.bytes % 8) - 1);
    a.all_written =
        std::all_of(a.written, a.written + whole, [](uint8_t b) { return b == 0xFF; }) &&
        (a.written[whole] & rest) == rest;
  }
}

}  // namespace

Counts run(const Launch& launch, Memory& memory, const Options& options) {
  const auto begin = std::chrono::steady_clock::now();
  if (!memory.run_state) memory.run_state = std::make_shared<RunState>();
  RunState& run_state = *memory.run_state;
  const std::lock_guard<std::mutex> lock(run_state.running);
  LaunchState state(launch, memory, options);
  uint64_t threads = options.threads > 0 ? static_cast<uint64_t>(options.threads)
                                         : std::max(1u, std::thread::hardware_concurrency());
  threads = std::min<uint64_t>(threads, std::max<uint64_t>(launch.grid.count(), 1));
  state.concurrent = threads > 1;
  std::deque<Worker> workers;
  while (run_state.scratch.size() < threads) {
    run_state.scratch.push_back(std::make_unique<Scratch>());
  }
  for (uint32_t i = 0; i < threads; ++i) workers.emplace_back(state, *run_state.scratch[i], i);
  std::vector<std::thread> others;
  for (uint64_t i = 1; i < threads; ++i) others.emplace_back([&, i] { workers[i].run(); });
  workers[0].run();
  for (std::thread& other : others) other.join();
  if (state.fault) std::rethrow_exception(state.fault);
  note_completed(state);
  Counts counts = collect(state, workers);
  counts.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return counts;
}

}  // namespace effnet_fast::ptx
