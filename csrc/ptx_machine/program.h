// Decoded kernels: what the interpreter runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "machine.h"
#include "parser.h"

namespace effnet_fast::ptx {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kAllLanes = ~0u;

struct Warp;
struct Instr;
// Does an instruction for the lanes of `exec`, which are active and whose guard holds. May change
// warp.next, the instruction that follows.
using Handler = void (*)(Warp& warp, const Instr& in, uint32_t exec);

// A row: one register of all lanes of a warp, 32 values side by side; a predicate is one 32-bit
// mask.
struct Ref {
  static constexpr uint32_t kConstant = 1u << 31;
  uint32_t offset =
      0;            // bytes into the warp's rows, or with kConstant into the program's constants
  uint32_t id = 0;  // whose bits say which lanes are defined; 0: always, never written
};

struct Instr {
  Handler run = nullptr;
  Ref d, a, b, c, e;  // destination and sources, as the handler takes them
  Ref guard;          // a predicate
  bool guarded = false, guard_negated = false;
  uint8_t count = 1;           // elements of a vector, matrices of ldmatrix
  uint8_t size = 0;            // bytes of an element in memory
  uint8_t mode = 0;            // the handler's own
  uint16_t flags = 0;          // AddressFlags, and the handler's own
  Class kind = Class::kCount;  // when it is not that of its rule
  uint32_t target = 0;         // of a branch
  uint32_t list = 0;           // first of its Refs in Program::lists
  int64_t immediate = 0;       // address offset
};

struct Extent {  // of a shared variable
  uint32_t offset = 0, bytes = 0;
  std::string name;
};

struct Program {
  std::string kernel;
  std::vector<Instr> code;  // ends with a `ret`
  std::vector<Ref> lists;
  std::vector<uint8_t> constants;  // rows of immediates and addresses
  size_t row_bytes = 0;            // of one warp
  uint32_t ids = 1;                // of defined masks

  std::vector<Extent> shared;   // static variables, with gaps between them that nothing may touch
  uint32_t dynamic_shared = 0;  // offset of the dynamic part
  // Bytes of a shadow cell: the smallest access that the kernel has.
  uint32_t shared_granule = 16;
  uint32_t global_granule = 16;

  // Beside code, for messages and counts.
  struct Source {
    std::string text;
    int line = 0;          // of the PTX
    std::string location;  // "depthwise_conv.cu:42", or empty
    uint32_t opcode = 0;   // index into opcodes
    Class kind = Class::kOther;
  };
  std::vector<Source> source;
  std::vector<std::string> opcodes;
};

// Windows of the generic address space. Device memory lies elsewhere (memory.h).
inline constexpr uint64_t kSharedWindow = uint64_t{0x51} << 40;
inline constexpr uint64_t kLocalWindow = uint64_t{0x52} << 40;
inline constexpr uint64_t kParamWindow = uint64_t{0x53} << 40;
inline constexpr uint64_t kWindowBytes = uint64_t{1} << 32;

// Bytes between two shared variables that belong to neither: a multiple of all 32 banks, so that
// bank conflicts are those of variables laid out side by side.
inline constexpr uint32_t kSharedGap = 128;

// Fills kernel's sizes and its program. `globals` are the module's variables. Throws
// Fault(kUnknownOpcode) with the instruction's text.
void decode(const ModuleText& module, const Function& function,
            const std::map<std::string, Global>& globals, Kernel& kernel);

}  // namespace effnet_fast::ptx
