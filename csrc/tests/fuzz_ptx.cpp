// Broken PTX for the machine: texts made from a folder of right ones are parsed, decoded and run.
// Whatever they hold, a text may only run, be refused, or be stopped by a trap; anything else ends
// the program with the input's number, and so do 20 seconds or 1 GB.
//
//   fuzz_ptx FOLDER [--seed N] [--inputs N] [--seconds N]   inputs 0, 1, ... of the seed
//   fuzz_ptx FOLDER --seed N --only I [--print]             one of them, and its text
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ptx_machine/machine.h"

// A sanitizer's report ends in abort(), which says the input's number.
#define OPTIONS_OF(sanitizer) \
  extern "C" __attribute__((visibility("default"))) const char* __##sanitizer##_default_options()
OPTIONS_OF(asan) { return "abort_on_error=1:max_allocation_size_mb=1024"; }
OPTIONS_OF(ubsan) { return "abort_on_error=1:print_stacktrace=1"; }

namespace {

using namespace effnet_fast::ptx;

constexpr unsigned kSeconds = 20;
constexpr long kMegabytes = 1024;
constexpr size_t kBufferBytes = 16384;

uint64_t seed = 1;
volatile uint64_t input = 0;

void say_which() {
  char text[96];
  const int n =
      std::snprintf(text, sizeof(text), "input %llu of seed %llu\n",
                    static_cast<unsigned long long>(input), static_cast<unsigned long long>(seed));
  if (write(STDERR_FILENO, text, static_cast<size_t>(n)) < 0) return;
}

void on_alarm(int) {
  say_which();
  constexpr char text[] = "it took too long\n";
  if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0) _exit(3);
  _exit(2);
}

void on_crash(int signal) {
  say_which();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

[[noreturn]] void give_up(const std::string& reason) {
  say_which();
  std::fprintf(stderr, "%s\n", reason.c_str());
  std::exit(1);
}

class Random {
 public:
  explicit Random(uint64_t state) : state_(state) {}
  uint64_t next() {  // splitmix64
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
  }
  size_t below(size_t n) { return next() % n; }
  template <class T>
  const T& of(const std::vector<T>& list) {
    return list[below(list.size())];
  }

 private:
  uint64_t state_;
};

// ---- texts --------------------------------------------------------------------------------------

using Tokens = std::vector<std::string>;

bool in_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("_$%.:", c) != nullptr;
}

// Words ("ld.global.u32", "%r1", "0f3F800000"), single characters, and white space.
Tokens tokenize(const std::string& text) {
  Tokens tokens;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (text[i] && in_word(text[i])) {
      while (end < text.size() && text[end] && in_word(text[end])) ++end;
    } else if (text[i] == ' ') {
      while (end < text.size() && text[end] == ' ') ++end;
    }
    tokens.push_back(text.substr(i, end - i));
    i = end;
  }
  return tokens;
}

std::string join(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

enum Kind { kRegister, kNumber, kOpcode, kDirective, kName, kOther, kKinds };

Kind kind_of(const std::string& token) {
  const char c = token[0];
  if (c == '%') return kRegister;
  if (std::isdigit(static_cast<unsigned char>(c))) return kNumber;
  if (c == '.') return kDirective;
  if (!std::isalpha(static_cast<unsigned char>(c)) && c != '_' && c != '$') return kOther;
  return token.find('.') == std::string::npos ? kName : kOpcode;
}

struct Corpus {
  std::vector<std::string> names, texts;
  std::vector<Tokens> tokens;
  std::vector<std::string> words[kKinds];
  std::vector<std::string> modifiers, lines;

  explicit Corpus(const std::string& folder) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".ptx") names.push_back(entry.path());
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      std::ostringstream text;
      text << std::ifstream(name).rdbuf();
      texts.push_back(text.str());
      tokens.push_back(tokenize(texts.back()));
      for (const std::string& token : tokens.back()) {
        const Kind kind = kind_of(token);
        words[kind].push_back(token);
        if (kind != kOpcode) continue;
        for (const std::string& part : split(token, '.')) modifiers.push_back(part);
      }
      for (const std::string& line : split(texts.back(), '\n')) lines.push_back(line);
    }
  }
};

