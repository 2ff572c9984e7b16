// Division by numbers that are known at the launch.
#pragma once

#include <cstdint>

namespace effnet_fast::cuda {

// n / divisor = n multiplier >> shift, for 0 <= n < 2^31.
struct Divisor {
  uint32_t divisor, multiplier, shift;
};

__device__ inline unsigned divide(unsigned n, const Divisor& d) {
  return static_cast<unsigned>(static_cast<uint64_t>(n) * d.multiplier >> d.shift);
}

// The quotient; n becomes the remainder.
__device__ inline unsigned divide_off(unsigned& n, const Divisor& d) {
  const unsigned quotient = divide(n, d), remainder = n - quotient * d.divisor;
  n = remainder;
  return quotient;
}

}  // namespace effnet_fast::cuda
