#include "decode.h"

#include <algorithm>
#include <cstring>

namespace effnet_fast::ptx {
namespace {

constexpr uint32_t kRowAlignment = 32;
constexpr size_t kMaxRowBytes = size_t{1} << 24;
constexpr size_t kMaxSharedBytes = size_t{1} << 20;  // four times what any GPU has

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A base opcode may have several rules, of float, half and integer types: the first that takes the
// statement's types is it.
const std::unordered_multimap<std::string, RuleEntry>& rules() {
  static const auto table = [] {
    std::unordered_multimap<std::string, RuleEntry> all;
    for (const auto& list : {integer_rules(), float_rules(), half_rules(), convert_rules(),
                             memory_rules(), warp_rules(), tensor_rules()}) {
      for (const RuleEntry& entry : list) all.emplace(entry.base, entry);
    }
    return all;
  }();
  return table;
}

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ".") + part;
  return text;
}

}  // namespace

Decoder::Decoder(const ModuleText& module, const Function& function,
                 const std::map<std::string, Global>& globals, Kernel& kernel)
    : module_(module),
      function_(function),
      globals_(globals),
      kernel_(kernel),
      program_(std::make_shared<Program>()) {
  program_->kernel = function.name;
}

void Decoder::run() {
  lay_out_variables();
  for (const Register& r : function_.registers) {
    const unsigned bits = bits_of(r.type);
    if (bits == 8 || bits == 128) {
      throw Fault(Trap::kUnknownOpcode, "kernel " + function_.name + ": register " + r.name +
                                            " has " + std::to_string(bits) +
                                            " bits; executed here: predicates, 16, 32 and 64");
    }
  }
  registers_.resize(function_.registers.size());
  assigned_.resize(function_.registers.size());
  for (const Statement& s : function_.statements) {
    if (s.operands.empty()) continue;
    const Operand& to = s.operands[0];  // of every opcode that writes registers
    if (to.kind == Operand::kRegister) assigned_[to.reg] = true;
    for (const Operand& part : to.parts) {
      if (part.kind == Operand::kRegister) assigned_[part.reg] = true;
    }
  }
  for (const Statement& s : function_.statements) decode_statement(s);
  // A cell lies in one variable.
  for (const Extent& e : program_->shared) {
    while (e.bytes % program_->shared_granule) program_->shared_granule /= 2;
  }
  // A kernel whose last instruction is not `ret` would run off its end.
  Statement ret;
  ret.text = "(end of the kernel)";
  ret.opcode = {"ret"};
  decode_statement(ret);
  kernel_.program = program_;
}

Ref Decoder::rows(unsigned bits) {
  Ref r;
  r.offset = static_cast<uint32_t>(program_->row_bytes);
  r.id = program_->ids++;
  program_->row_bytes += round_up(bits == 1 ? 4 : bits / 8 * kLanes, kRowAlignment);
  if (program_->row_bytes > kMaxRowBytes) {
    throw Fault(Trap::kUnknownOpcode, "kernel " + function_.name + " has too many registers");
  }
  return r;
}

// Many more registers are declared than used.
Ref Decoder::row_of(uint32_t reg) {
  if (registers_[reg].id == 0) registers_[reg] = rows(bits_of(function_.registers[reg].type));
  return registers_[reg];
}

bool Decoder::is_assigned(const Operand& op) const {
  return op.kind != Operand::kRegister || assigned_[op.reg];
}

void Decoder::lay_out_variables() {
  kernel_.name = function_.name;
  size_t offset = 0;
  for (const Variable& v : function_.parameters) {
    offset = round_up(offset, v.align);
    kernel_.parameters.push_back({v.name, offset, v.bytes, v.align});
    param_[v.name] = offset;
    offset += v.bytes;
  }
  kernel_.parameter_bytes = offset;
  if (function_.max_threads) kernel_.max_threads = function_.max_threads;
  kernel_.required_block = {function_.required_block[0], function_.required_block[1],
                            function_.required_block[2]};

  for (const Variable& v : function_.local) {
    kernel_.local = round_up(kernel_.local, v.align);
    local_[v.name] = kernel_.local;
    kernel_.local += v.bytes;
  }
  if (kernel_.local > (size_t{1} << 19)) {
    throw Fault(Trap::kUnknownOpcode, "kernel " + function_.name +
                                          " has more local memory than "
                                          "the 512 KB that a thread can have");
  }

  // Module-level shared variables belong to the kernels that name them.
  std::vector<const Variable*> variables, dynamic;
  const auto names = [&](const std::string& name) {
    return std::any_of(function_.statements.begin(), function_.statements.end(),
                       [&](const Statement& s) {
                         return std::any_of(s.operands.begin(), s.operands.end(),
                                            [&](const Operand& o) { return o.name == name; });
                       });
  };
  for (const Variable& v : module_.shared) {
    if (names(v.name)) (v.external ? dynamic : variables).push_back(&v);
  }
  for (const Variable& v : function_.shared) variables.push_back(&v);
  size_t exact = 0, spaced = 0;
  for (const Variable* v : variables) {
    exact = round_up(exact, v->align) + v->bytes;
    spaced = round_up(spaced, std::max<size_t>(v->align, kSharedGap));
    shared_[v->name] = spaced;
    if (v->bytes) {
      program_->shared.push_back(
          {static_cast<uint32_t>(spaced), static_cast<uint32_t>(v->bytes), v->name});
    }
    spaced += v->bytes + kSharedGap;
    if (spaced > kMaxSharedBytes) {
      throw Fault(Trap::kUnknownOpcode, "kernel " + function_.name + " has too much shared memory");
    }
  }
  kernel_.static_shared = exact;
  size_t align = kSharedGap;
  for (const Variable* v : dynamic) align = std::max(align, v->align);
  program_->dynamic_shared = static_cast<uint32_t>(round_up(spaced, align));
  for (const Variable* v : dynamic) shared_[v->name] = program_->dynamic_shared;
}

