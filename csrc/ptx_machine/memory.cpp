#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <new>
#include <vector>

namespace effnet_fast::ptx {
namespace {

constexpr size_t kGuard = size_t{1} << 20;  // unmapped addresses between two allocations
constexpr size_t kSmallest = size_t{1} << 12;
constexpr size_t kMostSpare = size_t{256} << 20;

// Sets or clears the bits [first, first + n).
void set_bits(uint8_t* bits, size_t first, size_t n, bool value) {
  const auto put = [&](size_t byte, uint8_t mask) {
    bits[byte] = static_cast<uint8_t>(value ? bits[byte] | mask : bits[byte] & ~mask);
  };
  for (; n > 0 && first % 8 != 0; ++first, --n) put(first / 8, uint8_t(1u << first % 8));
  std::memset(bits + first / 8, value ? 0xFF : 0, n / 8);
  first += n / 8 * 8;
  if (n % 8) put(first / 8, uint8_t((1u << n % 8) - 1));
}

}  // namespace

Mapping::Mapping(size_t bytes) : bytes(bytes), data(bytes), written(bytes / 64 * 8 + 8) {}

Allocation::Allocation(uint64_t base, size_t bytes, std::unique_ptr<Mapping> its)
    : base(base),
      bytes(bytes),
      mapping(std::move(its)),
      data(mapping->data.as<uint8_t>()),
      written(mapping->written.as<uint8_t>()) {}

void Allocation::mark_written(size_t offset, size_t n) {
  if (offset == 0 && n == bytes) all_written = true;
  set_bits(written, offset, n, true);
}

// The host reads what nothing has written as zeros, of a new mapping, or 0xFF...: never as the
// results of an earlier allocation.
std::unique_ptr<Mapping> Memory::take_mapping(size_t bytes) {
  const auto spare = spare_.lower_bound(bytes);
  if (spare == spare_.end() || spare->first > 2 * bytes + kSmallest) {
    return std::make_unique<Mapping>(std::max(bytes, kSmallest));
  }
  std::unique_ptr<Mapping> mapping = std::move(spare->second);
  spare_.erase(spare);
  spare_bytes_ -= mapping->bytes;
  std::memset(mapping->data.as<uint8_t>(), 0xFF, bytes);
  std::memset(mapping->written.as<uint8_t>(), 0, bytes / 64 * 8 + 8);
  return mapping;
}

uint64_t Memory::allocate(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bytes > capacity_ - in_use_) return 0;
  const uint64_t base = next_;
  try {
    allocations_.emplace(base, std::make_unique<Allocation>(base, bytes, take_mapping(bytes)));
  } catch (const std::bad_alloc&) {
    return 0;
  }
  in_use_ += bytes;
  // An odd multiple of 256: an access that relies on more alignment than a driver promises fails.
  next_ = ((base + bytes + kGuard) / 512) * 512 + 256;
  return base;
}

bool Memory::free(uint64_t base) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = allocations_.find(base);
  if (found == allocations_.end() || !found->second->alive) return false;
  Allocation& a = *found->second;
  a.alive = false;
  a.data = a.written = nullptr;
  in_use_ -= a.bytes;
  if (spare_bytes_ + a.mapping->bytes <= kMostSpare) {
    spare_bytes_ += a.mapping->bytes;
    const size_t bytes = a.mapping->bytes;
    spare_.emplace(bytes, std::move(a.mapping));
  }
  a.mapping.reset();
  return true;
}

Allocation* Memory::find(uint64_t address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto after = allocations_.upper_bound(address);
  if (after == allocations_.begin()) return nullptr;
  Allocation& a = *std::prev(after)->second;
  return a.alive && address - a.base < a.bytes ? &a : nullptr;
}

std::string Memory::describe(uint64_t address, size_t n) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto after = allocations_.upper_bound(address);
  const auto size_of = [](const Allocation& a) { return std::to_string(a.bytes) + " bytes"; };
  if (after != allocations_.begin()) {
    const Allocation& a = *std::prev(after)->second;
    const uint64_t end = a.base + a.bytes;
    if (!a.alive && address < end) return "in an allocation of " + size_of(a) + " that was freed";
    if (address < end) {
      return "the last " + std::to_string(address + n - end) +
             " bytes are past the end of an "
             "allocation of " +
             size_of(a);
    }
    if (address - end < kGuard / 2) {
      return std::to_string(address - end) + " bytes past the end of an allocation of " +
             size_of(a) + (a.alive ? "" : " that was freed");
    }
  }
  if (after != allocations_.end() && after->second->base - address <= kGuard) {
    const Allocation& a = *after->second;
    return std::to_string(a.base - address) + " bytes before an allocation of " + size_of(a);
  }
  return "in no allocation";
}

Allocation& Memory::require(uint64_t address, size_t n, const char* what) {
  Allocation* a = find(address);
  if (a && a->holds(address, n)) return *a;
  char where[40];
  std::snprintf(where, sizeof(where), "0x%llx", static_cast<unsigned long long>(address));
  throw Fault(Trap::kOutOfBounds, std::string(what) + " of " + std::to_string(n) + " bytes at " +
                                      where + ": " + describe(address, n));
}

void Memory::forget_shadows() {
  const std::lock_guard<std::mutex> lock(mutex_);
  spare_.clear();
  spare_bytes_ = 0;
  for (auto& [base, allocation] : allocations_) {
    if (allocation->mapping) allocation->mapping->shadow = AllocationShadow();
  }
}

void Memory::write(uint64_t dst, const void* src, size_t n) {
  if (n == 0) return;
  Allocation& a = require(dst, n, "copy to the device");
  std::memcpy(a.data + (dst - a.base), src, n);
  a.mark_written(dst - a.base, n);
}

void Memory::read(void* dst, uint64_t src, size_t n) {
  if (n == 0) return;
  const Allocation& a = require(src, n, "copy from the device");
  std::memcpy(dst, a.data + (src - a.base), n);
}

void Memory::copy(uint64_t dst, uint64_t src, size_t n) {
  if (n == 0) return;
  const Allocation& from = require(src, n, "copy on the device");
  Allocation& to = require(dst, n, "copy on the device");
  const size_t first = src - from.base, at = dst - to.base;
  std::memmove(to.data + at, from.data + first, n);
  if (from.all_written) {
    to.mark_written(at, n);
    return;
  }
  std::vector<uint8_t> bits(n);
  for (size_t i = 0; i < n; ++i) bits[i] = from.written[(first + i) / 8] >> (first + i) % 8 & 1;
  bool all = true;
  for (size_t i = 0; i < n; ++i) {
    set_bits(to.written, at + i, 1, bits[i]);
    all &= bits[i];
  }
  if (!all) to.all_written = false;
}

void Memory::fill(uint64_t dst, uint32_t value, size_t width, size_t count) {
  if (count == 0) return;
  const size_t n = count > ~size_t{0} / width ? ~size_t{0} : width * count;
  Allocation& a = require(dst, n, "fill");
  uint8_t* data = a.data + (dst - a.base);
  for (size_t i = 0; i < count; ++i) std::memcpy(data + i * width, &value, width);
  a.mark_written(dst - a.base, n);
}

void Memory::poison(uint64_t dst, size_t n) {
  if (n == 0) return;
  Allocation& a = require(dst, n, "poison");
  std::memset(a.data + (dst - a.base), 0xFF, n);
  set_bits(a.written, dst - a.base, n, false);
  a.all_written = false;
}

}  // namespace effnet_fast::ptx
