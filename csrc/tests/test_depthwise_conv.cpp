#include <limits>

#include "check.h"

namespace effnet_fast::test {
namespace {

struct Case {
  int64_t h, w, c;
  Window window;
  Act act = Act::kSwish;
  bool bias = true, sums = true;
  GuardedMap::Cut cut = GuardedMap::kSlice;
};

void check(const Kernels& kernels, const Case& c) {
  const Window& w = c.window;
  const std::string what =
      format("%lldx%lldx%lld act %d ", static_cast<long long>(c.h), static_cast<long long>(c.w),
             static_cast<long long>(c.c), static_cast<int>(c.act)) +
      describe(w);
  const GuardedMap x(c.h, c.w, c.c, c.cut, 1, 2.0f);
  const std::vector<float> weight = random_floats(c.c * w.kh * w.kw, 2, 1.0f);
  const std::vector<float> bias = random_floats(c.c, 3, 1.0f);
  std::vector<float> packed(kernels.packed_depthwise_size(c.c, w.kh, w.kw));
  kernels.pack_depthwise(weight.data(), c.c, w.kh, w.kw, packed.data());
  const DepthwiseConv conv{c.c, w, packed.data(), c.bias ? bias.data() : nullptr, c.act};
  const Reference expected =
      conv_reference(Reference(x), w, c.c, true, weight.data(), conv.bias, c.act);

  std::vector<float> first_values, first_sums;
  for (int count = 1; count <= 3; ++count) {
    const GuardedMap y(expected.h, expected.w, c.c, c.cut);
    std::vector<float> sums(c.c, std::numeric_limits<float>::quiet_NaN());
    run_workers(
        count, kernels.depthwise_conv_scratch(conv, x.map(), c.sums), [&](const Worker& worker) {
          kernels.depthwise_conv(conv, x.map(), y.map(), c.sums ? sums.data() : nullptr, worker);
        });
    CHECK(y.surroundings_untouched(), what);
    if (count == 1) {
      first_values = y.values();
      first_sums = sums;
      CHECK_CLOSE(first_values, expected, what);
      if (c.sums) CHECK_CLOSE(sums, sum_reference(expected), what + " sums");
      continue;
    }
    CHECK(same(y.values(), first_values), what + format(" with %d workers", count));
    if (c.sums) CHECK(same(sums, first_sums), what + format(" with %d workers", count));
  }
}

// Padding as models use it: symmetric for odd kernels, and TensorFlow's, which puts more at the
// bottom and right.
Window window(int64_t k, int64_t stride, int64_t low, int64_t high) {
  return {k, k, stride, stride, 1, 1, low, low, high, high};
}

EFFNET_FAST_TEST(depthwise_conv_channels) {
  for (int64_t c = 1; c <= 17; ++c) {
    check(kernels, {6, 7, c, window(3, 1, 1, 1)});
    check(kernels, {7, 6, c, window(5, 2, 1, 2)});
  }
  check(kernels, {5, 5, 127, window(3, 2, 1, 1)});
  check(kernels, {5, 5, 128, window(3, 1, 1, 1)});
  check(kernels, {5, 5, 300, window(3, 1, 1, 1), Act::kSwish, true, true, GuardedMap::kDense});
}

EFFNET_FAST_TEST(depthwise_conv_windows) {
  for (const int64_t k : {1, 2, 3, 4, 5, 6, 7, 9, 11}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t size : {1, 2, 5, 12, 19}) {
        check(kernels, {size, size + 1, 9, window(k, stride, k / 2, k / 2)});
        check(kernels, {size, size, 9, window(k, stride, (k - 1) / 2, k / 2 + 1)});
        if (size >= k) check(kernels, {size, size, 9, window(k, stride, 0, 0)});
      }
    }
  }
}

EFFNET_FAST_TEST(depthwise_conv_odd_windows) {
  check(kernels, {9, 11, 10, {3, 5, 1, 2, 1, 1, 1, 2, 1, 2}});
  check(kernels, {9, 11, 10, {5, 3, 2, 1, 1, 1, 2, 1, 2, 1}});
  check(kernels, {12, 11, 10, {3, 3, 1, 1, 2, 2, 2, 2, 2, 2}});
  check(kernels, {12, 11, 10, {3, 3, 2, 2, 3, 1, 3, 1, 3, 1}});
  check(kernels, {12, 11, 10, {5, 5, 1, 2, 1, 3, 2, 6, 2, 6}});
  check(kernels, {8, 9, 10, {3, 3, 1, 1, 1, 1, 2, 0, 0, 2}});
  check(kernels,
        {8, 9, 10, {3, 3, 1, 1, 1, 1, 5, 6, 7, 8}});  // windows that lie off the map altogether
  check(kernels, {1, 1, 10, {5, 5, 2, 2, 1, 1, 2, 2, 2, 2}});
  check(kernels, {1, 30, 3, {9, 9, 1, 1, 1, 1, 4, 4, 4, 4}});
}

EFFNET_FAST_TEST(depthwise_conv_every_act) {
  for (const Act act : kEveryAct) {
    check(kernels, {7, 7, 11, window(3, 1, 1, 1), act});
    check(kernels, {7, 7, 11, window(2, 1, 0, 1), act, false, false});
  }
}

}  // namespace
}  // namespace effnet_fast::test
