/* What the PTX machine exports beside the CUDA driver API: for hosts that know it is there. Plain
 * C, found with dlsym; a real libcuda has none of these symbols. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char* name;
  uint64_t base;
  uint64_t bytes;
  int readable, writable;
} effnet_ptx_region;

/* Of this interface; a host refuses another one. */
int effnet_ptx_version(void);

/* What the next cuLaunchKernel of this thread may touch; copied. A captured launch keeps it. */
int effnet_ptx_declare(const effnet_ptx_region* regions, size_t count);

/* Registers per thread that ptxas gave the function: the machine cannot know, and checks them
 * against the register file at a launch. */
int effnet_ptx_set_registers(void* function, int registers);

/* "threads", "shuffle" (0 or 1), "approx" ("perturbed" or "exact"), "seed", "max_instructions",
 * "last_blocks" (of a grid, that alone run; 0: all), "capacity" (bytes of a device, for contexts to
 * come). Returns a CUresult. */
int effnet_ptx_set_option(const char* name, const char* value);

/* As just allocated: contents gone, reading them is an error. */
int effnet_ptx_poison(uint64_t base, uint64_t bytes);

/* Why the last call of this thread that failed did, in a sentence; "" when none has. */
const char* effnet_ptx_error(void);

/* The trap ("shared race") that the last failed call of this thread reports; "" when it failed for
 * another reason than a kernel. */
const char* effnet_ptx_trap(void);

/* The counts of the launches that have run on the current context since the last call, oldest
 * first, as a JSON array. With buffer null or size too small: the size needed, and nothing is
 * taken. */
size_t effnet_ptx_take_counts(char* buffer, size_t size);

#ifdef __cplusplus
}
#endif
