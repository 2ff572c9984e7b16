#include "effnet_fast/normalise.h"

#include "check.h"

namespace effnet_fast::test {
namespace {

EFFNET_FAST_TEST(normalise_looks_up_every_byte) {
  (void)kernels;  // it has no variants
  ByteTable table;
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 256; ++i) table[c][i] = static_cast<float>(1000 * c + i) / 7;
  }
  for (const int64_t pixels : {1, 2, 255, 256, 1003}) {
    std::vector<uint8_t> x;
    for (int64_t i = 0; i < 3 * pixels; ++i) x.push_back(static_cast<uint8_t>(i * 37 + i / 256));
    constexpr float kUntouched = -1;
    std::vector<float> y(static_cast<size_t>(3 * pixels) + 1, kUntouched);
    normalise(x.data(), pixels, table, y.data());
    for (int64_t i = 0; i < 3 * pixels; ++i) {
      const float expected = table[i % 3][x[i]];
      CHECK(y[i % 3 * pixels + i / 3] == expected,
            format("channel %d of %d", int(i % 3), int(i / 3)));
    }
    CHECK(y.back() == kUntouched, "wrote past the end");
  }
}

}  // namespace
}  // namespace effnet_fast::test