void Decoder::decode_statement(const Statement& s) {
  statement_ = &s;
  Instr plain;
  if (s.guarded) {
    plain.guarded = true;
    plain.guard_negated = s.guard_negated;
    plain.guard = row_of(s.guard);
  }
  Instr in = plain;
  const auto [begin, end] = rules().equal_range(s.opcode[0]);
  Class kind = Class::kOther;
  for (auto entry = begin; entry != end && !in.run; ++entry) {
    in = plain;
    left_.assign(s.opcode.begin() + 1, s.opcode.end());
    entry->second.rule(*this, in);
    kind = entry->second.kind;
    if (in.run && !left_.empty()) unknown("." + join(left_) + " is not executed here");
  }
  if (!in.run) unknown("not executed here");
  Program::Source source;
  source.text = s.text;
  source.line = s.line;
  if (s.loc >= 0) {
    const Loc& loc = module_.locs[static_cast<size_t>(s.loc)];
    const auto file = module_.files.find(loc.file);
    std::string path = file == module_.files.end() ? "" : file->second;
    path = path.substr(path.find_last_of('/') + 1);
    if (loc.line) source.location = path + ":" + std::to_string(loc.line);
  }
  const std::string opcode = join(s.opcode);
  const auto id = opcode_ids_.emplace(opcode, static_cast<uint32_t>(opcode_ids_.size()));
  if (id.second) program_->opcodes.push_back(opcode);
  source.opcode = id.first->second;
  source.kind = in.kind == Class::kCount ? kind : in.kind;
  program_->code.push_back(in);
  program_->source.push_back(std::move(source));
}

void Decoder::unknown(const std::string& reason) const {
  throw Fault(Trap::kUnknownOpcode, "unknown opcode: kernel " + function_.name + ", PTX line " +
                                        std::to_string(statement_->line) + ": \"" +
                                        statement_->text + "\": " + reason);
}

void Decoder::require_target(int capability) const {
  if (module_.target.capability >= capability) return;
  unknown("it needs sm_" + std::to_string(capability) + "; the module is for " +
          describe(module_.target));
}

bool Decoder::take(const char* modifier) {
  const auto found = std::find(left_.begin(), left_.end(), modifier);
  if (found == left_.end()) return false;
  left_.erase(found);
  return true;
}

int Decoder::take_one_of(std::initializer_list<const char*> names) {
  int index = 0;
  for (const char* name : names) {
    if (take(name)) return index;
    ++index;
  }
  return -1;
}

Type Decoder::type_if_any() {
  for (auto part = left_.begin(); part != left_.end(); ++part) {
    const Type type = type_named(*part);
    if (type == Type::kNone) continue;
    left_.erase(part);
    return type;
  }
  return Type::kNone;
}

Type Decoder::type() {
  const Type type = type_if_any();
  if (type == Type::kNone) unknown("it has no type");
  return type;
}

void Decoder::expect(size_t at_least, size_t at_most) {
  if (count() < at_least || count() > at_most) {
    unknown("it has " + std::to_string(count()) + " operands; expected " +
            std::to_string(at_least) +
            (at_least == at_most ? "" : " to " + std::to_string(at_most)));
  }
}

unsigned Decoder::register_bits(const Operand& op) const { return bits_of(register_type(op)); }

Type Decoder::register_type(const Operand& op) const {
  if (op.kind != Operand::kRegister) return Type::kNone;
  return function_.registers[op.reg].type;
}

Ref Decoder::destination(const Operand& op, unsigned bits) {
  if (op.kind == Operand::kSink) return rows(bits);
  if (op.kind != Operand::kRegister || op.negated) unknown("its destination is no register");
  if (!op.parts.empty()) unknown("a pair is not a destination");
  if (register_bits(op) != bits) {
    unknown("register " + op.name + " has " + std::to_string(register_bits(op)) +
            " bits; expected " + std::to_string(bits));
  }
  return row_of(op.reg);
}

