#include "access.h"

#include <algorithm>
#include <cstdio>

namespace effnet_fast::ptx {
namespace {

std::string hex(uint64_t x) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

std::string bytes_text(uint32_t n) { return std::to_string(n) + (n == 1 ? " byte" : " bytes"); }

template <class F>
void for_lanes(uint32_t exec, F f) {
  for (uint32_t rest = exec; rest; rest &= rest - 1) f(__builtin_ctz(rest));
}

void check_alignment(const Warp& w, uint32_t exec, const uint64_t* address, uint32_t n) {
  uint64_t low = 0;
  for_lanes(exec, [&](int l) { low |= address[l]; });
  if ((low & (n - 1)) == 0) return;
  for_lanes(exec, [&](int l) {
    if (address[l] & (n - 1)) {
      w.fail(Trap::kMisaligned, l,
             "address " + hex(address[l]) + " is not a multiple of " + bytes_text(n));
    }
  });
}

// ---- global memory ------------------------------------------------------------------------------

// `bits` of one sector of a view were asked for by the current request.
void count_sector(Worker& worker, View& view, ViewCounts& counts, size_t direction, uint64_t sector,
                  uint32_t bits) {
  Traffic& t = counts.traffic[direction];
  SectorCell& cell = counts.cells[direction][sector];
  if (cell.request != worker.scratch.request) {
    cell.request = worker.scratch.request;
    cell.bytes = 0;
    ++t.sectors;
    if (cell.block != worker.block.serial) {
      cell.block = worker.block.serial;
      ++t.l2_sectors;
      const uint32_t launch = worker.state.number;
      auto& last =
          view.allocation->mapping->shadow.launches[direction].as<std::atomic<uint32_t>>()[sector];
      if (last.load(std::memory_order_relaxed) != launch &&
          last.exchange(launch, std::memory_order_relaxed) != launch) {
        ++t.dram_sectors;
      }
    }
  }
  t.used_bytes += static_cast<uint64_t>(__builtin_popcount(bits & ~cell.bytes));
  cell.bytes |= bits;
}

void make_sector_cells(Worker& worker, View& view, ViewCounts& counts, size_t direction) {
  const std::lock_guard<std::mutex> lock(worker.state.mutex);
  const Allocation& a = *view.allocation;
  AllocationShadow& shadow = view.allocation->mapping->shadow;
  const uint64_t sectors = a.mapping->bytes / kSectorBytes + 1;
  if (shadow.sectors.size() <= worker.index) shadow.sectors.resize(worker.index + 1);
  LazyMemory& cells = shadow.sectors[worker.index][direction];
  if (!cells) cells = LazyMemory(sectors * sizeof(SectorCell));
  LazyMemory& launches = shadow.launches[direction];
  if (!launches) launches = LazyMemory(sectors * sizeof(uint32_t));
  counts.cells[direction] = cells.as<SectorCell>();
}

void count_traffic(Worker& worker, View& view, uint32_t lanes, const uint64_t* address, uint32_t n,
                   Direction direction) {
  const auto d = static_cast<size_t>(direction);
  ViewCounts& counts = worker.counts_of(view);
  if (!counts.cells[d]) make_sector_cells(worker, view, counts, d);
  const uint64_t first = view.allocation->base / kSectorBytes;
  Traffic& t = counts.traffic[d];
  ++t.requests;
  t.bytes += uint64_t{n} * static_cast<uint64_t>(__builtin_popcount(lanes));
  ++worker.scratch.request;
  // Neighbouring lanes mostly share a sector: look one up when it changes.
  uint64_t sector = ~uint64_t{0};
  uint32_t bits = 0;
  const auto mask = static_cast<uint32_t>((uint64_t{1} << n) - 1);
  for_lanes(lanes, [&](int l) {
    const uint64_t its = address[l] / kSectorBytes - first;
    if (its != sector) {
      if (bits) count_sector(worker, view, counts, d, sector, bits);
      sector = its;
      bits = 0;
    }
    bits |= mask << address[l] % kSectorBytes;
  });
  count_sector(worker, view, counts, d, sector, bits);
}

bool is_written(const Allocation& a, size_t offset, uint32_t n) {
  if (n == 16) return a.written[offset / 8] == 0xFF && a.written[offset / 8 + 1] == 0xFF;
  const uint32_t mask = (1u << n) - 1;
  return (a.written[offset / 8] >> offset % 8 & mask) == mask;
}

// Marks what the lanes wrote, 64 bytes of neighbouring lanes at a time: other host threads may
// write to the same ones.
void mark_written(Allocation& a, uint32_t lanes, const uint64_t* address, uint32_t n,
                  bool concurrent) {
  auto* words = reinterpret_cast<uint64_t*>(a.written);
  const uint64_t mask = (uint64_t{1} << n) - 1;
  uint64_t word = 0, bits = 0;
  const auto flush = [&] {
    if ((__atomic_load_n(&words[word], __ATOMIC_RELAXED) & bits) == bits) return;
    if (concurrent) {
      __atomic_fetch_or(&words[word], bits, __ATOMIC_RELAXED);
    } else {
      words[word] |= bits;
    }
  };
  for_lanes(lanes, [&](int l) {
    const uint64_t offset = address[l] - a.base;
    if (offset / 64 != word) {
      flush();
      word = offset / 64;
      bits = 0;
    }
    bits |= mask << offset % 64;
  });
  flush();
}

// Did the access of `stamp` happen before what `thread` of the block at hand does now?
bool happened_before(const Worker& worker, uint64_t stamp, uint32_t thread) {
  const uint32_t serial = stamp_block(stamp);
  const uint32_t many = worker.state.first_serial;
  if (serial < many) return true;  // an earlier launch, or nobody
  const Whose whose = stamp_whose(stamp);
  if (serial == worker.block.serial) {
    const Ordering& order = worker.block.ordering;
    if (whose == Whose::kWarps) {
      // One of them is another warp. After a barrier of some warps only, nothing can be said.
      return (stamp | kAtomicBit) != stamp_of_warps(serial, order, true);
    }
    const bool lanes = whose == Whose::kLanes && (stamp_thread(stamp) ^ thread) >> 5 == 0;
    if (lanes) return stamp_clock(stamp) < order.clock[thread >> 5];
    return order.before(stamp_thread(stamp), stamp_clock(stamp), thread);
  }
  if (serial == many) return !worker.known.empty();
  const auto known = worker.known.find(serial);
  if (known == worker.known.end()) return false;
  if (whose == Whose::kWarps) return true;
  // What is strong and follows the fence at once is published with it.
  const uint32_t clock = stamp_clock(stamp) - (stamp & kAtomicBit ? 1 : 0);
  return clock < known->second.of[stamp_thread(stamp) >> 5];
}

bool is_plain(const Worker& worker, uint64_t stamp) {  // and of this launch
  return stamp_block(stamp) >= worker.state.first_serial && !(stamp & kAtomicBit);
}

// Those who read, or wrote with atomics, and `thread` of the block at hand with them.
uint64_t join_stamps(const Worker& worker, uint64_t earlier, uint64_t stamp, uint32_t thread) {
  const uint32_t many = worker.state.first_serial, serial = stamp_block(earlier);
  if (serial < many) return stamp;  // nobody in this launch
  const bool strong = stamp & earlier & kAtomicBit;
  if (serial == many) return global_stamp(many, 0, 0, strong);
  const Whose whose = stamp_whose(earlier);
  const bool mine = serial == stamp_block(stamp);
  if ((mine && whose == Whose::kThread && stamp_thread(earlier) == thread) ||
      happened_before(worker, earlier, thread)) {
    return stamp;
  }
  if (!mine) return global_stamp(many, 0, 0, strong);
  if (whose != Whose::kWarps && (stamp_thread(earlier) ^ thread) >> 5 == 0) {
    return with_whose(stamp, Whose::kLanes);
  }
  return stamp_of_warps(serial, worker.block.ordering, strong);
}

[[noreturn]] void fail_race(const Warp& w, int lane, uint64_t address, const View& view,
                            uint64_t other, bool other_writes, bool writes) {
  const uint32_t serial = stamp_block(other);
  std::string who = "several blocks";
  const uint32_t many = w.block->launch->first_serial;
  if (serial != many) {
    const Whose whose = stamp_whose(other);
    who = whose == Whose::kLanes || whose == Whose::kWarps
              ? "several threads"
              : "thread " + w.block->describe_thread(stamp_thread(other));
    if (serial != w.block->serial) {
      const Dim3& grid = w.block->launch->launch.grid;
      const uint64_t linear = serial - many - 1;
      who += " of block (" + std::to_string(linear % grid.x) + ", " +
             std::to_string(linear / grid.x % grid.y) + ", " +
             std::to_string(linear / (uint64_t{grid.x} * grid.y)) + ")";
    }
  }
  w.fail(Trap::kGlobalRace, lane,
         std::string(writes ? "write" : "read") + " of " + hex(address) + " in " + view.name +
             ", which " + who + (other_writes ? " wrote" : " read") +
             " with nothing that orders the two");
}

// Replaces what a cell holds; false when another host thread was faster.
bool replace(bool concurrent, std::atomic<uint64_t>& stamp, uint64_t& before, uint64_t after) {
  if (concurrent) return stamp.compare_exchange_strong(before, after);
  stamp.store(after, std::memory_order_relaxed);
  return true;
}

// Records the access and returns the stamp it conflicts with, or 0. `*of_writer`: which one.
uint64_t touch_cell(const Worker& worker, GlobalCell& cell, uint64_t stamp, uint32_t thread,
                    bool writes, bool* of_writer) {
  const bool concurrent = worker.state.concurrent, strong = stamp & kAtomicBit;
  const auto conflicts = [&](uint64_t other) {
    return other && !(strong && other & kAtomicBit) && !happened_before(worker, other, thread);
  };
  // Publish first, look second: of two host threads at least one sees the other.
  uint64_t writer = cell.writer.load(std::memory_order_relaxed);
  uint64_t readers = cell.reader.load(std::memory_order_relaxed);
  if (writes) {
    const uint32_t first = worker.state.first_serial;
    if (!concurrent && stamp_block(writer) < first && stamp_block(readers) < first) {
      cell.writer.store(stamp, std::memory_order_relaxed);  // nobody was here before
      return 0;
    }
    uint64_t now;
    do {
      now =
          strong && !is_plain(worker, writer) ? join_stamps(worker, writer, stamp, thread) : stamp;
    } while (!replace(concurrent, cell.writer, writer, now));
    *of_writer = conflicts(writer);
    if (*of_writer) return writer;
    if (concurrent) readers = cell.reader.load();
    if (conflicts(readers)) {
      *of_writer = stamp_whose(readers) == Whose::kWriter;
      return readers;
    }
    if (!strong && readers) cell.reader.store(0, std::memory_order_relaxed);
    if (strong && is_plain(worker, writer) && !is_plain(worker, readers)) {
      cell.reader.store(with_whose(writer, Whose::kWriter), std::memory_order_relaxed);
    }
    return 0;
  }
  // Of a plain and a strong reader the plain one is kept: it forbids more.
  if (readers != stamp && !(strong && is_plain(worker, readers))) {
    uint64_t now = stamp;
    const bool alone = stamp_whose(readers) == Whose::kWriter || (!strong && readers & kAtomicBit);
    if (!alone) now = join_stamps(worker, readers, stamp, thread);
    if (now != readers && !replace(concurrent, cell.reader, readers, now)) {
      cell.reader.store(global_stamp(worker.state.first_serial, 0, 0, false));
    }
  }
  if (concurrent) writer = cell.writer.load();
  *of_writer = conflicts(writer);
  return *of_writer ? writer : 0;
}

// `value`, of a store: the lane's n bytes. `stamp` is without the thread.
void touch(Warp& w, View& view, int l, uint64_t address, uint32_t n, Access access, uint64_t stamp,
           const uint8_t* value) {
  const Worker& worker = *w.block->worker;
  const uint32_t shift = worker.state.global_shift, thread = w.thread(l);
  const bool writes = access.kind != Kind::kLoad;
  const uint64_t offset = address - view.allocation->base;
  const uint64_t last = (offset + n - 1) >> shift;
  for (uint64_t c = offset >> shift; c <= last; ++c) {
    bool of_writer = false;
    const uint64_t conflict =
        touch_cell(worker, view.races[c], stamp | thread, thread, writes, &of_writer);
    if (!conflict) continue;
    // Writing what is there already is no race.
    if (of_writer && value) {
      const uint64_t from = std::max(c << shift, offset);
      const uint64_t to = std::min((c + 1) << shift, offset + n);
      const uint8_t* there = view.allocation->data + from;
      if (std::memcmp(there, value + (from - offset), to - from) == 0) continue;
    }
    fail_race(w, l, address, view, conflict, of_writer, writes);
  }
}

uint64_t stamp_of(const Warp& w, Access access) {
  return global_stamp(w.block->serial, w.block->ordering.clock[w.index], 0,
                      access.strong || access.kind == Kind::kAtomic);
}

// What a strong access does for the order of blocks.
void synchronize_blocks(Warp& w, uint64_t address, Access access) {
  Worker& worker = *w.block->worker;
  if (access.release) fence(w);
  if (access.kind != Kind::kLoad && worker.fenced[w.index]) {
    worker.state.publication.publish(address, w.block->serial, worker.fence[w.index], worker.known);
  }
  worker.state.publication.learn(address, worker.known);
}

// Calls f(view, lanes) for the views that the lanes' addresses lie in.
template <class F>
void for_views(Warp& w, uint32_t exec, const uint64_t* address, uint32_t n, Access access, F f) {
  Worker& worker = *w.block->worker;
  const bool reads = access.kind != Kind::kStore, writes = access.kind != Kind::kLoad;
  View*& cached = worker.view_of[w.pc];
  for (uint32_t rest = exec; rest;) {
    const int first = __builtin_ctz(rest);
    if (!cached || !cached->holds(address[first], n) || (reads && !cached->readable) ||
        (writes && !cached->writable)) {
      cached = &worker.state.find(w, first, address[first], n, writes, reads);
    }
    View& view = *cached;
    uint32_t lanes = 0;
    for (int l = 0; l < kLanes; ++l) lanes |= uint32_t{view.holds(address[l], n)} << l;
    lanes &= rest;
    f(view, lanes);
    rest &= ~lanes;
  }
}

}  // namespace

void fence(Warp& w) {
  Worker& worker = *w.block->worker;
  Ordering& order = w.block->ordering;
  Publication::Clocks& clocks = worker.fence[w.index];
  std::copy(order.seen[w.index], order.seen[w.index] + order.warps, clocks.of);
  order.tick(w.index);
  clocks.of[w.index] = order.clock[w.index];
  worker.fenced[w.index] = true;
}

void read_global(Warp& w, uint32_t exec, const uint64_t* address, uint32_t n, Access access,
                 uint8_t** host) {
  check_alignment(w, exec, address, n);
  Worker& worker = *w.block->worker;
  for_views(w, exec, address, n, access, [&](View& view, uint32_t lanes) {
    Allocation& a = *view.allocation;
    count_traffic(worker, view, lanes, address, n,
                  access.kind == Kind::kLoad ? Direction::kRead : Direction::kAtomic);
    if (!a.all_written) {
      for_lanes(lanes, [&](int l) {
        if (!is_written(a, address[l] - a.base, n)) {
          w.fail(Trap::kUninitialized, l,
                 "read of " + bytes_text(n) + " at " + hex(address[l]) + " in " + view.name +
                     ", which nothing has written");
        }
      });
    }
    if (access.kind == Kind::kAtomic) view.touched_by_writes.store(true, std::memory_order_relaxed);
    if (view.races) {
      if (access.strong || access.kind == Kind::kAtomic) {
        for_lanes(lanes, [&](int l) { synchronize_blocks(w, address[l], access); });
      }
      const uint64_t stamp = stamp_of(w, access);
      for_lanes(lanes, [&](int l) { touch(w, view, l, address[l], n, access, stamp, nullptr); });
    }
    for_lanes(lanes, [&](int l) { host[l] = a.data + (address[l] - a.base); });
  });
}

void write_global(Warp& w, uint32_t exec, const uint64_t* address, uint32_t n, Access access,
                  const uint8_t* values) {
  check_alignment(w, exec, address, n);
  Worker& worker = *w.block->worker;
  for_views(w, exec, address, n, access, [&](View& view, uint32_t lanes) {
    Allocation& a = *view.allocation;
    count_traffic(worker, view, lanes, address, n, Direction::kWrite);
    if (!view.touched_by_writes.load(std::memory_order_relaxed)) {
      view.touched_by_writes.store(true, std::memory_order_relaxed);
    }
    if (access.strong) {
      for_lanes(lanes, [&](int l) { synchronize_blocks(w, address[l], access); });
    }
    const uint64_t stamp = stamp_of(w, access);
    for_lanes(lanes, [&](int l) {
      const uint64_t offset = address[l] - a.base;
      const uint8_t* value = values + 16 * l;
      touch(w, view, l, address[l], n, access, stamp, value);
      std::memcpy(a.data + offset, value, n);
    });
    if (!a.all_written) mark_written(a, lanes, address, n, worker.state.concurrent);
  });
}

// ---- shared memory ------------------------------------------------------------------------------

void check_shared(const Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n) {
  check_alignment(w, exec, offset, n);
  const uint64_t size = w.block->shared_bytes;
  for_lanes(exec, [&](int l) {
    if (offset[l] + n > size || offset[l] > size) {
      w.fail(Trap::kOutOfBounds, l,
             bytes_text(n) + " at shared address " + hex(offset[l]) + "; the block has " +
                 bytes_text(static_cast<uint32_t>(size)));
    }
  });
}

namespace {

std::string shared_name(const Warp& w, uint64_t offset) {
  const Program& program = w.block->launch->program;
  const Extent* nearest = nullptr;
  for (const Extent& e : program.shared) {
    if (e.offset <= offset) nearest = &e;
  }
  if (offset >= program.dynamic_shared) {
    return "dynamic shared memory + " + std::to_string(offset - program.dynamic_shared);
  }
  if (!nearest) return "shared address " + hex(offset);
  return "shared " + nearest->name + " + " + std::to_string(offset - nearest->offset);
}

[[noreturn]] void fail_shared(const Warp& w, int lane, uint64_t offset, const SharedCell& cell,
                              Conflict conflict, bool writes) {
  const uint32_t other = conflict == Conflict::kWrite ? cell.writer : cell.reader;
  const bool several = conflict == Conflict::kWrite && cell.flags() & SharedCell::kManyWriters;
  w.fail(Trap::kSharedRace, lane,
         std::string(writes ? "write" : "read") + " of " + shared_name(w, offset) + ", which " +
             (several ? "several threads"
                      : "thread " + w.block->describe_thread(other & kThreadMask)) +
             (conflict == Conflict::kRead ? " read" : " wrote") + " with no barrier in between");
}

void check_usable(const Warp& w, int lane, uint64_t offset, const SharedCell& cell) {
  if (cell.flags() & SharedCell::kGap) {
    w.fail(Trap::kOutOfBounds, lane, shared_name(w, offset) + " is past the end of the variable");
  }
  if (cell.flags() & SharedCell::kPending) {
    w.fail(Trap::kAsyncCopy, lane,
           shared_name(w, offset) + " is being copied to by cp.async of thread " +
               w.block->describe_thread(cell.writer & kThreadMask) +
               ", which has not waited for it");
  }
}

template <class F>
void for_cells(const SharedShadow& shadow, uint64_t offset, uint32_t n, F f) {
  const uint64_t first = offset >> shadow.shift, last = (offset + n - 1) >> shadow.shift;
  for (uint64_t c = first; c <= last; ++c) f(c);
}

}  // namespace

void count_wavefronts(Counts::Shared& counts, uint32_t exec, const uint64_t* offset, uint32_t n) {
  ++counts.requests;
  counts.bytes += uint64_t{n} * static_cast<uint64_t>(__builtin_popcount(exec));
  // A warp moves at most 128 bytes a wavefront: 8-byte accesses go by halves of a warp, 16-byte
  // ones by quarters. What n aligned bytes lie in is a bank of its own width.
  const uint32_t width = std::max(n, 4u), banks = 128 / width;
  for (uint32_t begin = 0; begin < kLanes; begin += banks) {
    uint8_t used[32] = {};
    uint32_t held[32][32];
    uint32_t most = 0;
    for (uint32_t l = begin; l < begin + banks; ++l) {
      if (!(exec >> l & 1)) continue;
      const auto unit = static_cast<uint32_t>(offset[l] / width);
      const uint32_t bank = unit % banks;
      bool known = false;
      for (int k = 0; k < used[bank]; ++k) known |= held[bank][k] == unit;
      if (known) continue;
      held[bank][used[bank]++] = unit;
      most = std::max<uint32_t>(most, used[bank]);
    }
    counts.wavefronts += most;
    counts.ideal_wavefronts += most > 0;
  }
}

uint32_t read_shared(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, Access access,
                     uint8_t** host) {
  uint32_t defined = kAllLanes;
  Block& block = *w.block;
  check_shared(w, exec, offset, n);
  SharedCell* cells = block.shared_shadow.cells;
  const bool strong = access.kind == Kind::kAtomic || access.strong;
  for_lanes(exec, [&](int l) {
    const uint32_t thread = w.thread(l);
    for_cells(block.shared_shadow, offset[l], n, [&](uint64_t c) {
      SharedCell& cell = cells[c];
      if (cell.flags() & (SharedCell::kGap | SharedCell::kPending))
        check_usable(w, l, offset[l], cell);
      if (!(cell.flags() & SharedCell::kWritten)) {
        if (access.kind == Kind::kAtomic) {
          w.fail(Trap::kUninitialized, l,
                 "atomic on " + shared_name(w, offset[l]) + ", which holds no defined value");
        }
        defined &= ~(1u << l);
      }
      Conflict conflict = Conflict::kNone;
      if (access.kind == Kind::kAtomic) {
        conflict = cell.write_conflict(block.ordering, thread, strong);
        if (conflict != Conflict::kNone) fail_shared(w, l, offset[l], cell, conflict, true);
        cell.write(block.ordering, thread, true, true);
        return;
      }
      conflict = cell.read(block.ordering, thread, strong);
      if (conflict != Conflict::kNone) fail_shared(w, l, offset[l], cell, conflict, false);
    });
    host[l] = block.shared + offset[l];
  });
  if (defined != kAllLanes) {
    w.undefined_pc = w.pc;
    w.undefined_what = shared_name(w, offset[__builtin_ctz(~defined)]);
  }
  return defined;
}

void write_shared(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, Access access,
                  const uint8_t* values, uint32_t defined) {
  Block& block = *w.block;
  check_shared(w, exec, offset, n);
  SharedCell* cells = block.shared_shadow.cells;
  for_lanes(exec, [&](int l) {
    const uint32_t thread = w.thread(l);
    const uint8_t* value = values + 16 * l;
    uint8_t* to = block.shared + offset[l];
    for_cells(block.shared_shadow, offset[l], n, [&](uint64_t c) {
      SharedCell& cell = cells[c];
      if (cell.flags() & (SharedCell::kGap | SharedCell::kPending))
        check_usable(w, l, offset[l], cell);
      const Conflict conflict = cell.write_conflict(block.ordering, thread, access.strong);
      if (conflict != Conflict::kNone) {
        // Writing what is there already is no race.
        const uint64_t shift = block.shared_shadow.shift;
        const uint64_t from = std::max(c << shift, offset[l]);
        const uint64_t end = std::min((c + 1) << shift, offset[l] + n);
        const bool same =
            conflict != Conflict::kRead && cell.flags() & SharedCell::kWritten &&
            std::memcmp(block.shared + from, value + (from - offset[l]), end - from) == 0;
        if (!same) fail_shared(w, l, offset[l], cell, conflict, true);
      }
      cell.write(block.ordering, thread, defined >> l & 1, access.strong);
    });
    std::memcpy(to, value, n);
  });
}

void reserve_shared(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n) {
  Block& block = *w.block;
  check_shared(w, exec, offset, n);
  for_lanes(exec, [&](int l) {
    const uint32_t thread = w.thread(l);
    for_cells(block.shared_shadow, offset[l], n, [&](uint64_t c) {
      SharedCell& cell = block.shared_shadow.cells[c];
      if (cell.flags() & (SharedCell::kGap | SharedCell::kPending))
        check_usable(w, l, offset[l], cell);
      const Conflict conflict = cell.write_conflict(block.ordering, thread, false);
      if (conflict != Conflict::kNone) fail_shared(w, l, offset[l], cell, conflict, true);
      cell.write(block.ordering, thread, false, false);
      cell.set(SharedCell::kPending);
    });
  });
}

void land_copy(Warp& w, const Warp::Copy& copy) {
  Block& block = *w.block;
  for_cells(block.shared_shadow, copy.to, copy.bytes, [&](uint64_t c) {
    block.shared_shadow.cells[c].write(block.ordering, w.thread(copy.lane), true, false);
  });
  std::memcpy(block.shared + copy.to, copy.data, copy.bytes);
}

// ---- local memory -------------------------------------------------------------------------------

namespace {

void check_local_bounds(const Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n) {
  check_alignment(w, exec, offset, n);
  const uint64_t size = w.block->launch->launch.kernel->local;
  for_lanes(exec, [&](int l) {
    if (offset[l] > size || offset[l] + n > size) {
      w.fail(Trap::kOutOfBounds, l,
             bytes_text(n) + " at local address " + hex(offset[l]) + "; a thread has " +
                 bytes_text(static_cast<uint32_t>(size)));
    }
  });
}

}  // namespace

uint32_t read_local(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, uint8_t** host) {
  uint32_t defined = kAllLanes;
  check_local_bounds(w, exec, offset, n);
  const size_t size = w.block->launch->launch.kernel->local;
  for_lanes(exec, [&](int l) {
    const size_t at = static_cast<size_t>(l) * size + offset[l];
    const uint8_t* written = w.local_written + at;
    if (!std::all_of(written, written + n, [](uint8_t b) { return b != 0; })) {
      defined &= ~(1u << l);
      w.undefined_pc = w.pc;
      w.undefined_what = "local address " + hex(offset[l]);
    }
    host[l] = w.local + at;
  });
  return defined;
}

void write_local(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, const uint8_t* values,
                 uint32_t defined) {
  check_local_bounds(w, exec, offset, n);
  const size_t size = w.block->launch->launch.kernel->local;
  for_lanes(exec, [&](int l) {
    const size_t at = static_cast<size_t>(l) * size + offset[l];
    std::memcpy(w.local + at, values + 16 * l, n);
    std::fill(w.local_written + at, w.local_written + at + n, uint8_t(defined >> l & 1));
  });
}

}  // namespace effnet_fast::ptx