const std::vector<std::string> kNumbers = {"0",           "1",
                                           "-1",          "3",
                                           "7",           "16",
                                           "31",          "32",
                                           "33",          "64",
                                           "127",         "255",
                                           "1024",        "4096",
                                           "65535",       "65536",
                                           "1048576",     "2147483647",
                                           "-2147483648", "4294967295",
                                           "4294967296",  "0x7FFFFFFF",
                                           "0x80000000",  "9223372036854775807",
                                           "-1.5e300",    "1e-320",
                                           "0f7FC00000",  "0xFFFFFFFFFFFFFFFF",
                                           "0fFF800000",  "0f00000001",
                                           "0f4F000000",  "-9223372036854775808",
                                           "0x1000000",   "07777",
                                           "0b1011",      "18446744073709551616",
                                           "1e999",       "0d7FEFFFFFFFFFFFFF"};

// Another one of the same text and letters: "%rd7" for "%rd1".
std::string other_register(const std::string& token, const Tokens& tokens, Random& random) {
  const auto letters = [](const std::string& name) {
    return name.substr(0, name.find_first_of("0123456789"));
  };
  for (int i = 0; i < 64; ++i) {
    const std::string& other = random.of(tokens);
    if (other != token && letters(other) == letters(token)) return other;
  }
  return token;
}

// A word that could stand in its place.
std::string other_word(const std::string& token, const Tokens& tokens, const Corpus& corpus,
                       Random& random) {
  const Kind kind = kind_of(token);
  if (kind == kRegister && random.below(16)) return other_register(token, tokens, random);
  if (kind == kNumber && random.below(4)) return random.of(kNumbers);
  if (kind == kOpcode && random.below(4)) {
    std::vector<std::string> parts = split(token, '.');
    const size_t at = random.below(parts.size());
    switch (random.below(3)) {
      case 0:
        parts[at] = random.of(corpus.modifiers);
        break;
      case 1:
        parts.erase(parts.begin() + static_cast<ptrdiff_t>(at));
        break;
      default:
        parts.insert(parts.begin() + static_cast<ptrdiff_t>(at) + 1, random.of(corpus.modifiers));
    }
    std::string word;
    for (const std::string& part : parts) word += (word.empty() ? "" : ".") + part;
    return word;
  }
  return random.of(corpus.words[kind]);
}

void change_tokens(std::string& text, const Corpus& corpus, Random& random) {
  Tokens tokens = tokenize(text);
  if (tokens.empty()) return;
  size_t at = random.below(tokens.size());
  // What is between words is mostly left alone: without a comma there is nothing to run.
  const bool words = random.below(8) != 0;
  while (words && at + 1 < tokens.size() && kind_of(tokens[at]) == kOther) ++at;
  switch (random.below(24)) {
    case 0:
      tokens.erase(tokens.begin() + static_cast<ptrdiff_t>(at));
      break;
    case 1:
      tokens.insert(tokens.begin() + static_cast<ptrdiff_t>(at), std::string(tokens[at]));
      break;
    case 2:
      std::swap(tokens[at], tokens[random.below(tokens.size())]);
      break;
    case 3:
    case 4:
      for (int i = 0; i < 64; ++i) {
        std::string& other = tokens[random.below(tokens.size())];
        if (kind_of(other) != kind_of(tokens[at]) || other == tokens[at]) continue;
        std::swap(tokens[at], other);
        break;
      }
      break;
    default:
      tokens[at] = other_word(tokens[at], tokens, corpus, random);
  }
  text = join(tokens);
}

void change_lines(std::string& text, const Corpus& corpus, Random& random) {
  std::vector<std::string> lines = split(text, '\n');
  const size_t at = random.below(lines.size());
  const auto place = lines.begin() + static_cast<ptrdiff_t>(at);
  switch (random.below(5)) {
    case 0:
      lines.erase(place);
      break;
    case 1:
      lines.insert(place, std::string(lines[at]));
      break;
    case 2:
      std::swap(lines[at], lines[random.below(lines.size())]);
      break;
    case 3: {
      const std::string moved = lines[at];
      lines.erase(place);
      lines.insert(lines.begin() + static_cast<ptrdiff_t>(random.below(lines.size() + 1)), moved);
      break;
    }
    default:
      lines.insert(place, random.of(corpus.lines));
  }
  text.clear();
  for (const std::string& line : lines) text += line + "\n";
}

