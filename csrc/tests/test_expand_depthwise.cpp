#include <limits>

#include "check.h"

namespace effnet_fast::test {
namespace {

struct Case {
  int64_t h, w, cin, mid;
  Window window;
  Act act = Act::kSwish;
  bool bias = true, sums = true;
  GuardedMap::Cut cut = GuardedMap::kSlice;
};

// Against the reference, and bit for bit against pointwise_conv then depthwise_conv, with 1, 2 and
// 3 workers.
void check(const Kernels& kernels, const Case& c) {
  const Window& w = c.window;
  const std::string what = format("%lldx%lldx%lld -> %lld act %d ", static_cast<long long>(c.h),
                                  static_cast<long long>(c.w), static_cast<long long>(c.cin),
                                  static_cast<long long>(c.mid), static_cast<int>(c.act)) +
                           describe(w);
  const GuardedMap x(c.h, c.w, c.cin, c.cut, 1, 1.0f);
  const std::vector<float> expand_weight = random_floats(c.mid * c.cin, 2, 1.0f);
  const std::vector<float> expand_bias = random_floats(c.mid, 3, 1.0f);
  const std::vector<float> weight = random_floats(c.mid * w.kh * w.kw, 4, 1.0f);
  const std::vector<float> bias = random_floats(c.mid, 5, 1.0f);
  std::vector<float> packed_expand(kernels.packed_conv_size(c.mid, c.cin, 1, 1));
  kernels.pack_conv(expand_weight.data(), c.mid, c.cin, 1, 1, packed_expand.data());
  std::vector<float> packed(kernels.packed_depthwise_size(c.mid, w.kh, w.kw));
  kernels.pack_depthwise(weight.data(), c.mid, w.kh, w.kw, packed.data());
  const Conv expand{c.cin, c.mid, packed_expand.data(), c.bias ? expand_bias.data() : nullptr,
                    c.act};
  const DepthwiseConv conv{c.mid, w, packed.data(), c.bias ? bias.data() : nullptr, c.act};

  const Reference wide_expected = conv_reference(Reference(x), kPointwise, c.mid, false,
                                                 expand_weight.data(), expand.bias, c.act);
  const Reference expected =
      conv_reference(wide_expected, w, c.mid, true, weight.data(), conv.bias, c.act);

  const GuardedMap wide(c.h, c.w, c.mid, GuardedMap::kDense),
      apart(expected.h, expected.w, c.mid, c.cut);
  std::vector<float> apart_sums(c.mid);
  run_workers(
      1, kernels.pointwise_conv_scratch(expand, x.map(), false, false), [&](const Worker& worker) {
        kernels.pointwise_conv(expand, x.map(), nullptr, nullptr, &wide.map(), nullptr, worker);
      });
  run_workers(1, kernels.depthwise_conv_scratch(conv, wide.map(), true), [&](const Worker& worker) {
    kernels.depthwise_conv(conv, wide.map(), apart.map(), apart_sums.data(), worker);
  });
  CHECK_CLOSE(apart.values(), expected, what + " apart");

  for (int count = 1; count <= 3; ++count) {
    const GuardedMap y(expected.h, expected.w, c.mid, c.cut);
    std::vector<float> sums(c.mid, std::numeric_limits<float>::quiet_NaN());
    run_workers(count, kernels.expand_depthwise_scratch(expand, conv, x.map(), c.sums),
                [&](const Worker& worker) {
                  kernels.expand_depthwise(expand, conv, x.map(), y.map(),
                                           c.sums ? sums.data() : nullptr, worker);
                });
    CHECK(y.surroundings_untouched(), what);
    CHECK(same(y.values(), apart.values()), what + format(" with %d workers", count));
    if (c.sums) CHECK(same(sums, apart_sums), what + format(" sums with %d workers", count));
  }
}

Window window(int64_t k, int64_t stride, int64_t low, int64_t high) {
  return {k, k, stride, stride, 1, 1, low, low, high, high};
}

EFFNET_FAST_TEST(expand_depthwise_channels) {
  for (int64_t c = 1; c <= 17; ++c) {
    check(kernels, {5, 6, c, 18 - c, window(3, 1, 1, 1)});
    check(kernels, {6, 5, 3, 16 + c, window(3, 2, 0, 1)});
  }
}

EFFNET_FAST_TEST(expand_depthwise_windows) {
  for (const int64_t k : {1, 2, 3, 4, 5, 7, 9}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t size : {1, 2, 7, 14}) {
        check(kernels, {size, size + 1, 3, 20, window(k, stride, k / 2, k / 2)});
        if (size >= k) check(kernels, {size, size, 3, 20, window(k, stride, 0, 0)});
      }
    }
  }
  check(kernels, {12, 11, 5, 10, {3, 3, 1, 1, 2, 2, 2, 2, 2, 2}});
  check(kernels, {12, 11, 5, 10, {3, 5, 2, 1, 3, 1, 3, 2, 3, 1}});
  check(kernels, {12, 11, 5, 10, {1, 1, 3, 3, 1, 1, 0, 0, 0, 0}});
  check(kernels, {8, 9, 4, 10, {3, 3, 1, 1, 1, 1, 5, 6, 7, 8}});
}

// Several chunks of channels, several blocks of pixels, rows longer than a block.
EFFNET_FAST_TEST(expand_depthwise_large) {
  check(kernels, {9, 70, 4, 250, window(5, 1, 2, 2), Act::kSwish, true, true, GuardedMap::kDense});
  check(kernels, {5, 401, 2, 24, window(3, 2, 1, 1)});
  check(kernels, {14, 14, 8, 1100, window(5, 2, 1, 2)});
  check(kernels, {40, 3, 2, 8, window(3, 1, 1, 1)});  // fewer panels than workers: bands of rows
}

EFFNET_FAST_TEST(expand_depthwise_every_act) {
  for (const Act act : kEveryAct)
    check(kernels, {7, 7, 3, 19, window(3, 1, 1, 1), act, false, false});
}

}  // namespace
}  // namespace effnet_fast::test
