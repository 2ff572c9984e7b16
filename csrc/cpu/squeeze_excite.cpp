// Squeeze-and-excitation's two layers, from the sums over the map to the gate.
#include "activation.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

// sum of a[i] b[i], over four chains per lane
float dot(const float* a, const float* b, int64_t n) {
  Vec acc[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j)
      acc[j] = fma(load(a + i + j * kLanes), load(b + i + j * kLanes), acc[j]);
  }
  for (; i < n; i += kLanes) {
    const Tail tail(least(n - i, kLanes));
    acc[0] = fma(load(a + i, tail), load(b + i, tail), acc[0]);
  }
  return lane_sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

}  // namespace

Scratch squeeze_excite_scratch(const SqueezeExcite& se) {
  return {0, round_up(se.squeezed, kLanes)};
}

void squeeze_excite(const SqueezeExcite& se, const float* sums, int64_t pixels, float* gate,
                    const Worker& worker) {
  float* hidden = worker.shared;
  for (int64_t j = worker.id; j < se.squeezed; j += worker.count) {
    const float x =
        dot(sums, se.w1 + j * se.c, se.c) / static_cast<float>(pixels) + (se.b1 ? se.b1[j] : 0.0f);
    Vec v[1] = {broadcast(x)};
    activate(se.act, v);
    store(hidden + j, v[0], Tail(1));
  }
  worker.sync();

  const int64_t vecs = ceil_div(se.c, kLanes);
  const int64_t end = least(vecs * (worker.id + 1) / worker.count * kLanes, se.c);
  constexpr int kUnroll = 4;
  int64_t i = vecs * worker.id / worker.count * kLanes;
  for (; i + kUnroll * kLanes <= end; i += kUnroll * kLanes) {
    Vec v[kUnroll];
    for (int u = 0; u < kUnroll; ++u) v[u] = se.b2 ? load(se.b2 + i + u * kLanes) : zero();
    for (int64_t j = 0; j < se.squeezed; ++j) {
      const Vec h = broadcast(hidden[j]);
      for (int u = 0; u < kUnroll; ++u)
        v[u] = fma(h, load(se.w2 + j * se.c + i + u * kLanes), v[u]);
    }
    activate(se.gate_act, v);
    for (int u = 0; u < kUnroll; ++u) store(gate + i + u * kLanes, v[u]);
  }
  for (; i < end; i += kLanes) {
    const Tail tail(least(end - i, kLanes));
    Vec v[1] = {se.b2 ? load(se.b2 + i, tail) : zero()};
    for (int64_t j = 0; j < se.squeezed; ++j) {
      v[0] = fma(broadcast(hidden[j]), load(se.w2 + j * se.c + i, tail), v[0]);
    }
    activate(se.gate_act, v);
    store(gate + i, v[0], tail);
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
