// From statements to instructions: what every ops_*.cpp builds its opcodes with.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace effnet_fast::ptx {

// One kernel being decoded, and the statement at hand. A rule takes from it the modifiers that it
// knows and the operands; what is left over afterwards makes the statement unknown.
class Decoder {
 public:
  Decoder(const ModuleText& module, const Function& function,
          const std::map<std::string, Global>& globals, Kernel& kernel);
  void run();

  // ---- modifiers -------------------------------------------------------------------------------
  bool take(const char* modifier);  // false when it is not among those left
  Type type();                      // the first type left; fails when there is none
  Type type_if_any();               // or kNone
  const std::string& base() const { return statement_->opcode[0]; }
  // Fails when the module's .target is older: 90 for sm_90.
  void require_target(int capability) const;
  // The first of `names` that is left, as its index; -1 when none is.
  int take_one_of(std::initializer_list<const char*> names);

  // ---- operands --------------------------------------------------------------------------------
  size_t count() const { return statement_->operands.size(); }
  void expect(size_t at_least, size_t at_most);
  const Operand& operand(size_t i) const { return statement_->operands.at(i); }
  // The register written; a sink "_" gives a row nobody reads. `bits` must be the register's.
  Ref destination(const Operand& op, unsigned bits);
  Ref destination(size_t i, unsigned bits) { return destination(operand(i), bits); }
  // A register, an immediate (of `type`, for floats) or a symbol's address.
  Ref source(const Operand& op, unsigned bits, Type type = Type::kNone);
  Ref source(size_t i, unsigned bits, Type type = Type::kNone) {
    return source(operand(i), bits, type);
  }
  Ref source(size_t i, Type type) { return source(operand(i), bits_of(type), type); }
  Ref destination(size_t i, Type type) { return destination(operand(i), bits_of(type)); }
  Ref constant(uint64_t bits, unsigned width);
  // Whether any statement of the kernel writes it; true for what is no register.
  bool is_assigned(const Operand& op) const;
  unsigned register_bits(const Operand& op) const;  // 0 when it is no register
  Type register_type(const Operand& op) const;
  // The parts of {a, b} or the operand itself.
  std::vector<Operand> parts(size_t i) const;
  uint32_t list(const std::vector<Ref>& refs);
  uint64_t immediate(size_t i, uint64_t limit);  // fails when it is not one

  // [register + offset] or [symbol + offset] into in.a (4 or 8 bytes, in.flags says) and
  // in.immediate. `space` is "" (generic), "global", "shared", "local", "const" or "param".
  void address(size_t i, const std::string& space, Instr& in);
  uint32_t label(size_t i);

  void smallest_shared_access(uint32_t bytes);
  void smallest_global_access(uint32_t bytes);

  [[noreturn]] void unknown(const std::string& reason) const;

  Program& program() { return *program_; }
  const Function& function() const { return function_; }

 private:
  Ref rows(unsigned bits);
  Ref row_of(uint32_t reg);
  void lay_out_variables();
  bool symbol_address(const std::string& name, const std::string& space, uint64_t& address) const;
  void decode_statement(const Statement& statement);

  const ModuleText& module_;
  const Function& function_;
  const std::map<std::string, Global>& globals_;
  Kernel& kernel_;
  std::shared_ptr<Program> program_;
  std::vector<Ref> registers_;                              // id 0: not yet used
  std::vector<bool> assigned_;                              // of each register
  std::map<std::string, uint64_t> shared_, local_, param_;  // offsets
  std::map<std::pair<uint64_t, unsigned>, Ref> constants_;
  std::unordered_map<std::string, uint32_t> opcode_ids_;
  const Statement* statement_ = nullptr;
  std::vector<std::string> left_;  // modifiers not yet taken
};

// Fills in.run and its operands, for one base opcode.
using Rule = void (*)(Decoder&, Instr&);
struct RuleEntry {
  const char* base;
  Rule rule;
  Class kind;
};

std::vector<RuleEntry> integer_rules();
std::vector<RuleEntry> float_rules();
std::vector<RuleEntry> half_rules();
std::vector<RuleEntry> convert_rules();
std::vector<RuleEntry> memory_rules();
std::vector<RuleEntry> warp_rules();
std::vector<RuleEntry> tensor_rules();

// Flags of Instr that Decoder::address sets.
enum AddressFlags : uint16_t { kAddress32 = 1 };

}  // namespace effnet_fast::ptx
