#include "check.h"

namespace effnet_fast::test {
namespace {

struct Case {
  int64_t h, w, cin, cout;
  Window window;
  GuardedImage::Layout layout = GuardedImage::kNchw;
  Act act = Act::kSwish;
  bool bias = true;
};

// Against the reference, with 1, 2 and 3 workers, from an image that NaN surrounds.
void check(const Kernels& kernels, const Case& c) {
  const Window& w = c.window;
  const std::string what =
      format("%lldx%lldx%lld -> %lld layout %d act %d ", static_cast<long long>(c.h),
             static_cast<long long>(c.w), static_cast<long long>(c.cin),
             static_cast<long long>(c.cout), static_cast<int>(c.layout), static_cast<int>(c.act)) +
      describe(w);
  const GuardedMap values(c.h, c.w, c.cin, GuardedMap::kDense, 1, 1.0f);
  const GuardedImage image(values, c.layout);
  const Planes& x = image.planes();
  const std::vector<float> weight = random_floats(c.cout * c.cin * w.kh * w.kw, 2, 1.0f);
  const std::vector<float> bias = random_floats(c.cout, 3, 1.0f);
  std::vector<float> packed(kernels.packed_conv_size(c.cout, c.cin, w.kh, w.kw));
  kernels.pack_conv(weight.data(), c.cout, c.cin, w.kh, w.kw, packed.data());
  const Conv conv{c.cin, c.cout, packed.data(), c.bias ? bias.data() : nullptr, c.act};
  const Reference expected =
      conv_reference(Reference(values), w, c.cout, false, weight.data(), conv.bias, c.act);

  // The same convolution of the same values as a map: the same bits.
  const GuardedMap as_map(expected.h, expected.w, c.cout, GuardedMap::kDense);
  run_workers(1, kernels.fused_mbconv_scratch(conv, w, nullptr, values.map()),
              [&](const Worker& worker) {
                kernels.fused_mbconv(conv, w, nullptr, values.map(), nullptr, as_map.map(), worker);
              });
  for (int count = 1; count <= 3; ++count) {
    const GuardedMap y(expected.h, expected.w, c.cout, GuardedMap::kSlice);
    run_workers(count, kernels.stem_conv_scratch(conv, w, x),
                [&](const Worker& worker) { kernels.stem_conv(conv, w, x, y.map(), worker); });
    CHECK(y.surroundings_untouched(), what);
    if (count == 1) CHECK_CLOSE(y.values(), expected, what);
    CHECK(same(y.values(), as_map.values()), what + format(" with %d workers", count));
  }
}

Window window(int64_t k, int64_t stride, int64_t low, int64_t high) {
  return {k, k, stride, stride, 1, 1, low, low, high, high};
}

EFFNET_FAST_TEST(stem_conv_layouts) {
  for (const auto layout : {GuardedImage::kNchw, GuardedImage::kNhwc, GuardedImage::kStrided}) {
    check(kernels, {33, 47, 3, 32, window(3, 2, 1, 1), layout});
    check(kernels, {32, 32, 3, 32, window(3, 2, 0, 1), layout});
  }
}

EFFNET_FAST_TEST(stem_conv_channels) {
  for (int64_t c = 1; c <= 17; ++c) check(kernels, {7, 9, 1 + c % 4, c, window(3, 2, 1, 1)});
  for (const int64_t cout : {24, 40, 41, 48, 56})
    check(kernels, {9, 8, 3, cout, window(3, 2, 1, 1)});
}

EFFNET_FAST_TEST(stem_conv_windows) {
  for (const int64_t k : {1, 2, 3, 4, 5, 7}) {
    for (const int64_t stride : {1, 2, 4}) {
      for (const int64_t size : {1, 2, 8, 15}) {
        check(kernels, {size, size + 2, 3, 9, window(k, stride, k / 2, k / 2)});
        if (size >= k) check(kernels, {size, size, 3, 9, window(k, stride, 0, 0)});
      }
    }
  }
  check(kernels, {9, 450, 3, 8, window(3, 2, 1, 1)});  // rows longer than a block
  check(kernels, {11, 12, 3, 10, {3, 3, 2, 2, 2, 2, 2, 2, 2, 2}});
  check(kernels, {11, 12, 3, 10, {3, 3, 1, 3, 3, 1, 2, 0, 1, 3}});
  check(kernels, {4, 5, 3, 10, {3, 3, 1, 1, 1, 1, 6, 6, 6, 6}});
}

EFFNET_FAST_TEST(stem_conv_every_act) {
  for (const Act act : kEveryAct)
    check(kernels, {7, 7, 3, 19, window(3, 2, 1, 1), GuardedImage::kNchw, act, false});
}

}  // namespace
}  // namespace effnet_fast::test
