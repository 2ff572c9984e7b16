// The vocabulary shared by every kernel: activations, maps, windows. No torch, no pybind11.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet_fast {

// The order is the order of network.Act in Python, which passes the integer.
enum class Act : int32_t {
  kNone = 0,
  kSwish,        // x * sigmoid(x)
  kRelu,         // max(x, 0)
  kRelu6,        // min(max(x, 0), 6)
  kHardSwish,    // x * relu6(x + 3) / 6
  kHardSigmoid,  // relu6(x + 3) / 6
  kSigmoid,      // 1 / (1 + exp(-x))
  kGelu,         // x * Phi(x), exact (erf)
  kGeluTanh,     // the tanh approximation of GELU, as torch's gelu(approximate="tanh")
};

// One image, NHWC: h x w pixels of c adjacent channels. Strides are in elements, so a map can be a
// slice of a bigger one. Nothing outside [0, h) x [0, w) x [0, c) is ever read or written.
struct Map {
  float* data;
  int64_t h, w, c;
  int64_t row;    // from a pixel to the one below it
  int64_t pixel;  // from a pixel to the one right of it, >= c

  float* at(int64_t y, int64_t x) const { return data + y * row + x * pixel; }
};

// One image with strides of its own for every axis (the NCHW or NHWC tensor that the stem reads).
struct Planes {
  const float* data;
  int64_t c, h, w;
  int64_t channel, row, pixel;  // strides in elements
};

// Where a k x k window lies on its input. A pixel outside the map is 0, not act(bias).
struct Window {
  int64_t kh, kw;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t top, left, bottom, right;  // padding

  int64_t out_h(int64_t h) const {
    return (h + top + bottom - dilation_h * (kh - 1) - 1) / stride_h + 1;
  }
  int64_t out_w(int64_t w) const {
    return (w + left + right - dilation_w * (kw - 1) - 1) / stride_w + 1;
  }
};

// 8-bit pixels of red, green and blue.
struct RgbImage {
  const uint8_t* data;  // rows of width * 3 bytes
  int64_t height, width;
  int64_t row;  // bytes from a row to the one below it
};

// Of which pixels or rows an output is the weighted sum; the weights' sum is 2^kWeightBits.
struct Taps {
  int64_t first, count;
  const int32_t* weight;
};
constexpr int kWeightBits = 22;

}  // namespace effnet_fast
