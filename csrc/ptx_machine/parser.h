// PTX text to statements: scopes, registers and labels resolved, opcodes not yet understood.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fault.h"

namespace effnet_fast::ptx {

enum class Type : uint8_t {
  kNone,
  kPred,
  kB8,
  kB16,
  kB32,
  kB64,
  kB128,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kU16x2,
  kS16x2,
  kF16,
  kF16x2,
  kBf16,
  kBf16x2,
  kF32,
  kF64,
  kF32x2,
  kTf32,
  kE4m3x2,
  kE5m2x2,
};
// kNone for a name that is no type. `name` is without its dot: "u32".
Type type_named(const std::string& name);
unsigned bits_of(Type type);  // 1 for kPred

struct Operand {
  enum Kind { kRegister, kImmediate, kSymbol, kSpecial, kAddress, kVector, kLabel, kSink };
  Kind kind = kSink;
  std::string name;      // as written: of a symbol, special register or label
  uint32_t reg = 0;      // kRegister, and kAddress with has_reg: index into Function::registers
  bool has_reg = false;  // kAddress: [register + offset], else [symbol + offset] or [offset]
  bool negated = false;  // -register or !predicate
  uint64_t bits = 0;     // kImmediate: an integer, or the bits of a float of `width` bits
  unsigned width = 0;    // 32 or 64 for 0f and 0d literals, 0 for integers
  int64_t offset = 0;    // kAddress, kSymbol
  std::vector<Operand> parts;  // kVector; and the second of "p|q"
};

struct Statement {
  std::string text;  // one line, for messages
  int line = 0;      // of the PTX text, from 1
  int loc = -1;      // index into ModuleText::locs
  bool guarded = false, guard_negated = false;
  uint32_t guard = 0;               // register
  std::vector<std::string> opcode;  // split at dots: "ld", "global", "L2::128B", "f32"
  std::vector<Operand> operands;
};

struct Variable {
  std::string name;
  size_t bytes = 0, align = 1;
  bool external = false;       // .extern .shared name[]: the dynamic part
  std::vector<uint8_t> value;  // of its first bytes; the rest is zero
  bool has_value = false;
};

struct Register {
  std::string name;
  Type type = Type::kNone;
};

struct Function {
  std::string name;
  bool is_entry = false;
  std::vector<Variable> parameters;
  std::vector<Register> registers;
  std::vector<Variable> shared, local;  // declared in its body
  std::vector<Statement> statements;
  std::map<std::string, uint32_t> labels;  // to an index of statements, which may be their count
  uint32_t max_threads = 0;
  uint32_t required_block[3] = {0, 0, 0};
  int line = 0;
};

struct Loc {
  int file = 0, line = 0;
};

// What a module is for.
struct Target {
  int capability = 0;  // 80 of ".target sm_80"
  char suffix = 0;     // 'a' of sm_90a, 'f' of sm_100f
  // As drivers have it: sm_80 runs on what is newer, sm_90a on an sm_90 alone, sm_100f on its
  // generation.
  bool runs_on(int device) const;
};
// Of "sm_90a"; no capability where it is no target.
Target target_named(const std::string& name);
std::string describe(const Target& target);  // "sm_90a"

struct ModuleText {
  Target target;
  std::vector<Variable> globals, constants, shared;
  std::vector<Function> functions;
  std::map<int, std::string> files;
  std::vector<Loc> locs;
};

// Throws ParseError with line number and text; never reads out of `text`, whatever it holds.
ModuleText parse(const std::string& text);

}  // namespace effnet_fast::ptx
