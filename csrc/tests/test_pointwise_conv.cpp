#include <limits>

#include "check.h"

namespace effnet_fast::test {
namespace {

struct Case {
  int64_t h, w, cin, cout;
  Act act = Act::kSwish;
  bool bias = true, gate = false, residual = false, y = true, pool = false;
  GuardedMap::Cut cut = GuardedMap::kDense;
};

std::string name(const Case& c) {
  return format("%lldx%lldx%lld -> %lld act %d%s%s%s%s%s%s", static_cast<long long>(c.h),
                static_cast<long long>(c.w), static_cast<long long>(c.cin),
                static_cast<long long>(c.cout), static_cast<int>(c.act), c.bias ? " bias" : "",
                c.gate ? " gate" : "", c.residual ? " residual" : "", c.y ? " y" : "",
                c.pool ? " pool" : "", c.cut == GuardedMap::kSlice ? " slice" : "");
}

// Against the reference with one worker; the same bits with 2 and 3.
void check(const Kernels& kernels, const Case& c) {
  const GuardedMap x(c.h, c.w, c.cin, c.cut, 1, 2.0f);
  const GuardedMap residual(c.h, c.w, c.cout, c.cut, 2, 2.0f);
  const std::vector<float> weight = random_floats(c.cout * c.cin, 3, 1.0f);
  const std::vector<float> bias = random_floats(c.cout, 4, 1.0f);
  std::vector<float> gate = random_floats(c.cin, 5, 0.5f);
  for (float& g : gate) g += 0.5f;

  std::vector<float> packed(kernels.packed_conv_size(c.cout, c.cin, 1, 1));
  kernels.pack_conv(weight.data(), c.cout, c.cin, 1, 1, packed.data());
  const Conv conv{c.cin, c.cout, packed.data(), c.bias ? bias.data() : nullptr, c.act};

  Reference gated(x);
  for (size_t i = 0; c.gate && i < gated.value.size(); ++i) gated.value[i] *= gate[i % c.cin];
  Reference expected =
      conv_reference(gated, kPointwise, c.cout, false, weight.data(), conv.bias, c.act);
  if (c.residual) expected = add_reference(expected, Reference(residual));
  Reference mean = sum_reference(expected);
  for (int64_t i = 0; i < c.cout; ++i) {
    mean.value[i] /= static_cast<double>(c.h * c.w);
    mean.bound[i] =
        mean.bound[i] / static_cast<double>(c.h * c.w) + 0x1p-24 * std::fabs(mean.value[i]);
  }

  std::vector<float> first_values, first_pool;
  for (int count = 1; count <= 3; ++count) {
    const GuardedMap y(c.h, c.w, c.cout, c.cut);
    std::vector<float> pool(c.cout, std::numeric_limits<float>::quiet_NaN());
    const Scratch scratch = kernels.pointwise_conv_scratch(conv, x.map(), c.gate, c.pool);
    run_workers(count, scratch, [&](const Worker& worker) {
      kernels.pointwise_conv(conv, x.map(), c.gate ? gate.data() : nullptr,
                             c.residual ? &residual.map() : nullptr, c.y ? &y.map() : nullptr,
                             c.pool ? pool.data() : nullptr, worker);
    });
    CHECK(y.surroundings_untouched(), name(c));
    if (count == 1) {
      first_values = y.values();
      first_pool = pool;
      if (c.y) CHECK_CLOSE(first_values, expected, name(c));
      if (c.pool) CHECK_CLOSE(pool, mean, name(c));
      continue;
    }
    if (c.y) CHECK(same(y.values(), first_values), name(c) + format(" with %d workers", count));
    if (c.pool) CHECK(same(pool, first_pool), name(c) + format(" with %d workers", count));
  }
}

EFFNET_FAST_TEST(pointwise_conv_channels) {
  for (int64_t c = 1; c <= 17; ++c) {
    for (const auto cut : {GuardedMap::kDense, GuardedMap::kSlice}) {
      check(kernels, {3, 5, c, 18 - c, Act::kSwish, true, false, false, true, false, cut});
      check(kernels, {2, 3, c, c, Act::kNone, false, false, true, true, true, cut});
    }
  }
  for (const int64_t cout : {23, 24, 25, 31, 32, 33, 39, 40, 41, 47, 48, 49}) {
    for (const int64_t cin : {16, 40}) check(kernels, {2, 7, cin, cout});
  }
}

EFFNET_FAST_TEST(pointwise_conv_pixels) {
  for (int64_t w = 1; w <= 26; ++w) {
    check(kernels, {1, w, 9, 20, Act::kRelu6, true, false, true, true, true, GuardedMap::kSlice});
  }
  check(kernels, {27, 31, 8, 24, Act::kSwish, true, false, true, true, true});  // several blocks
  check(kernels, {5, 9, 2000, 17});  // a block smaller than the map
}

EFFNET_FAST_TEST(pointwise_conv_every_act) {
  for (const Act act : kEveryAct) {
    check(kernels, {3, 4, 6, 19, act, true, false, true, true, true, GuardedMap::kSlice});
  }
}

EFFNET_FAST_TEST(pointwise_conv_fusions) {
  for (int options = 1; options < 32; ++options) {
    Case c{4, 5, 21, 37};
    c.bias = options & 1;
    c.gate = options & 2;
    c.residual = options & 4;
    c.y = options & 8;
    c.pool = options & 16;
    if (!c.y && !c.pool) continue;
    check(kernels, c);
    c.cut = GuardedMap::kSlice;
    c.h = 13;  // more pixels than output channels: the gate goes into the weights
    check(kernels, c);
  }
}

EFFNET_FAST_TEST(pointwise_conv_in_place_over_the_residual) {
  const int64_t h = 6, w = 7, c = 20;
  const GuardedMap x(h, w, c, GuardedMap::kSlice, 1, 1.0f);
  const GuardedMap y(h, w, c, GuardedMap::kSlice, 2, 1.0f);
  const std::vector<float> weight = random_floats(c * c, 3, 1.0f);
  std::vector<float> packed(kernels.packed_conv_size(c, c, 1, 1));
  kernels.pack_conv(weight.data(), c, c, 1, 1, packed.data());
  const Conv conv{c, c, packed.data(), nullptr, Act::kNone};
  const Reference expected = add_reference(
      conv_reference(Reference(x), kPointwise, c, false, weight.data(), nullptr, Act::kNone),
      Reference(y));
  run_workers(2, kernels.pointwise_conv_scratch(conv, x.map(), false, false),
              [&](const Worker& worker) {
                kernels.pointwise_conv(conv, x.map(), nullptr, &y.map(), &y.map(), nullptr, worker);
              });
  CHECK_CLOSE(y.values(), expected, "y is the residual");
}

// 300 x 300 equal pixels: one float chain over all of them would be off by 1e-3.
EFFNET_FAST_TEST(pointwise_conv_pool_of_many_pixels) {
  const int64_t side = 300;
  const GuardedMap x(side, side, 1, GuardedMap::kDense);
  for (int64_t p = 0; p < side * side; ++p) x.map().data[p] = 0.1f;
  const float weight = 1.0f;
  std::vector<float> packed(kernels.packed_conv_size(1, 1, 1, 1));
  kernels.pack_conv(&weight, 1, 1, 1, 1, packed.data());
  const Conv conv{1, 1, packed.data(), nullptr, Act::kNone};
  float pool = 0.0f;
  run_workers(1, kernels.pointwise_conv_scratch(conv, x.map(), false, true),
              [&](const Worker& worker) {
                kernels.pointwise_conv(conv, x.map(), nullptr, nullptr, nullptr, &pool, worker);
              });
  CHECK(std::fabs(pool - 0.1) < 2e-6, format("mean of 0.1 is %.9g", pool));
}

}  // namespace
}  // namespace effnet_fast::test
