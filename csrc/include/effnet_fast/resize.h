// 8-bit RGB images resized and cropped, to the very pixels of Pillow's Image.resize: what stands
// before the network when photos are classified.
#pragma once

#include <cstdint>

#include "effnet_fast/kernels.h"

namespace effnet_fast {

// Pillow's, without nearest.
enum class Filter : int32_t { kBox = 0, kBilinear, kHamming, kBicubic, kLanczos };

struct Crop {
  int64_t top, left, height, width;
};

// y (crop.height rows of crop.width * 3 bytes, dense) = the crop of x resized to to_height x
// to_width; of what lies outside the crop nothing is computed. The crop lies within; all sizes are
// at least 1. Memory for it is kept per thread, up to 4 MB. Throws std::bad_alloc.
void resize(const Kernels&, const RgbImage& x, int64_t to_height, int64_t to_width, Filter filter,
            const Crop& crop, uint8_t* y);

}  // namespace effnet_fast
