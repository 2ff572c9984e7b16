// Elementwise activations, for what stays outside a fusion.
#include "activation.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

void activation(Act act, const float* x, float* y, int64_t n) {
  constexpr int kUnroll = 4;
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    Vec v[kUnroll];
    for (int j = 0; j < kUnroll; ++j) v[j] = load(x + i + j * kLanes);
    activate(act, v);
    for (int j = 0; j < kUnroll; ++j) store(y + i + j * kLanes, v[j]);
  }
  for (; i < n; i += kLanes) {
    const Tail tail(least(n - i, kLanes));
    Vec v[1] = {load(x + i, tail)};
    activate(act, v);
    store(y + i, v[0], tail);
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
