#include "effnet_fast/resize.h"

#include <algorithm>

#include "check.h"

namespace effnet_fast::test {
namespace {

constexpr uint8_t kUntouched = 0xa5;

// Rows with gaps, of which the last ends where the memory does: a sanitizer sees a read past it.
std::vector<uint8_t> noise(int64_t height, int64_t width, int64_t gap) {
  const std::vector<float> floats =
      random_floats((height - 1) * (width * 3 + gap) + width * 3, 3, 128.0f);
  std::vector<uint8_t> bytes;
  for (const float x : floats) bytes.push_back(static_cast<uint8_t>(x + 128.0f));
  return bytes;
}

std::vector<uint8_t> resized(const Kernels& kernels, const RgbImage& x, int64_t to_height,
                             int64_t to_width, Filter filter, const Crop& crop) {
  const auto bytes = static_cast<size_t>(crop.height * crop.width * 3);
  std::vector<uint8_t> y(bytes + 64, kUntouched);
  resize(kernels, x, to_height, to_width, filter, crop, y.data());
  CHECK(std::all_of(y.begin() + static_cast<int64_t>(bytes), y.end(),
                    [](uint8_t byte) { return byte == kUntouched; }),
        "wrote past the end");
  y.resize(bytes);
  return y;
}

EFFNET_FAST_TEST(resize_averages) {
  const std::vector<uint8_t> x = {0, 10, 255, 1, 20, 255, 2, 30, 255, 4, 41, 254};
  const RgbImage image{x.data(), 2, 2, 6};
  const std::vector<uint8_t> y = resized(kernels, image, 1, 1, Filter::kBox, {0, 0, 1, 1});
  // Rows first, each rounded: (1, 15, 255) and (3, 36, 255).
  CHECK(y == (std::vector<uint8_t>{2, 26, 255}), format("%d %d %d", y[0], y[1], y[2]));
}

// The tables' bits are the same, those of the plain loops.
EFFNET_FAST_TEST(resize_in_every_instruction_set) {
  const Kernels& plain = *available_kernels().back();
  struct Sizes {
    int64_t height, width, to_height, to_width;
  };
  // Rows first, columns first, larger, along one axis alone, not at all; widths around a vector's.
  for (const Sizes& s : {Sizes{37, 61, 11, 19}, Sizes{90, 20, 12, 10}, Sizes{5, 7, 20, 31},
                         Sizes{9, 30, 9, 12}, Sizes{30, 9, 12, 9}, Sizes{6, 7, 6, 7},
                         Sizes{1, 1, 3, 4}, Sizes{8, 6, 4, 5}, Sizes{17, 5, 3, 2}}) {
    for (const int64_t gap : {0, 5}) {
      const std::vector<uint8_t> x = noise(s.height, s.width, gap);
      const RgbImage image{x.data(), s.height, s.width, s.width * 3 + gap};
      for (const Filter filter : {Filter::kBox, Filter::kBilinear, Filter::kHamming,
                                  Filter::kBicubic, Filter::kLanczos}) {
        const Crop whole{0, 0, s.to_height, s.to_width};
        const Crop inner{s.to_height / 3, s.to_width / 3, (s.to_height + 1) / 2,
                         (s.to_width + 1) / 2};
        const std::vector<uint8_t> all =
            resized(plain, image, s.to_height, s.to_width, filter, whole);
        for (const Crop& crop : {whole, inner}) {
          const std::vector<uint8_t> y =
              resized(kernels, image, s.to_height, s.to_width, filter, crop);
          bool same = true;
          for (int64_t row = 0; row < crop.height; ++row) {
            const uint8_t* const expected =
                all.data() + ((crop.top + row) * s.to_width + crop.left) * 3;
            same &=
                std::equal(expected, expected + crop.width * 3, y.data() + row * crop.width * 3);
          }
          CHECK(same,
                format("%lld x %lld to %lld x %lld, filter %d, crop of %lld x %lld",
                       static_cast<long long>(s.height), static_cast<long long>(s.width),
                       static_cast<long long>(s.to_height), static_cast<long long>(s.to_width),
                       static_cast<int>(filter), static_cast<long long>(crop.height),
                       static_cast<long long>(crop.width)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace effnet_fast::test
