// Checked accesses of a warp to global, shared and local memory: every rule of the machine about
// memory is in access.cpp.
#pragma once

#include "launch_state.h"

namespace effnet_fast::ptx {

enum class Kind : uint8_t { kLoad, kStore, kAtomic };

struct Access {
  Kind kind = Kind::kLoad;
  bool strong = false;  // volatile, relaxed, acquire or release: no race with other strong ones
  bool release = false;
};

// For the lanes of `exec`, n bytes (a power of two) each at the global address: all checks, counts
// and shadows of a load, or of a read-modify-write. The bytes are at host[lane].
void read_global(Warp& w, uint32_t exec, const uint64_t* address, uint32_t n, Access access,
                 uint8_t** host);
// The same of a store, which it does: `values` are n bytes a lane, 16 apart.
void write_global(Warp& w, uint32_t exec, const uint64_t* address, uint32_t n, Access access,
                  const uint8_t* values);
// Between blocks: what a fence, and a strong access after it, make visible.
void fence(Warp& w);

// Alignment and bounds of an access to shared memory.
void check_shared(const Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n);
// Shared memory: `offset` into the block's. Returns the lanes whose bytes are all defined: a read
// of others is no error, using the value is.
uint32_t read_shared(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, Access access,
                     uint8_t** host);
// Lanes outside `defined` store an undefined value: the bytes become unwritten.
void write_shared(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, Access access,
                  const uint8_t* values, uint32_t defined);
// cp.async: the bytes are pending until land_copy.
void reserve_shared(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n);
void land_copy(Warp& w, const Warp::Copy& copy);
// Wavefronts of one request: phases of a warp whose lanes move n bytes each.
void count_wavefronts(Counts::Shared& counts, uint32_t exec, const uint64_t* offset, uint32_t n);

uint32_t read_local(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, uint8_t** host);
void write_local(Warp& w, uint32_t exec, const uint64_t* offset, uint32_t n, const uint8_t* values,
                 uint32_t defined);

}  // namespace effnet_fast::ptx
