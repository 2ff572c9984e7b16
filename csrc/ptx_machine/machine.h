// The PTX machine: modules, launches, counts. driver.cpp puts the CUDA driver API in front of it.
//
//   Memory memory(bytes);
//   auto module = Module::parse(ptx, memory, 80);
//   Counts counts = run({module->kernel("saxpy"), {blocks}, {128}, 0, parameters}, memory, {});
//
// A launch runs to its end, or throws Fault at the first thing a kernel does wrong.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fault.h"
#include "memory.h"

namespace effnet_fast::ptx {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Parameter {
  std::string name;
  size_t offset = 0, bytes = 0, align = 1;
};

struct Program;  // decoded instructions: program.h

class Kernel {
 public:
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;       // of all, with padding between them
  size_t static_shared = 0;         // bytes
  size_t local = 0;                 // bytes per thread
  uint32_t max_threads = 1024;      // .maxntid's product, or 1024
  Dim3 required_block = {0, 0, 0};  // .reqntid, or zeros
  int registers = 0;                // what ptxas gave it, when someone said so; 0: unknown
  std::shared_ptr<const Program> program;
};

struct Global {
  uint64_t address = 0;
  size_t bytes = 0;
};

class Module {
 public:
  // Throws ParseError, or Fault(kUnknownOpcode), before anything is allocated. `capability` is the
  // device's, 80, 89 or 120: PTX for a newer .target is refused, or for another architecture alone.
  static std::unique_ptr<Module> parse(const std::string& text, Memory& memory, int capability);
  ~Module();

  Kernel* kernel(const std::string& name);        // null when there is none
  const Global* global(const std::string& name);  // .global and .const variables
  std::vector<std::string> kernel_names() const;

 private:
  Module();
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// What a launch may touch. With no regions declared it may touch every live allocation.
struct Region {
  std::string name;
  uint64_t base = 0;
  size_t bytes = 0;
  bool readable = true, writable = true;
};

struct Launch {
  const Kernel* kernel = nullptr;
  Dim3 grid, block;
  size_t dynamic_shared = 0;
  std::vector<uint8_t> parameters;  // kernel->parameter_bytes, each at its offset
  std::vector<Region> regions;
};

struct Options {
  int threads = 0;                         // of the host, that run blocks; 0: one per usable core
  bool shuffle = false;                    // run blocks, and the warps of a block, in random order
  bool exact_approximations = false;       // ex2.approx and its like give the exact value, rounded
  uint64_t seed = 0;                       // of shuffling and of the errors of approximations
  uint64_t max_instructions = 1ull << 31;  // thread-instructions of one block
  uint64_t last_blocks = 0;                // of a grid, that alone run; 0: all of them
};

// Sectors are 32 bytes. Three figures that are kept apart: requested by warps (what L1 sees), the
// distinct ones of each block, summed (L2), the distinct ones of the launch (DRAM, cold caches).
struct Traffic {
  uint64_t requests = 0;    // warp instructions
  uint64_t bytes = 0;       // by the threads, overlaps counted
  uint64_t used_bytes = 0;  // distinct bytes of each request, summed
  uint64_t sectors = 0;     // requested
  uint64_t l2_sectors = 0;
  uint64_t dram_sectors = 0;
};

struct TensorCounts {
  std::string name;  // the region's, or "0x700000000000+1024" of an undeclared allocation
  uint64_t base = 0;
  size_t bytes = 0;
  Traffic read, write, atomic;
};

enum class Class {  // of instructions
  kInteger,
  kFloat,
  kHalf,
  kDouble,
  kSpecial,
  kConvert,
  kCompare,
  kMove,
  kLogic,
  kTensor,
  kGlobalLoad,
  kGlobalStore,
  kSharedLoad,
  kSharedStore,
  kLocal,
  kParam,
  kAtomic,
  kAsyncCopy,
  kWarp,
  kBarrier,
  kBranch,
  kOther,
  kCount
};
const char* class_name(Class c);

struct ClassCounts {
  uint64_t warp = 0;    // warp instructions issued
  uint64_t thread = 0;  // active threads of them
};

struct Counts {
  std::string kernel;
  Dim3 grid, block;
  size_t shared_bytes = 0;
  std::array<ClassCounts, static_cast<size_t>(Class::kCount)> classes;
  std::vector<std::pair<std::string, ClassCounts>> opcodes;  // "fma.rn.f32", most frequent first
  std::map<int, ClassCounts> lines;                          // of the PTX
  uint64_t branches = 0, divergent_branches = 0;
  struct Shared {
    uint64_t requests = 0, wavefronts = 0, ideal_wavefronts = 0, bytes = 0;
  } shared_load, shared_store;
  std::vector<TensorCounts> tensors;
  double seconds = 0.0;  // of the host

  uint64_t warp_instructions() const;
  uint64_t thread_instructions() const;
  std::string json() const;  // one object; the names above, snake_case
};

Counts run(const Launch& launch, Memory& memory, const Options& options);

}  // namespace effnet_fast::ptx
