#include <algorithm>
#include <limits>

#include "check.h"

namespace effnet_fast::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> run(const Kernels& kernels, Act act, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  kernels.activation(act, x.data(), y.data(), static_cast<int64_t>(x.size()));
  return y;
}

// Each length around the vector width and the unrolled loop, unaligned, in place and not.
EFFNET_FAST_TEST(activation_lengths) {
  for (const Act act : kEveryAct) {
    for (int64_t n = 0; n <= 70; ++n) {
      const std::vector<float> x = random_floats(n + 2, 1, 8.0f);
      std::vector<float> y = x, in_place = x;
      kernels.activation(act, x.data() + 1, y.data() + 1, n);
      kernels.activation(act, in_place.data() + 1, in_place.data() + 1, n);
      const std::string what =
          format("act %d, n %lld", static_cast<int>(act), static_cast<long long>(n));
      CHECK(y == in_place, what + ": in place");
      CHECK(y[0] == x[0] && y[n + 1] == x[n + 1], what + ": wrote outside");
      Reference expected(1, 1, n);
      for (int64_t i = 0; i < n; ++i) {
        expected.value[i] = act_reference(act, x[i + 1]);
        expected.bound[i] =
            0x1p-21 * (std::fabs(x[i + 1]) + 1.0) * std::fabs(expected.value[i]) + 0x1p-23;
      }
      CHECK_CLOSE(std::vector<float>(y.begin() + 1, y.end() - 1), expected, what);
    }
  }
}

EFFNET_FAST_TEST(swish_accuracy) {
  const int64_t n = 1 << 20;
  std::vector<float> x = random_floats(n, 7, 80.0f);
  for (int64_t i = n / 2; i < n; ++i) x[i] /= 16.0f;  // where activations are
  const std::vector<float> y = run(kernels, Act::kSwish, x);
  double worst = 0.0, mean = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double exact = act_reference(Act::kSwish, x[i]);
    const double error = (y[i] - exact) / exact;
    worst = std::max(worst, std::fabs(error));
    mean += error / static_cast<double>(n);
  }
  CHECK(worst < 1e-6, format("worst relative error %.3g", worst));
  CHECK(std::fabs(mean) < 1e-7, format("mean relative error %.3g", mean));
}

EFFNET_FAST_TEST(sigmoid_accuracy) {
  std::vector<float> x = random_floats(1 << 18, 7, 80.0f);
  const std::vector<float> y = run(kernels, Act::kSigmoid, x);
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = act_reference(Act::kSigmoid, x[i]);
    worst = std::max(worst, std::fabs(y[i] - exact) / exact);
  }
  CHECK(worst < 1e-6, format("worst relative error %.3g", worst));
}

EFFNET_FAST_TEST(activation_of_extremes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float most = std::numeric_limits<float>::max();
  for (const Act act : kEveryAct) {
    CHECK(std::isnan(run(kernels, act, {nan})[0]), format("act %d of NaN", static_cast<int>(act)));
  }
  for (const Act act : {Act::kSwish, Act::kGelu, Act::kGeluTanh}) {
    const std::string what = format("act %d", static_cast<int>(act));
    for (const float big :
         {30.0f, 87.0f, 88.5f, 89.0f, 104.0f, 1e4f, 1e19f, 1e30f, most, kInfinity}) {
      const std::vector<float> y = run(kernels, act, {big, -big});
      CHECK(y[0] == big, what + format("(%g) is %g", big, y[0]));
      CHECK(std::fabs(y[1]) <= (big > 88.0f ? 1e-36f : 1e-11f),
            what + format("(%g) is %g", -big, y[1]));
    }
    CHECK(run(kernels, act, {0.0f})[0] == 0.0f, what + "(0)");
    CHECK(run(kernels, act, {-kInfinity})[0] == 0.0f, what + "(-inf)");
  }
  for (const float big : {89.0f, 1e10f, most, kInfinity}) {
    const std::vector<float> y = run(kernels, Act::kSigmoid, {big, -big});
    CHECK(y[0] == 1.0f && y[1] == 0.0f, format("sigmoid(+-%g) is %g, %g", big, y[0], y[1]));
  }
  CHECK(run(kernels, Act::kHardSwish, {most})[0] == most, "hard swish of the largest float");
  CHECK(run(kernels, Act::kRelu6, {kInfinity})[0] == 6.0f, "relu6(inf)");
  CHECK(run(kernels, Act::kRelu, {-kInfinity})[0] == 0.0f, "relu(-inf)");
}

}  // namespace
}  // namespace effnet_fast::test
