// Copies from global to shared memory that need no registers.
#pragma once

#include <cstdint>

namespace effnet_fast::cuda {

// 16 bytes, aligned to 16, of which the first `bytes` are read and the others become 0.
__device__ inline void copy_async(uint32_t to, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}

__device__ inline void copy_async(void* shared, const void* global, int bytes = 16) {
  copy_async(static_cast<uint32_t>(__cvta_generic_to_shared(shared)), global, bytes);
}

// Until this thread's copies are there; a barrier makes them so for the block.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What this thread copied since the last end of a group is a group.
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last kGroups groups are there.
template <int kGroups>
__device__ void wait_for_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace effnet_fast::cuda
