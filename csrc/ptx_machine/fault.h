// What the machine refuses: one typed, located error for everything that a kernel does wrong.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace effnet_fast::ptx {

enum class Trap {
  kOutOfBounds,    // no live allocation, shared, local or parameter memory holds all of the bytes
  kUndeclared,     // inside an allocation, but outside what the launch declares, or its mode
  kMisaligned,     // the address is not a multiple of the access's size
  kUninitialized,  // memory never written, or a register never set, decides something
  kSharedRace,     // two threads, one of them writing, no barrier in between
  kGlobalRace,     // the same in global memory, between blocks or within one
  kAsyncCopy,      // bytes of a cp.async touched before its wait
  kDivergentBarrier,  // a barrier or warp-wide instruction that some of its threads never reach
  kUnknownOpcode,     // not executed here; the text says which
  kEndlessLoop,       // more instructions than the limit
  kDeviceTrap,        // the kernel's own trap instruction
};

const char* trap_name(Trap trap);

// what() is the whole message: trap, kernel, source line, block, thread, instruction, detail.
class Fault : public std::runtime_error {
 public:
  Fault(Trap trap, const std::string& message) : std::runtime_error(message), trap(trap) {}
  Trap trap;
};

// PTX that cannot be parsed; what() has the line and its text.
class ParseError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace effnet_fast::ptx
