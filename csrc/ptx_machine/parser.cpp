#include "parser.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <unordered_map>

namespace effnet_fast::ptx {
namespace {

// What a hostile or broken text could otherwise make us allocate.
constexpr uint64_t kMaxRegisters = 1u << 20;  // of all kernels
constexpr size_t kMaxParameterBytes = 32764;  // the ISA's own limit
constexpr uint64_t kMaxVariableBytes = uint64_t{1} << 32;
constexpr size_t kMaxDepth = 64;

const std::pair<const char*, Type> kTypes[] = {
    {"pred", Type::kPred},     {"b8", Type::kB8},         {"b16", Type::kB16},
    {"b32", Type::kB32},       {"b64", Type::kB64},       {"b128", Type::kB128},
    {"u8", Type::kU8},         {"u16", Type::kU16},       {"u32", Type::kU32},
    {"u64", Type::kU64},       {"s8", Type::kS8},         {"s16", Type::kS16},
    {"s32", Type::kS32},       {"s64", Type::kS64},       {"f16", Type::kF16},
    {"u16x2", Type::kU16x2},   {"s16x2", Type::kS16x2},   {"f16x2", Type::kF16x2},
    {"bf16", Type::kBf16},     {"bf16x2", Type::kBf16x2}, {"f32", Type::kF32},
    {"f64", Type::kF64},       {"f32x2", Type::kF32x2},   {"tf32", Type::kTf32},
    {"e4m3x2", Type::kE4m3x2}, {"e5m2x2", Type::kE5m2x2},
};

bool starts_name(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%';
}
bool in_name(char c) { return starts_name(c) || std::isdigit(static_cast<unsigned char>(c)); }

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t from = 0;
  // "::" belongs to a part ("L2::128B"), so only single separators are looked at.
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || text[i] == separator) {
      parts.push_back(text.substr(from, i - from));
      from = i + 1;
    }
  }
  return parts;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  ModuleText run() {
    while (skip_space()) parse_module_statement();
    return std::move(module_);
  }

 private:
  // ---- characters ------------------------------------------------------------------------------

  bool at_end() const { return at_ >= text_.size(); }
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  char take() {
    const char c = peek();
    if (c == '\n') ++line_;
    ++at_;
    return c;
  }

  // False at the end of the text.
  bool skip_space() {
    while (!at_end()) {
      if (std::isspace(static_cast<unsigned char>(peek()))) {
        take();
      } else if (peek() == '/' && peek(1) == '/') {
        while (!at_end() && peek() != '\n') take();
      } else if (peek() == '/' && peek(1) == '*') {
        take(), take();
        while (!at_end() && !(peek() == '*' && peek(1) == '/')) take();
        if (at_end()) fail("a comment that never ends");
        take(), take();
      } else {
        return true;
      }
    }
    return false;
  }

  [[noreturn]] void fail(const std::string& reason) const { fail_at(line_, reason); }
  [[noreturn]] void fail_at(int line, const std::string& reason) const {
    size_t begin = 0;
    for (int i = 1; i < line && begin < text_.size(); ++i) {
      const size_t next = text_.find('\n', begin);
      if (next == std::string::npos) break;
      begin = next + 1;
    }
    std::string shown = text_.substr(begin, std::min<size_t>(text_.find('\n', begin) - begin, 160));
    throw ParseError("PTX line " + std::to_string(line) + ": " + reason + ": \"" + shown + "\"");
  }

  void expect(char c) {
    skip_space();
    if (peek() != c) fail(std::string("expected '") + c + "'");
    take();
  }
  bool accept(char c) {
    skip_space();
    if (peek() != c) return false;
    take();
    return true;
  }

  std::string name() {
    skip_space();
    if (!starts_name(peek())) fail("expected a name");
    std::string result;
    while (in_name(peek())) result += take();
    return result;
  }

  // ".visible", "ld.global.L2::128B": up to white space or punctuation.
  std::string dotted() {
    skip_space();
    std::string result;
    while (in_name(peek()) || peek() == '.' || (peek() == ':' && peek(1) == ':') ||
           (peek() == ':' && !result.empty() && result.back() == ':')) {
      result += take();
    }
    return result;
  }

  // An integer, or the bits of 0f / 0d / a decimal float.
  Operand number() {
    skip_space();
    Operand op;
    op.kind = Operand::kImmediate;
    bool minus = false;
    if (peek() == '-') {
      take();
      minus = true;
      skip_space();
    }
    if (!std::isdigit(static_cast<unsigned char>(peek()))) fail("expected a number");
    std::string digits;
    const auto is_hex = [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; };
    const char kind = static_cast<char>(std::tolower(static_cast<unsigned char>(peek(1))));
    if (peek() == '0' && (kind == 'f' || kind == 'd')) {
      take(), take();
      while (is_hex(peek())) digits += take();
      op.width = kind == 'f' ? 32 : 64;
      if (digits.size() != op.width / 4) fail("a float literal needs 8 or 16 hex digits");
      op.bits = std::stoull(digits, nullptr, 16);
      if (minus) op.bits ^= uint64_t{1} << (op.width - 1);
      return op;
    }
    if (peek() == '0' && (kind == 'x' || kind == 'b')) {
      take(), take();
      const uint64_t base = kind == 'x' ? 16 : 2;
      while (is_hex(peek())) digits += take();
      if (digits.empty() || digits.size() > (base == 16 ? 16 : 64)) fail("bad integer literal");
      for (const char c : digits) {
        const uint64_t digit = std::stoull(std::string(1, c), nullptr, 16);
        if (digit >= base) fail("bad integer literal");
        op.bits = op.bits * base + digit;
      }
    } else {
      while (std::isdigit(static_cast<unsigned char>(peek()))) digits += take();
      if (peek() == '.' || peek() == 'e' || peek() == 'E') {
        while (std::isdigit(static_cast<unsigned char>(peek())) || peek() == '.' || peek() == 'e' ||
               peek() == 'E' ||
               ((peek() == '-' || peek() == '+') && std::tolower(digits.back()) == 'e')) {
          digits += take();
        }
        char* end = nullptr;
        const double value = std::strtod(digits.c_str(), &end) * (minus ? -1.0 : 1.0);
        if (*end != '\0') fail("bad float literal");
        op.width = 64;
        std::memcpy(&op.bits, &value, 8);
        return op;
      }
      const bool octal = digits.size() > 1 && digits[0] == '0';
      const uint64_t base = octal ? 8 : 10;
      for (const char c : digits) {
        const uint64_t digit = static_cast<uint64_t>(c - '0');
        if (digit >= base || op.bits > (~uint64_t{0} - digit) / base) fail("bad integer literal");
        op.bits = op.bits * base + digit;
      }
    }
    if (peek() == 'U') take();
    if (minus) op.bits = 0 - op.bits;
    return op;
  }

  uint64_t small(uint64_t limit, const char* what) {
    const Operand op = number();
    if (op.width || op.bits > limit)
      fail(std::string(what) + " is not between 0 and " + std::to_string(limit));
    return op.bits;
  }

  std::string quoted() {
    expect('"');
    std::string result;
    while (!at_end() && peek() != '"' && peek() != '\n') result += take();
    if (peek() != '"') fail("a string that never ends");
    take();
    return result;
  }

  void skip_line() {
    while (!at_end() && peek() != '\n') take();
  }

  // ---- module ----------------------------------------------------------------------------------

  void parse_module_statement() {
    if (peek() != '.') fail("expected a directive");
    std::string linkage;
    for (;;) {
      skip_space();
      const std::string word = directive();
      if (word == "visible" || word == "weak" || word == "extern" || word == "common") {
        linkage = word;
        continue;
      }
      if (word == "version") {
        number();  // 9.0
      } else if (word == "target") {
        parse_target();
      } else if (word == "address_size") {
        if (small(64, "the address size") != 64) fail("only 64-bit addresses are supported");
      } else if (word == "file") {
        parse_file();
      } else if (word == "section") {
        skip_section();
      } else if (word == "loc") {
        skip_line();
      } else if (word == "global" || word == "const" || word == "shared") {
        auto& into = word == "global"  ? module_.globals
                     : word == "const" ? module_.constants
                                       : module_.shared;
        parse_variables(into, linkage == "extern");
      } else if (word == "entry" || word == "func") {
        parse_function(word == "entry");
      } else if (word == "pragma" || word == "alias") {
        while (!at_end() && peek() != ';') take();
        expect(';');
      } else {
        fail("unknown directive ." + word);
      }
      return;
    }
  }

  std::string directive() {
    expect('.');
    if (!starts_name(peek())) fail("expected a directive");
    std::string result;
    while (in_name(peek())) result += take();
    return result;
  }

  void parse_target() {
    const std::string first = name();
    module_.target = target_named(first);
    if (!module_.target.capability) fail("unknown target " + first);
    while (accept(',')) name();  // debug, texmode_independent ...
  }

  void parse_file() {
    const int index = static_cast<int>(small(1u << 20, "a file's number"));
    module_.files[index] = quoted();
    skip_line();
  }

  void skip_section() {
    while (!at_end() && peek() != '{') take();
    expect('{');
    for (int depth = 1; depth > 0;) {
      if (at_end()) fail("a section that never ends");
      const char c = take();
      depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    }
  }

  // After the state space: [.align N] [.type] name[dims] [= value], ... ;
  void parse_variables(std::vector<Variable>& into, bool external) {
    size_t align = 0;
    Type type = Type::kNone;
    unsigned vector = 1;
    skip_space();
    while (peek() == '.') {
      const std::string word = directive();
      if (word == "align") {
        align = small(1u << 16, "an alignment");
        if (align == 0 || (align & (align - 1))) fail("an alignment is not a power of two");
      } else if (word == "v2" || word == "v4") {
        vector = word == "v2" ? 2 : 4;
      } else if (word == "ptr" || word == "attribute") {
        fail("." + word + " is not supported here");
      } else {
        type = type_named(word);
        if (type == Type::kNone || type == Type::kPred) fail("unknown type ." + word);
      }
      skip_space();
    }
    if (type == Type::kNone) fail("a variable without a type");
    const size_t element = bits_of(type) / 8;
    do {
      Variable v;
      v.name = name();
      uint64_t count = vector;
      v.external = external;
      while (accept('[')) {
        skip_space();
        if (peek() == ']') {
          if (!external) fail("an array without a size");
          count = 0;
        } else {
          const uint64_t dim = small(kMaxVariableBytes, "an array's size");
          if (dim && count > kMaxVariableBytes / dim) fail("an array is too large");
          count *= dim;
        }
        expect(']');
      }
      if (count > kMaxVariableBytes / element) fail("an array is too large");
      v.bytes = count * element;
      v.align = align ? align : element * vector;
      if (accept('=')) {
        v.has_value = true;
        parse_value(v, type, element, 0);
        if (v.value.size() > v.bytes) fail("more values than the variable holds");
      }
      into.push_back(std::move(v));
    } while (accept(','));
    expect(';');
  }

  void parse_value(Variable& v, Type type, size_t element, size_t depth) {
    if (depth > 8) fail("initialiser nested too deeply");
    if (accept('{')) {
      do parse_value(v, type, element, depth + 1);
      while (accept(','));
      expect('}');
      return;
    }
    if (v.value.size() + element > v.bytes) fail("more values than the variable holds");
    const Operand op = number();
    uint64_t bits = op.bits;
    if (type == Type::kF32 && op.width == 64) {
      double wide;
      std::memcpy(&wide, &op.bits, 8);
      const float narrow = static_cast<float>(wide);
      uint32_t pattern;
      std::memcpy(&pattern, &narrow, 4);
      bits = pattern;
    }
    for (size_t i = 0; i < element; ++i) {
      v.value.push_back(i < 8 ? static_cast<uint8_t>(bits >> (8 * i)) : uint8_t{0});
    }
  }

  // ---- functions -------------------------------------------------------------------------------

  struct Scope {
    std::unordered_map<std::string, uint32_t> names;  // exact
    struct Range {
      uint32_t first, count;
    };
    std::unordered_map<std::string, Range> ranges;  // %r<10>
    size_t id = 0;
  };

  void parse_function(bool is_entry) {
    function_ = Function();
    function_.is_entry = is_entry;
    function_.line = line_;
    skip_space();
    if (!is_entry && peek() == '(') skip_parentheses();
    function_.name = name();
    if (accept('(')) {
      if (!is_entry) {
        --at_;
        skip_parentheses();
      } else {
        parse_parameters();
      }
    }
    for (skip_space(); peek() == '.'; skip_space()) parse_performance();
    if (accept(';')) return;  // a declaration
    if (peek() != '{') fail("expected the body of " + function_.name);
    if (!is_entry) {  // device functions are never run: a call is refused by its text
      skip_body();
      return;
    }
    parse_body();
    module_.functions.push_back(std::move(function_));
  }

  void skip_parentheses() {
    expect('(');
    while (!at_end() && peek() != ')') take();
    expect(')');
  }

  void skip_body() {
    expect('{');
    for (int depth = 1; depth > 0;) {
      if (!skip_space()) fail("a body that never ends");
      const char c = take();
      depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    }
  }

  void parse_parameters() {
    if (accept(')')) return;
    size_t bytes = 0;
    do {
      skip_space();
      if (directive() != "param") fail("expected .param");
      Variable v;
      Type type = Type::kNone;
      size_t align = 0;
      for (skip_space(); peek() == '.'; skip_space()) {
        const std::string word = directive();
        if (word == "align") {
          align = small(1u << 16, "an alignment");
        } else if (word == "ptr" || word == "global" || word == "shared" || word == "local" ||
                   word == "const") {
          // ".ptr .global .align 4" tells of what the pointer points to, not of the parameter
          if (word != "ptr") continue;
          skip_space();
          while (peek() == '.') {
            const std::string attribute = directive();
            if (attribute == "align") small(1u << 16, "an alignment");
            skip_space();
          }
        } else {
          type = type_named(word);
          if (type == Type::kNone) fail("unknown type ." + word);
        }
      }
      if (type == Type::kNone) fail("a parameter without a type");
      v.name = name();
      v.bytes = bits_of(type) / 8;
      v.align = align ? align : v.bytes;
      if (v.align == 0 || (v.align & (v.align - 1))) fail("an alignment is not a power of two");
      if (accept('[')) {
        v.bytes *= small(1u << 16, "a parameter's size");
        expect(']');
      }
      bytes = (bytes + v.align - 1) / v.align * v.align + v.bytes;
      if (bytes > kMaxParameterBytes) fail("too many parameters");
      function_.parameters.push_back(std::move(v));
    } while (accept(','));
    expect(')');
  }

  void parse_performance() {
    const std::string word = directive();
    if (word == "maxntid" || word == "reqntid") {
      uint64_t sizes[3] = {1, 1, 1};
      for (int i = 0; i < 3; ++i) {
        sizes[i] = small(1u << 20, "a block's size");
        if (!accept(',')) break;
      }
      function_.max_threads = static_cast<uint32_t>(
          std::min<uint64_t>(sizes[0] * sizes[1] * sizes[2], uint64_t{1} << 31));
      if (word == "reqntid") {
        for (int i = 0; i < 3; ++i) function_.required_block[i] = static_cast<uint32_t>(sizes[i]);
      }
    } else if (word == "minnctapersm" || word == "maxnreg") {
      small(1u << 20, word.c_str());
    } else if (word == "noreturn") {
    } else if (word == "pragma") {
      quoted();
      expect(';');
    } else {
      fail("unknown directive ." + word);
    }
  }

  void parse_body() {
    expect('{');
    scopes_.assign(1, Scope());
    label_uses_.clear();
    next_scope_ = 1;
    loc_ = -1;
    while (!scopes_.empty()) {
      if (!skip_space()) fail("the body of " + function_.name + " never ends");
      if (peek() == '{') {
        take();
        if (scopes_.size() >= kMaxDepth) fail("scopes nested too deeply");
        scopes_.emplace_back();
        scopes_.back().id = next_scope_++;
      } else if (peek() == '}') {
        take();
        scopes_.pop_back();
      } else if (peek() == ';') {
        take();
      } else if (peek() == '.') {
        parse_body_directive();
      } else {
        parse_statement();
      }
    }
    resolve_labels();
  }

  void parse_body_directive() {
    const std::string word = directive();
    if (word == "reg") {
      parse_registers();
    } else if (word == "shared") {
      parse_variables(function_.shared, false);
    } else if (word == "local") {
      parse_variables(function_.local, false);
    } else if (word == "loc") {
      Loc loc;
      loc.file = static_cast<int>(small(1u << 20, "a file's number"));
      loc.line = static_cast<int>(small(1u << 30, "a line"));
      loc_ = static_cast<int>(module_.locs.size());
      module_.locs.push_back(loc);
      skip_line();
    } else if (word == "pragma") {
      quoted();
      expect(';');
    } else if (word == "param" || word == "branchtargets" || word == "callprototype" ||
               word == "calltargets") {
      while (!at_end() && peek() != ';') take();  // of calls, which are refused by their own text
      expect(';');
    } else {
      fail("unknown directive ." + word);
    }
  }

  void parse_registers() {
    skip_space();
    const std::string word = directive();
    const Type type = type_named(word);
    if (type == Type::kNone) fail("unknown register type ." + word);
    do {
      const std::string base = name();
      uint64_t count = 1;
      const bool range = accept('<');
      if (range) {
        count = small(kMaxRegisters, "a register count");
        expect('>');
      }
      registers_ += count;
      if (registers_ > kMaxRegisters) fail("too many registers");
      const auto first = static_cast<uint32_t>(function_.registers.size());
      for (uint64_t i = 0; i < count; ++i) {
        function_.registers.push_back({range ? base + std::to_string(i) : base, type});
      }
      if (range) {
        scopes_.back().ranges[base] = {first, static_cast<uint32_t>(count)};
      } else {
        scopes_.back().names[base] = first;
      }
    } while (accept(','));
    expect(';');
  }

  bool find_register(const std::string& text, uint32_t& index) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto exact = scope->names.find(text);
      if (exact != scope->names.end()) {
        index = exact->second;
        return true;
      }
      // "%r12" may be the 12th of %r<...> or the 2nd of %r1<...>: try every split.
      for (size_t digits = 1; digits < text.size() && digits <= 7; ++digits) {
        const size_t cut = text.size() - digits;
        if (!std::isdigit(static_cast<unsigned char>(text[cut]))) break;
        if (digits > 1 && text[cut] == '0') continue;
        const auto range = scope->ranges.find(text.substr(0, cut));
        if (range == scope->ranges.end()) continue;
        const unsigned long number = std::stoul(text.substr(cut));
        if (number >= range->second.count) continue;
        index = range->second.first + static_cast<uint32_t>(number);
        return true;
      }
    }
    return false;
  }

  uint32_t require_register(const std::string& text) const {
    uint32_t index = 0;
    if (!find_register(text, index)) fail("undeclared register " + text);
    return index;
  }

  void parse_statement() {
    const size_t begin = at_;
    Statement s;
    s.line = line_;
    s.loc = loc_;
    if (peek() == '@') {
      take();
      s.guarded = true;
      s.guard_negated = accept('!');
      s.guard = require_register(name());
      if (function_.registers[s.guard].type != Type::kPred) fail("a guard is not a predicate");
      skip_space();
    }
    if (!starts_name(peek())) fail("expected an instruction");
    const std::string word = dotted();
    skip_space();
    if (peek() == ':' && !s.guarded) {
      take();
      const auto label = std::make_pair(scopes_.back().id, word);
      if (!label_places_.emplace(label_key(label.first, word), function_.statements.size()).second)
        fail("label " + word + " is defined twice");
      return;
    }
    s.opcode = split(word, '.');
    if (!accept(';')) {
      // "call (ret), name, (args)": taken as text only
      if (s.opcode[0] == "call") {
        while (!at_end() && peek() != ';') take();
      } else {
        do s.operands.push_back(operand(0));
        while (accept(','));
      }
      if (s.operands.size() > 8) fail("too many operands");
      expect(';');
    }
    s.text = one_line(text_.substr(begin, at_ - begin));
    for (size_t i = 0; i < s.operands.size(); ++i) {
      if (s.operands[i].kind != Operand::kLabel) continue;
      std::vector<size_t> chain;
      for (const Scope& scope : scopes_) chain.push_back(scope.id);
      label_uses_.push_back({function_.statements.size(), i, std::move(chain)});
    }
    function_.statements.push_back(std::move(s));
  }

  static std::string one_line(const std::string& text) {
    std::string result;
    for (const char c : text) {
      if (std::isspace(static_cast<unsigned char>(c))) {
        if (!result.empty() && result.back() != ' ') result += ' ';
      } else {
        result += c;
      }
    }
    return result;
  }

  Operand operand(size_t depth) {
    if (depth > 4) fail("operand nested too deeply");
    skip_space();
    Operand op;
    if (peek() == '{') {
      take();
      op.kind = Operand::kVector;
      do op.parts.push_back(operand(depth + 1));
      while (accept(','));
      expect('}');
      if (op.parts.size() > 16) fail("a vector of more than 16");
      return op;
    }
    if (peek() == '[') {
      take();
      op.kind = Operand::kAddress;
      skip_space();
      if (starts_name(peek())) {
        op.name = name();
        op.has_reg = find_register(op.name, op.reg);
        skip_space();
      } else {
        op.offset = static_cast<int64_t>(number().bits);
        skip_space();
      }
      while (peek() == '+' || peek() == '-') {
        if (peek() == '+') take();
        const Operand n = number();
        if (n.width) fail("an address offset is not an integer");
        op.offset = static_cast<int64_t>(static_cast<uint64_t>(op.offset) + n.bits);
        skip_space();
      }
      expect(']');
      return op;
    }
    if (peek() == '!') {
      take();
      op = operand(depth + 1);
      op.negated = true;
      return op;
    }
    if (peek() == '-' && (peek(1) == '%' || starts_name(peek(1)))) {
      take();
      op = operand(depth + 1);
      op.negated = true;
      return op;
    }
    if (peek() == '-' || std::isdigit(static_cast<unsigned char>(peek()))) return number();
    if (peek() == '_' && !in_name(peek(1))) {
      take();
      op.kind = Operand::kSink;
      if (accept('|')) op.parts.push_back(operand(depth + 1));
      return op;
    }
    if (!starts_name(peek())) fail("expected an operand");
    op.name = name();
    if (find_register(op.name, op.reg)) {
      op.kind = Operand::kRegister;
      if (accept('|')) op.parts.push_back(operand(depth + 1));
      return op;
    }
    if (op.name[0] == '%') {
      while (peek() == '.') {
        op.name += take();
        while (in_name(peek())) op.name += take();
      }
      op.kind = Operand::kSpecial;
      return op;
    }
    op.kind = is_symbol(op.name) ? Operand::kSymbol : Operand::kLabel;
    skip_space();
    if (op.kind == Operand::kSymbol && (peek() == '+' || peek() == '-')) {
      if (peek() == '+') take();
      op.offset = static_cast<int64_t>(number().bits);
    }
    return op;
  }

  bool is_symbol(const std::string& text) const {
    const auto within = [&](const std::vector<Variable>& list) {
      return std::any_of(list.begin(), list.end(),
                         [&](const Variable& v) { return v.name == text; });
    };
    return within(function_.shared) || within(function_.local) || within(function_.parameters) ||
           within(module_.globals) || within(module_.constants) || within(module_.shared);
  }

  // ---- labels ----------------------------------------------------------------------------------

  static std::string label_key(size_t scope, const std::string& label) {
    return std::to_string(scope) + " " + label;
  }

  void resolve_labels() {
    for (const LabelUse& use : label_uses_) {
      Statement& s = function_.statements[use.statement];
      Operand& op = s.operands[use.operand];
      bool found = false;
      for (auto scope = use.chain.rbegin(); scope != use.chain.rend() && !found; ++scope) {
        const auto place = label_places_.find(label_key(*scope, op.name));
        if (place == label_places_.end()) continue;
        op.name = label_key(*scope, op.name);
        found = true;
      }
      if (!found) fail_at(s.line, "unknown name " + op.name);
    }
    for (const auto& [label, place] : label_places_) {
      function_.labels[label] = static_cast<uint32_t>(place);
    }
    label_places_.clear();
  }

  struct LabelUse {
    size_t statement, operand;
    std::vector<size_t> chain;  // scopes, outermost first
  };

  const std::string& text_;
  size_t at_ = 0;
  int line_ = 1;
  int loc_ = -1;
  ModuleText module_;
  Function function_;
  std::vector<Scope> scopes_;
  size_t next_scope_ = 1;
  uint64_t registers_ = 0;
  std::vector<LabelUse> label_uses_;
  std::unordered_map<std::string, size_t> label_places_;
};

}  // namespace