void change_bytes(std::string& text, Random& random) {
  if (text.empty()) return;
  const size_t at = random.below(text.size());
  switch (random.below(4)) {
    case 0:
      text[at] = static_cast<char>(text[at] ^ 1 << random.below(8));
      break;
    case 1:
      text[at] = static_cast<char>(random.next());
      break;
    case 2:
      text.insert(at, 1, " \n{}[]()<>;:,.%@!|+-_\"/*"[random.below(24)]);
      break;
    default:
      text.erase(at, 1 + random.below(8));
  }
}

// The head of one text and the tail of another.
void splice(std::string& text, const Corpus& corpus, Random& random) {
  const std::string& other = random.of(corpus.texts);
  text = text.substr(0, random.below(text.size() + 1)) + other.substr(random.below(other.size()));
}

std::string mutant(const Corpus& corpus, Random& random) {
  std::string text = random.of(corpus.texts);
  const size_t changes = 1 + random.below(random.below(8) ? 3 : 12);
  for (size_t i = 0; i < changes; ++i) {
    const size_t what = random.below(64);
    if (what < 50) {
      change_tokens(text, corpus, random);
    } else if (what < 59) {
      change_lines(text, corpus, random);
    } else if (what < 62) {
      change_bytes(text, random);
    } else if (what < 63) {
      splice(text, corpus, random);
    } else {
      text.resize(random.below(text.size() + 1));
    }
  }
  return text;
}

// ---- running ------------------------------------------------------------------------------------

std::map<std::string, uint64_t> outcomes;

struct Buffers {
  uint64_t written, zeros, unwritten;
  explicit Buffers(Memory& memory)
      : written(memory.allocate(kBufferBytes)),
        zeros(memory.allocate(kBufferBytes)),
        unwritten(memory.allocate(kBufferBytes)) {
    std::vector<uint32_t> words(kBufferBytes / 4);
    for (size_t i = 0; i < words.size(); ++i) {
      words[i] = i % 3 == 0 ? static_cast<uint32_t>(i) : static_cast<uint32_t>(i * 2654435761u);
    }
    memory.write(written, words.data(), kBufferBytes);
    memory.fill(zeros, 0, 1, kBufferBytes);
  }
};

// The last bytes of the address space, of a buffer, and the windows of the other spaces.
uint64_t odd_pointer(const Buffers& buffers, Random& random) {
  const std::vector<uint64_t> places = {0,
                                        buffers.zeros,
                                        buffers.written + kBufferBytes,
                                        buffers.unwritten + kBufferBytes,
                                        uint64_t{0x51} << 40,
                                        uint64_t{0x52} << 40,
                                        uint64_t{0x53} << 40};
  const uint64_t steps[] = {1, 4, 16, 256, 1024};
  return random.of(places) - random.below(3) * steps[random.below(5)];
}

// Mostly pointers to the buffers and small numbers. `plain`: as the corpus expects them.
std::vector<uint8_t> arguments(const Kernel& kernel, const Buffers& buffers, bool plain,
                               Random& random) {
  std::vector<uint8_t> bytes(kernel.parameter_bytes);
  size_t pointers = 0;
  for (const Parameter& parameter : kernel.parameters) {
    uint64_t value = 64;
    if (parameter.bytes == 8) {
      value = pointers++ % 2 ? buffers.zeros : buffers.written;
      if (!plain && random.below(8) == 0) value = odd_pointer(buffers, random);
      if (!plain && random.below(16) == 0) value = random.next() >> random.below(64);
    } else if (!plain && random.below(4) == 0) {
      value = random.next() >> random.below(64);
    }
    for (size_t i = 0; i < parameter.bytes; ++i) {
      const uint64_t byte = i < 8 ? value >> (8 * i) : random.next();
      bytes[parameter.offset + i] = static_cast<uint8_t>(byte);
    }
  }
  return bytes;
}

