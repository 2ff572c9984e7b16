// What squeeze_excite is launched with; effnet_fast/cuda/squeeze_excite.py packs the same.
#pragma once

#include <cstdint>

namespace effnet_fast::cuda {

struct SqueezeExcite {
  const float* sums;  // [image][tile][channels]
  const void* w1;     // [squeezed][channels]
  const void* b1;     // [squeezed], or null
  const void* w2;     // [squeezed][channels]: the second layer's weight transposed
  const void* b2;     // [channels], or null
  void* gate;         // [image][channels]
  int32_t images, tiles, channels, squeezed;
  float scale;  // 1 / pixels
  int32_t act, gate_act;
  int32_t is_aligned;  // rows of the weights, to the size of 4 elements
};

}  // namespace effnet_fast::cuda
