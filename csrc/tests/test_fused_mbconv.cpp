#include "check.h"

namespace effnet_fast::test {
namespace {

struct Case {
  int64_t h, w, cin, mid, cout;  // cout 0: no projection
  Window window;
  Act act = Act::kSwish;
  bool bias = true, residual = false;
  GuardedMap::Cut cut = GuardedMap::kSlice;
  bool winograd = false;
};

// G g G' of each 3 x 3 kernel, rounded once.
std::vector<float> winograd_weight(const std::vector<float>& weight) {
  constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  std::vector<float> made;
  for (size_t kernel = 0; kernel < weight.size(); kernel += 9) {
    for (int place = 0; place < 16; ++place) {
      double sum = 0.0;
      for (int tap = 0; tap < 9; ++tap)
        sum += kG[place / 4][tap / 3] * weight[kernel + tap] * kG[place % 4][tap % 3];
      made.push_back(static_cast<float>(sum));
    }
  }
  return made;
}

// Against the reference; with a projection bit for bit against the two convolutions apart; with 1,
// 2 and 3 workers.
void check(const Kernels& kernels, const Case& c) {
  const Window& w = c.window;
  const std::string what = format("%lldx%lldx%lld -> %lld -> %lld act %d ",
                                  static_cast<long long>(c.h), static_cast<long long>(c.w),
                                  static_cast<long long>(c.cin), static_cast<long long>(c.mid),
                                  static_cast<long long>(c.cout), static_cast<int>(c.act)) +
                           describe(w);
  const int64_t channels = c.cout ? c.cout : c.mid;
  const GuardedMap x(c.h, c.w, c.cin, c.cut, 1, 1.0f);
  const std::vector<float> weight = random_floats(c.mid * c.cin * w.kh * w.kw, 2, 1.0f);
  const std::vector<float> bias = random_floats(c.mid, 3, 1.0f);
  const std::vector<float> project_weight = random_floats(c.cout * c.mid, 4, 1.0f);
  const std::vector<float> project_bias = random_floats(c.cout, 5, 1.0f);
  const auto mbconv = c.winograd ? kernels.winograd_mbconv : kernels.fused_mbconv;
  const auto mbconv_scratch =
      c.winograd ? kernels.winograd_mbconv_scratch : kernels.fused_mbconv_scratch;
  const int64_t kh = c.winograd ? 4 : w.kh, kw = c.winograd ? 4 : w.kw;
  std::vector<float> packed(kernels.packed_conv_size(c.mid, c.cin, kh, kw));
  kernels.pack_conv((c.winograd ? winograd_weight(weight) : weight).data(), c.mid, c.cin, kh, kw,
                    packed.data());
  const Conv conv{c.cin, c.mid, packed.data(), c.bias ? bias.data() : nullptr, c.act};
  Reference expected =
      conv_reference(Reference(x), w, c.mid, false, weight.data(), conv.bias, c.act);
  const GuardedMap residual(expected.h, expected.w, channels, c.cut, 6, 1.0f);
  const Map* to_add = c.residual ? &residual.map() : nullptr;

  std::vector<float> packed_project;
  Conv project{};
  std::vector<float> first;
  if (c.cout) {
    packed_project.resize(kernels.packed_conv_size(c.cout, c.mid, 1, 1));
    kernels.pack_conv(project_weight.data(), c.cout, c.mid, 1, 1, packed_project.data());
    project = {c.mid, c.cout, packed_project.data(), c.bias ? project_bias.data() : nullptr,
               Act::kNone};
    const GuardedMap wide(expected.h, expected.w, c.mid, GuardedMap::kDense);
    const GuardedMap apart(expected.h, expected.w, c.cout, c.cut);
    run_workers(1, mbconv_scratch(conv, w, nullptr, x.map()), [&](const Worker& worker) {
      mbconv(conv, w, nullptr, x.map(), nullptr, wide.map(), worker);
    });
    run_workers(1, kernels.pointwise_conv_scratch(project, wide.map(), false, false),
                [&](const Worker& worker) {
                  kernels.pointwise_conv(project, wide.map(), nullptr, to_add, &apart.map(),
                                         nullptr, worker);
                });
    first = apart.values();
    expected = conv_reference(expected, kPointwise, c.cout, false, project_weight.data(),
                              project.bias, Act::kNone);
  }
  if (c.residual) expected = add_reference(expected, Reference(residual));

  const Conv* second = c.cout ? &project : nullptr;
  for (int count = 1; count <= 3; ++count) {
    const GuardedMap y(expected.h, expected.w, channels, c.cut);
    run_workers(count, mbconv_scratch(conv, w, second, x.map()), [&](const Worker& worker) {
      mbconv(conv, w, second, x.map(), to_add, y.map(), worker);
    });
    CHECK(y.surroundings_untouched(), what);
    if (count == 1) CHECK_CLOSE(y.values(), expected, what);
    if (first.empty()) first = y.values();
    CHECK(same(y.values(), first), what + format(" with %d workers", count));
  }
}

Window window(int64_t k, int64_t stride, int64_t low, int64_t high) {
  return {k, k, stride, stride, 1, 1, low, low, high, high};
}

EFFNET_FAST_TEST(fused_mbconv_channels) {
  for (int64_t c = 1; c <= 17; ++c) {
    check(kernels, {4, 5, c, 18 - c, 0, window(3, 1, 1, 1)});
    check(kernels, {4, 5, c, 2 * c, c, window(3, 1, 1, 1), Act::kSwish, true, true});
    check(kernels, {5, 4, 18 - c, 7, c, window(3, 2, 0, 1), Act::kRelu6, false, false});
  }
}

EFFNET_FAST_TEST(fused_mbconv_windows) {
  for (const int64_t k : {1, 2, 3, 5, 7}) {
    for (const int64_t stride : {1, 2}) {
      for (const int64_t size : {1, 2, 7, 9}) {
        check(kernels, {size, size + 1, 4, 12, 5, window(k, stride, k / 2, k / 2)});
        if (size >= k)
          check(kernels, {size, size, 4, 12, 0, window(k, stride, 0, 0), Act::kSwish, true, true});
      }
    }
  }
  check(kernels, {9, 8, 3, 10, 4, {3, 3, 1, 2, 2, 1, 2, 0, 2, 2}});
  check(kernels, {9, 8, 3, 10, 4, {3, 2, 1, 1, 1, 3, 4, 5, 3, 6}});
}

EFFNET_FAST_TEST(fused_mbconv_large) {
  check(kernels,
        {17, 31, 8, 40, 24, window(3, 1, 1, 1), Act::kSwish, true, true, GuardedMap::kDense});
  check(kernels, {6, 9, 4, 1500, 20, window(3, 1, 1, 1)});  // the tile at its smallest
}

EFFNET_FAST_TEST(fused_mbconv_every_act) {
  for (const Act act : kEveryAct) check(kernels, {5, 5, 3, 19, 6, window(3, 1, 1, 1), act});
}

// Tiles of 2 x 2 that the map ends in, several blocks of them, channels that fill no vector.
EFFNET_FAST_TEST(winograd_mbconv) {
  const auto with = [&](int64_t h, int64_t w, int64_t cin, int64_t mid, int64_t cout, Window window,
                        Act act = Act::kSwish, bool residual = false,
                        GuardedMap::Cut cut = GuardedMap::kSlice) {
    check(kernels, {h, w, cin, mid, cout, window, act, !residual, residual, cut, true});
  };
  for (int64_t c = 1; c <= 17; ++c) {
    with(4, 5, c, 18 - c, 0, window(3, 1, 1, 1), Act::kSwish, true);
    with(5, 4, c, 2 * c, c, window(3, 1, 1, 1), Act::kSwish, true);
  }
  for (const int64_t size : {1, 2, 3, 7}) {
    with(size, size + 1, 16, 33, 5, window(3, 1, 1, 1));
    with(size, size + 3, 16, 24, 0, window(3, 1, 2, 0));
    if (size >= 3) with(size, size, 16, 12, 0, window(3, 1, 0, 0), Act::kRelu6, true);
  }
  with(17, 31, 24, 96, 48, window(3, 1, 1, 1), Act::kSwish, true, GuardedMap::kDense);
  with(3, 60, 160, 70, 24, window(3, 1, 1, 1));
  with(2, 2, 16, 16, 0, {3, 3, 1, 1, 1, 1, 4, 3, 2, 5});
  for (const Act act : kEveryAct) with(5, 5, 16, 19, 6, window(3, 1, 1, 1), act);
}

// A 1 x 1 window is a pointwise convolution.
EFFNET_FAST_TEST(fused_mbconv_of_one_pixel_is_pointwise) {
  const int64_t h = 5, w = 9, cin = 13, cout = 21;
  const GuardedMap x(h, w, cin, GuardedMap::kSlice, 1, 1.0f);
  const std::vector<float> weight = random_floats(cin * cout, 2, 1.0f);
  std::vector<float> packed(kernels.packed_conv_size(cout, cin, 1, 1));
  kernels.pack_conv(weight.data(), cout, cin, 1, 1, packed.data());
  const Conv conv{cin, cout, packed.data(), nullptr, Act::kSwish};
  const GuardedMap y(h, w, cout, GuardedMap::kDense), pointwise(h, w, cout, GuardedMap::kDense);
  run_workers(1, kernels.fused_mbconv_scratch(conv, kPointwise, nullptr, x.map()),
              [&](const Worker& worker) {
                kernels.fused_mbconv(conv, kPointwise, nullptr, x.map(), nullptr, y.map(), worker);
              });
  run_workers(
      1, kernels.pointwise_conv_scratch(conv, x.map(), false, false), [&](const Worker& worker) {
        kernels.pointwise_conv(conv, x.map(), nullptr, nullptr, &pointwise.map(), nullptr, worker);
      });
  CHECK(same(y.values(), pointwise.values()), "1 x 1");
}

}  // namespace
}  // namespace effnet_fast::test