void run_kernel(const Kernel& kernel, Memory& memory, const Buffers& buffers, bool plain,
                Random& random) {
  const std::vector<Dim3> blocks = {{64, 1, 1}, {32, 1, 1}, {33, 1, 1}, {1, 1, 1}, {4, 4, 5}};
  Launch launch;
  launch.kernel = &kernel;
  launch.grid = plain ? Dim3{2, 1, 1} : Dim3{1, 1 + static_cast<uint32_t>(random.below(2)), 1};
  launch.block = plain ? blocks[0] : random.of(blocks);
  if (kernel.required_block.count()) launch.block = kernel.required_block;
  if (launch.block.count() > std::min<uint64_t>(kernel.max_threads, 256)) return;
  launch.dynamic_shared = plain || random.below(4) ? 1024 : random.below(64);
  launch.parameters = arguments(kernel, buffers, plain, random);
  if (!plain && random.below(3) == 0) {
    launch.regions = {{"in", buffers.written, kBufferBytes, true, false},
                      {"out", buffers.zeros + 4, kBufferBytes - 7, true, random.below(4) != 0}};
  }
  Options options;
  options.threads = 1;
  options.max_instructions = 100000;
  options.shuffle = random.below(4) == 0;
  options.exact_approximations = random.below(4) == 0;
  options.seed = random.next();
  run(launch, memory, options).json();
}

// One text: the only exceptions are those that a driver would turn into an error.
void try_text(const std::string& text, bool plain, Random& random) {
  Memory memory(size_t{64} << 20);
  const Buffers buffers(memory);
  std::unique_ptr<Module> module;
  try {
    module = Module::parse(text, memory, 120);
  } catch (const ParseError& error) {
    if (plain) give_up(error.what());
    ++outcomes["no PTX"];
    return;
  } catch (const Fault& fault) {
    if (plain || fault.trap != Trap::kUnknownOpcode) give_up(fault.what());
    ++outcomes["not executed here"];
    return;
  }
  for (const std::string& name : module->kernel_names()) {
    for (int times = 0; times < 3; ++times) {
      try {
        run_kernel(*module->kernel(name), memory, buffers, plain, random);
        ++outcomes["ran"];
      } catch (const Fault& fault) {
        if (plain || std::string(fault.what()).find(trap_name(fault.trap)) != 0) {
          give_up(fault.what());
        }
        ++outcomes[trap_name(fault.trap)];
      }
    }
  }
}

long megabytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

void run_input(const Corpus& corpus, uint64_t index, bool print) {
  input = index;
  Random random(seed * 0x9E3779B97F4A7C15u ^ index << 20);
  const bool plain = index < corpus.texts.size();  // first the corpus as it is
  const std::string text = plain ? corpus.texts[index] : mutant(corpus, random);
  if (print) std::fwrite(text.data(), 1, text.size(), stdout);
  alarm(kSeconds);
  try {
    try_text(text, plain, random);
  } catch (const std::exception& error) {
    give_up(std::string("it threw ") + error.what());
  }
  alarm(0);
  if (megabytes() > kMegabytes) give_up("it took too much memory");
}

}  // namespace

int main(int count, char** values) {
  uint64_t inputs = ~uint64_t{0}, only = ~uint64_t{0};
  double seconds = 1e9;
  bool print = false;
  std::string folder;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name == "--print") {
      print = true;
    } else if (name.rfind("--", 0) == 0 && i + 1 < count) {
      const std::string value = values[++i];
      if (name == "--seed") seed = std::stoull(value);
      if (name == "--inputs") inputs = std::stoull(value);
      if (name == "--seconds") seconds = std::stod(value);
      if (name == "--only") only = std::stoull(value);
    } else {
      folder = name;
    }
  }
  const Corpus corpus(folder);
  if (corpus.texts.empty()) {
    std::fprintf(stderr, "no .ptx in '%s'\n", folder.c_str());
    return 1;
  }
  std::signal(SIGALRM, on_alarm);
  std::signal(SIGABRT, on_crash);
#if !defined(__SANITIZE_ADDRESS__)
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, on_crash);
#endif
  if (only != ~uint64_t{0}) {
    run_input(corpus, only, print);
  } else {
    const auto begin = std::chrono::steady_clock::now();
    for (uint64_t i = 0; i < inputs; ++i) {
      run_input(corpus, i, print);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (taken.count() > seconds) inputs = i + 1;
    }
    std::printf("%llu texts of seed %llu, %ld MB\n", static_cast<unsigned long long>(inputs),
                static_cast<unsigned long long>(seed), megabytes());
  }
  for (const auto& [outcome, times] : outcomes) {
    std::printf("%10llu %s\n", static_cast<unsigned long long>(times), outcome.c_str());
  }
  return 0;
}
