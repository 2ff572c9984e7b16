// By table: whatever arithmetic made its 768 numbers, the bits are that one's. Six loads and three
// stores a pixel (benchmarks/resize.py).
#include "effnet_fast/normalise.h"

namespace effnet_fast {

void normalise(const uint8_t* x, int64_t pixels, const ByteTable& table, float* y) {
  float* __restrict__ red = y;
  float* __restrict__ green = y + pixels;
  float* __restrict__ blue = y + 2 * pixels;
  for (int64_t i = 0; i < pixels; ++i) {
    red[i] = table[0][x[3 * i]];
    green[i] = table[1][x[3 * i + 1]];
    blue[i] = table[2][x[3 * i + 2]];
  }
}

}  // namespace effnet_fast
