#include <limits>

#include "check.h"

namespace effnet_fast::test {
namespace {

struct Case {
  int64_t h, w, cin, mid;
  Window stem, window;
  GuardedImage::Layout layout = GuardedImage::kNchw;
  Act act = Act::kSwish;
  bool bias = true, sums = true;
  GuardedMap::Cut cut = GuardedMap::kSlice;
};

// Against the reference, and bit for bit against stem_conv then depthwise_conv, with 1, 2 and 3
// workers, from an image that NaN surrounds.
void check(const Kernels& kernels, const Case& c) {
  const Window& w = c.window;
  const std::string what =
      format("%lldx%lldx%lld -> %lld layout %d act %d ", static_cast<long long>(c.h),
             static_cast<long long>(c.w), static_cast<long long>(c.cin),
             static_cast<long long>(c.mid), static_cast<int>(c.layout), static_cast<int>(c.act)) +
      describe(c.stem) + " then " + describe(w);
  const GuardedMap values(c.h, c.w, c.cin, GuardedMap::kDense, 1, 1.0f);
  const GuardedImage image(values, c.layout);
  const Planes& x = image.planes();
  const std::vector<float> stem_weight =
      random_floats(c.mid * c.cin * c.stem.kh * c.stem.kw, 2, 1.0f);
  const std::vector<float> stem_bias = random_floats(c.mid, 3, 1.0f);
  const std::vector<float> weight = random_floats(c.mid * w.kh * w.kw, 4, 1.0f);
  const std::vector<float> bias = random_floats(c.mid, 5, 1.0f);
  std::vector<float> packed_stem(kernels.packed_conv_size(c.mid, c.cin, c.stem.kh, c.stem.kw));
  kernels.pack_conv(stem_weight.data(), c.mid, c.cin, c.stem.kh, c.stem.kw, packed_stem.data());
  std::vector<float> packed(kernels.packed_depthwise_size(c.mid, w.kh, w.kw));
  kernels.pack_depthwise(weight.data(), c.mid, w.kh, w.kw, packed.data());
  const Conv stem{c.cin, c.mid, packed_stem.data(), c.bias ? stem_bias.data() : nullptr, c.act};
  const DepthwiseConv conv{c.mid, w, packed.data(), c.bias ? bias.data() : nullptr, c.act};

  const Reference mid_expected =
      conv_reference(Reference(values), c.stem, c.mid, false, stem_weight.data(), stem.bias, c.act);
  const Reference expected =
      conv_reference(mid_expected, w, c.mid, true, weight.data(), conv.bias, c.act);

  const GuardedMap mid(mid_expected.h, mid_expected.w, c.mid, GuardedMap::kDense),
      apart(expected.h, expected.w, c.mid, c.cut);
  std::vector<float> apart_sums(c.mid);
  run_workers(1, kernels.stem_conv_scratch(stem, c.stem, x),
              [&](const Worker& worker) { kernels.stem_conv(stem, c.stem, x, mid.map(), worker); });
  run_workers(1, kernels.depthwise_conv_scratch(conv, mid.map(), true), [&](const Worker& worker) {
    kernels.depthwise_conv(conv, mid.map(), apart.map(), apart_sums.data(), worker);
  });
  CHECK_CLOSE(apart.values(), expected, what + " apart");

  for (int count = 1; count <= 3; ++count) {
    const GuardedMap y(expected.h, expected.w, c.mid, c.cut);
    std::vector<float> sums(c.mid, std::numeric_limits<float>::quiet_NaN());
    run_workers(count, kernels.stem_depthwise_scratch(stem, c.stem, conv, x, c.sums),
                [&](const Worker& worker) {
                  kernels.stem_depthwise(stem, c.stem, conv, x, y.map(),
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

EFFNET_FAST_TEST(stem_depthwise_layouts) {
  for (const auto layout : {GuardedImage::kNchw, GuardedImage::kNhwc, GuardedImage::kStrided}) {
    check(kernels, {33, 47, 3, 32, window(3, 2, 1, 1), window(3, 1, 1, 1), layout});
    check(kernels, {32, 32, 3, 24, window(3, 2, 0, 1), window(3, 1, 1, 1), layout});
  }
}

EFFNET_FAST_TEST(stem_depthwise_channels) {
  for (int64_t c = 1; c <= 17; ++c) {
    check(kernels, {9, 11, 1 + c % 4, c, window(3, 2, 1, 1), window(3, 1, 1, 1)});
  }
  for (const int64_t mid : {24, 40, 41, 48, 56}) {
    check(kernels, {9, 8, 3, mid, window(3, 2, 1, 1), window(3, 2, 0, 1)});
  }
}

EFFNET_FAST_TEST(stem_depthwise_windows) {
  for (const int64_t k : {1, 2, 3, 5, 7}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t size : {1, 2, 9, 16}) {
        check(kernels,
              {size, size + 1, 3, 20, window(3, 2, 1, 1), window(k, stride, k / 2, k / 2)});
        if (size >= 2 * k) {
          check(kernels, {size, size, 3, 9, window(k, stride, k / 2, k / 2), window(2, 1, 0, 0)});
        }
      }
    }
  }
  const Window same = window(3, 1, 1, 1);
  check(kernels, {12, 11, 3, 10, same, {3, 3, 1, 1, 2, 2, 2, 2, 2, 2}});
  check(kernels, {12, 11, 3, 10, same, {3, 5, 2, 1, 3, 1, 3, 2, 3, 1}});
  check(kernels, {12, 11, 3, 10, same, {1, 1, 3, 3, 1, 1, 0, 0, 0, 0}});  // skips rows
  check(kernels, {12, 11, 3, 10, {3, 3, 2, 2, 2, 2, 2, 2, 2, 2}, same});
  check(kernels, {8, 9, 3, 10, {3, 3, 1, 1, 1, 1, 6, 6, 6, 6}, {3, 3, 1, 1, 1, 1, 5, 6, 7, 8}});
}

// Rows longer than a block, and a ring too large for all channels at once.
EFFNET_FAST_TEST(stem_depthwise_large) {
  const Window down = window(3, 2, 1, 1), same = window(3, 1, 1, 1);
  check(kernels, {9, 450, 3, 8, down, same});
  check(kernels, {11, 500, 2, 104, down, window(5, 2, 2, 2), GuardedImage::kNchw, Act::kSwish, true,
                  true, GuardedMap::kDense});
  check(kernels, {41, 5, 3, 8, down, same});
}

EFFNET_FAST_TEST(stem_depthwise_every_act) {
  for (const Act act : kEveryAct) {
    check(kernels, {9, 9, 3, 19, window(3, 2, 1, 1), window(3, 1, 1, 1), GuardedImage::kNchw, act,
                    false, false});
  }
}

}  // namespace
}  // namespace effnet_fast::test