Type type_named(const std::string& name) {
  for (const auto& [text, type] : kTypes) {
    if (name == text) return type;
  }
  return Type::kNone;
}

unsigned bits_of(Type type) {
  switch (type) {
    case Type::kNone:
      return 0;
    case Type::kPred:
      return 1;
    case Type::kB8:
    case Type::kU8:
    case Type::kS8:
      return 8;
    case Type::kB16:
    case Type::kU16:
    case Type::kS16:
    case Type::kF16:
    case Type::kBf16:
    case Type::kE4m3x2:
    case Type::kE5m2x2:
      return 16;
    case Type::kB32:
    case Type::kU32:
    case Type::kS32:
    case Type::kU16x2:
    case Type::kS16x2:
    case Type::kF16x2:
    case Type::kBf16x2:
    case Type::kF32:
    case Type::kTf32:
      return 32;
    case Type::kB64:
    case Type::kU64:
    case Type::kS64:
    case Type::kF64:
    case Type::kF32x2:
      return 64;
    case Type::kB128:
      return 128;
  }
  return 0;
}

Target target_named(const std::string& name) {
  Target target;
  if (name.rfind("sm_", 0) != 0) return target;
  size_t i = 3;
  for (; i < name.size() && i < 6 && std::isdigit(static_cast<unsigned char>(name[i])); ++i) {
    target.capability = target.capability * 10 + (name[i] - '0');
  }
  if (i + 1 == name.size() && (name[i] == 'a' || name[i] == 'f')) target.suffix = name[i++];
  return i == name.size() && i >= 5 ? target : Target();
}

bool Target::runs_on(int device) const {
  if (suffix == 'a') return device == capability;
  return device >= capability && (suffix != 'f' || device / 10 == capability / 10);
}

std::string describe(const Target& target) {
  return "sm_" + std::to_string(target.capability) +
         (target.suffix ? std::string(1, target.suffix) : "");
}

ModuleText parse(const std::string& text) {
  if (text.find('\0') != std::string::npos) throw ParseError("PTX holds a zero byte");
  return Parser(text).run();
}

}  // namespace effnet_fast::ptx
