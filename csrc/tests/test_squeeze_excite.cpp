#include <limits>

#include "check.h"

namespace effnet_fast::test {
namespace {

void check(const Kernels& kernels, int64_t c, int64_t squeezed, Act act, Act gate_act, bool bias) {
  const int64_t pixels = 49;
  const std::string what =
      format("%lld to %lld, acts %d %d", static_cast<long long>(c),
             static_cast<long long>(squeezed), static_cast<int>(act), static_cast<int>(gate_act));
  const std::vector<float> sums = random_floats(c, 1, 49.0f);
  const std::vector<float> w1 = random_floats(squeezed * c, 2, 1.0f),
                           b1 = random_floats(squeezed, 3, 1.0f);
  const std::vector<float> w2 = random_floats(squeezed * c, 4, 1.0f),
                           b2 = random_floats(c, 5, 1.0f);
  const SqueezeExcite se{
      c,   squeezed, w1.data(), bias ? b1.data() : nullptr, w2.data(), bias ? b2.data() : nullptr,
      act, gate_act};

  Reference mean(1, 1, c);
  for (int64_t i = 0; i < c; ++i) {
    mean.value[i] = sums[i] / static_cast<double>(pixels);
    mean.bound[i] = 0x1p-23 * std::fabs(mean.value[i]);
  }
  std::vector<float> second(c * squeezed);  // [c][squeezed], as a convolution has it
  for (int64_t i = 0; i < c * squeezed; ++i) second[i] = w2[i % squeezed * c + i / squeezed];
  const Reference hidden = conv_reference(mean, kPointwise, squeezed, false, w1.data(), se.b1, act);
  const Reference expected =
      conv_reference(hidden, kPointwise, c, false, second.data(), se.b2, gate_act);

  std::vector<float> first;
  for (int count = 1; count <= 3; ++count) {
    std::vector<float> gate(c + 1, std::numeric_limits<float>::quiet_NaN());
    run_workers(count, kernels.squeeze_excite_scratch(se), [&](const Worker& worker) {
      kernels.squeeze_excite(se, sums.data(), pixels, gate.data(), worker);
    });
    CHECK(std::isnan(gate[c]), what + ": wrote past the gate");
    gate.pop_back();
    if (count == 1) {
      first = gate;
      CHECK_CLOSE(gate, expected, what);
    } else {
      CHECK(same(gate, first), what + format(" with %d workers", count));
    }
  }
}

EFFNET_FAST_TEST(squeeze_excite_channels) {
  for (int64_t c = 1; c <= 17; ++c) check(kernels, c, 1 + c / 4, Act::kSwish, Act::kSigmoid, true);
  for (const int64_t c : {31, 32, 33, 65, 96, 1153})
    check(kernels, c, 48, Act::kSwish, Act::kSigmoid, true);
  check(kernels, 3, 17, Act::kSwish, Act::kSigmoid, false);
}

EFFNET_FAST_TEST(squeeze_excite_every_act) {
  for (const Act act : kEveryAct) check(kernels, 40, 10, act, Act::kSigmoid, true);
  for (const Act act : kEveryAct) check(kernels, 41, 9, Act::kRelu, act, true);
}

}  // namespace
}  // namespace effnet_fast::test