Ref Decoder::constant(uint64_t bits, unsigned width) {
  if (width < 64) bits &= (uint64_t{1} << width) - 1;
  const auto known = constants_.emplace(std::make_pair(bits, width), Ref());
  if (known.second) {
    auto& memory = program_->constants;
    const size_t offset = round_up(memory.size(), kRowAlignment);
    known.first->second = {static_cast<uint32_t>(offset) | Ref::kConstant, 0};
    if (width == 1) {
      memory.resize(offset + 4, bits ? 0xFF : 0);
    } else {
      memory.resize(offset + width / 8 * kLanes);
      for (int l = 0; l < kLanes; ++l) {
        std::memcpy(&memory[offset + static_cast<size_t>(l) * (width / 8)], &bits, width / 8);
      }
    }
  }
  return known.first->second;
}

Ref Decoder::source(const Operand& op, unsigned bits, Type type) {
  if (op.kind == Operand::kRegister) {
    if (op.negated) unknown("a negated operand is not executed here");
    if (!op.parts.empty()) unknown("a pair is not a source");
    if (register_bits(op) != bits) {
      unknown("register " + op.name + " has " + std::to_string(register_bits(op)) +
              " bits; expected " + std::to_string(bits));
    }
    return row_of(op.reg);
  }
  if (op.kind == Operand::kImmediate) {
    uint64_t value = op.bits;
    const bool floating = type == Type::kF32 || type == Type::kF64;
    if (floating && op.width == 0) {
      unknown("an integer where a float is expected");
    } else if (type == Type::kF32 && op.width == 64) {
      double wide;
      std::memcpy(&wide, &value, 8);
      const float narrow = static_cast<float>(wide);
      value = 0;
      std::memcpy(&value, &narrow, 4);
    } else if (type == Type::kF64 && op.width == 32) {
      float narrow;
      std::memcpy(&narrow, &value, 4);
      const double wide = narrow;
      std::memcpy(&value, &wide, 8);
    }
    return constant(bits == 1 ? value != 0 : value, bits);
  }
  if (op.kind == Operand::kSymbol) {
    uint64_t address = 0;
    if (!symbol_address(op.name, "", address)) unknown("unknown variable " + op.name);
    return constant(address + static_cast<uint64_t>(op.offset), bits);
  }
  unknown("operand " + op.name + " is not a register or a number");
}

std::vector<Operand> Decoder::parts(size_t i) const {
  const Operand& op = operand(i);
  return op.kind == Operand::kVector ? op.parts : std::vector<Operand>{op};
}

uint32_t Decoder::list(const std::vector<Ref>& refs) {
  const auto first = static_cast<uint32_t>(program_->lists.size());
  program_->lists.insert(program_->lists.end(), refs.begin(), refs.end());
  return first;
}

uint64_t Decoder::immediate(size_t i, uint64_t limit) {
  const Operand& op = operand(i);
  if (op.kind != Operand::kImmediate || op.width || op.bits > limit) {
    unknown("operand " + std::to_string(i + 1) + " is not a number of at most " +
            std::to_string(limit));
  }
  return op.bits;
}

bool Decoder::symbol_address(const std::string& name, const std::string& space,
                             uint64_t& address) const {
  const auto within = [&](const std::map<std::string, uint64_t>& offsets, const char* its) {
    const auto found = offsets.find(name);
    if (found == offsets.end() || (!space.empty() && space != its)) return false;
    address = found->second;
    return true;
  };
  if (within(shared_, "shared") || within(local_, "local") || within(param_, "param")) return true;
  const auto global = globals_.find(name);
  if (global == globals_.end() || !(space.empty() || space == "global" || space == "const")) {
    return false;
  }
  address = global->second.address;
  return true;
}

void Decoder::address(size_t i, const std::string& space, Instr& in) {
  const Operand& op = operand(i);
  if (op.kind != Operand::kAddress)
    unknown("operand " + std::to_string(i + 1) + " is not an address");
  in.immediate = op.offset;
  if (op.has_reg) {
    const unsigned bits = bits_of(function_.registers[op.reg].type);
    if (bits != 32 && bits != 64) unknown("its address register has neither 32 nor 64 bits");
    in.a = row_of(op.reg);
    if (bits == 32) in.flags |= kAddress32;
    return;
  }
  uint64_t base = 0;
  if (!op.name.empty()) {
    if (!symbol_address(op.name, space, base)) {
      unknown("no variable " + op.name + " in " + (space.empty() ? "this module" : space));
    }
    // A generic access names a variable of a space that has a window.
    if (space.empty()) {
      if (shared_.count(op.name)) base += kSharedWindow;
      if (local_.count(op.name)) base += kLocalWindow;
      if (param_.count(op.name)) base += kParamWindow;
    }
  }
  in.a = constant(base, 64);
}

uint32_t Decoder::label(size_t i) {
  const Operand& op = operand(i);
  const auto found = function_.labels.find(op.name);
  if (op.kind != Operand::kLabel || found == function_.labels.end()) unknown("no such label");
  return found->second;
}

void Decoder::smallest_shared_access(uint32_t bytes) {
  program_->shared_granule = std::min(program_->shared_granule, bytes);
}

void Decoder::smallest_global_access(uint32_t bytes) {
  program_->global_granule = std::min(program_->global_granule, bytes);
}

void decode(const ModuleText& module, const Function& function,
            const std::map<std::string, Global>& globals, Kernel& kernel) {
  Decoder(module, function, globals, kernel).run();
}

}  // namespace effnet_fast::ptx
