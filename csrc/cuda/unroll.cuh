// Loops whose index is a constant: of a type, of an instruction's address.
#pragma once

#include <utility>

namespace effnet_fast::cuda {

template <int kIndex>
struct Index {
  static constexpr int value = kIndex;
};

template <class Body, int... kIndices>
__device__ void unroll(Body body, std::integer_sequence<int, kIndices...>) {
  (body(Index<kIndices>()), ...);
}

// body(Index<0>()) .. body(Index<kCount - 1>())
template <int kCount, class Body>
__device__ void unroll(Body body) {
  unroll(body, std::make_integer_sequence<int, kCount>());
}

}  // namespace effnet_fast::cuda
