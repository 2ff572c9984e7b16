// What a network takes from an image's bytes: scaled, and channels first.
#pragma once

#include <cstdint>

namespace effnet_fast {

// Values of a byte, of each channel.
using ByteTable = float[3][256];

// y (3 channels of `pixels` floats) = table[c][x[i][c]], of x (`pixels` times 3 bytes).
void normalise(const uint8_t* x, int64_t pixels, const ByteTable& table, float* y);

}  // namespace effnet_fast
