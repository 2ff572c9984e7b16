// Global memory of one device: guarded, poisoned allocations at addresses that are never used
// twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "fault.h"
#include "shadow.h"

namespace effnet_fast::ptx {

// The host's side of an allocation. What is freed is used again: mapping a page costs microseconds.
struct Mapping {
  explicit Mapping(size_t bytes);
  size_t bytes;
  LazyMemory data;
  LazyMemory written;  // one bit a byte, in whole words: has it ever been written
  AllocationShadow shadow;
};

// Device addresses are not host addresses: a kernel cannot reach the host by accident, and a stale
// pointer never lands in a newer allocation. Bytes and shadows are mapped lazily, so an allocation
// of many GB costs what is touched of it.
struct Allocation {
  uint64_t base = 0;  // 256-byte aligned and no more
  size_t bytes = 0;
  bool alive = true;
  std::unique_ptr<Mapping> mapping;  // at least as large; null once it is freed
  uint8_t* data = nullptr;           // of the mapping
  uint8_t* written = nullptr;
  bool all_written = false;  // no need to look at `written`
  bool variable = false;     // of a module: no launch declares it
  bool constant = false;     // kernels cannot write it

  Allocation(uint64_t base, size_t bytes, std::unique_ptr<Mapping> its);

  bool holds(uint64_t address, size_t n) const {
    return address >= base && n <= bytes && address - base <= bytes - n;
  }
  void mark_written(size_t offset, size_t n);
};

struct RunState;  // what launches leave for the next one: launch_state.h

class Memory {
 public:
  // `first`: the first allocation's address, so that two memories have none in common.
  explicit Memory(size_t capacity, uint64_t first = uint64_t{0x7} << 44)
      : next_(first), capacity_(capacity) {}

  // A new allocation, all of it unwritten, or 0 when the capacity is used up. bytes > 0.
  uint64_t allocate(size_t bytes);
  // False when `base` is not the start of a live allocation.
  bool free(uint64_t base);
  // The live allocation that holds the address, or null.
  Allocation* find(uint64_t address);
  // "no allocation", "freed allocation of 64 bytes", "12 bytes past the end of ...", for messages.
  std::string describe(uint64_t address, size_t n);

  // Host access. Throw Fault(kOutOfBounds) before any byte moves.
  void write(uint64_t dst, const void* src, size_t n);
  void read(void* dst, uint64_t src, size_t n);
  void copy(uint64_t dst, uint64_t src, size_t n);  // what was unwritten stays unwritten
  // `count` elements of `width` (1, 2 or 4) bytes, `pitch` 0.
  void fill(uint64_t dst, uint32_t value, size_t width, size_t count);
  // Overwrites with 0xFF and makes it unwritten: arena reuse between two uses of a buffer.
  void poison(uint64_t dst, size_t n);

  void forget_shadows();

  // Made by the first launch.
  std::shared_ptr<RunState> run_state;

  size_t capacity() const { return capacity_; }
  size_t in_use() const { return in_use_; }

 private:
  std::unique_ptr<Mapping> take_mapping(size_t bytes);
  Allocation& require(uint64_t address, size_t n, const char* what);

  std::mutex mutex_;
  std::map<uint64_t, std::unique_ptr<Allocation>> allocations_;  // live and freed, by base
  std::multimap<size_t, std::unique_ptr<Mapping>> spare_;        // by bytes
  size_t spare_bytes_ = 0;
  uint64_t next_;
  size_t capacity_;
  size_t in_use_ = 0;
};

}  // namespace effnet_fast::ptx
