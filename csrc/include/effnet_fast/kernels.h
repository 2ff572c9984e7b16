// The operators as the CPU engine sees them: float32, one image, a team of workers.
// csrc/cpu/<operator>.cpp holds each, compiled once per instruction set; kernels() is the table of
// the best set this processor has.
//
// Contracts that hold for all of them:
//  - Every worker of the team calls the kernel; it returns without a barrier at its end (the caller
//    syncs before the outputs are read, and before scratch or shared are used again).
//  - The result's bits depend on the operands and the instruction set, never on count, batch or
//    fusion: each output of a convolution is a sum of runs of fused multiply-adds, over taps then
//    input channels in ascending order, and the bias; sums are per output row (left to right),
//    then over rows (top to bottom). winograd_mbconv sums per input pixel of a tile first.
//  - No allocation, no exception, any c >= 1, any h, w >= 1, any alignment of the maps.
//  - *_scratch says how many floats of Worker::scratch and Worker::shared a call needs. It looks at
//    sizes, never at strides or data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "effnet_fast/team.h"
#include "effnet_fast/types.h"

namespace effnet_fast {

struct Scratch {
  int64_t worker = 0;  // floats per worker
  int64_t shared = 0;  // floats for the team
};

// A dense convolution's constants. Weights are packed by Kernels::pack_conv. Pointwise when the
// window is 1 x 1.
struct Conv {
  int64_t cin, cout;
  const float* weight;  // packed
  const float* bias;    // cout, or null
  Act act;
};

struct DepthwiseConv {
  int64_t c;
  Window window;
  const float* weight;  // packed by Kernels::pack_depthwise
  const float* bias;    // c, or null
  Act act;
};

// gate = gate_act(w2 act(w1 mean + b1) + b2), mean = sums / pixels
struct SqueezeExcite {
  int64_t c, squeezed;
  const float* w1;  // [squeezed][c]
  const float* b1;  // squeezed, or null
  const float* w2;  // [squeezed][c]: the second layer's weight transposed
  const float* b2;  // c, or null
  Act act, gate_act;
};

struct Kernels {
  const char* name;  // "scalar", "neon", "avx2", "avx512"
  int lanes;

  // ---- packing: plain PyTorch layouts to the layout that this table's kernels read --------------
  int64_t (*packed_conv_size)(int64_t cout, int64_t cin, int64_t kh, int64_t kw);  // in floats
  void (*pack_conv)(const float* oihw, int64_t cout, int64_t cin, int64_t kh, int64_t kw,
                    float* packed);
  int64_t (*packed_depthwise_size)(int64_t c, int64_t kh, int64_t kw);
  void (*pack_depthwise)(const float* c1hw, int64_t c, int64_t kh, int64_t kw, float* packed);

  // ---- operators --------------------------------------------------------------------------------
  // y = act(conv(x, window)) from an image of any layout; y.h, y.w are the window's output size.
  void (*stem_conv)(const Conv&, const Window&, const Planes& x, const Map& y, const Worker&);
  Scratch (*stem_conv_scratch)(const Conv&, const Window&, const Planes& x);

  // t = act(W (x * gate) + b) [+ residual]; y = t when y is given; pool[cout] = mean of t over the
  // pixels when given. gate: cin floats or null. residual: same shape as y or null. One of y, pool
  // may be null.
  void (*pointwise_conv)(const Conv&, const Map& x, const float* gate, const Map* residual,
                         const Map* y, float* pool, const Worker&);
  // Without gate and pool, x's pixels make no difference to the scratch.
  Scratch (*pointwise_conv_scratch)(const Conv&, const Map& x, bool gated, bool pooled);

  // y = act(depthwise(x)); sums[c] = sum of y over the pixels when given.
  void (*depthwise_conv)(const DepthwiseConv&, const Map& x, const Map& y, float* sums,
                         const Worker&);
  Scratch (*depthwise_conv_scratch)(const DepthwiseConv&, const Map& x, bool summed);

  // gate[c] from sums[c]
  void (*squeeze_excite)(const SqueezeExcite&, const float* sums, int64_t pixels, float* gate,
                         const Worker&);
  Scratch (*squeeze_excite_scratch)(const SqueezeExcite&);

  // pointwise_conv then depthwise_conv; of the wide map only a ring of rows and a chunk of channels
  // ever exists.
  void (*expand_depthwise)(const Conv& expand, const DepthwiseConv&, const Map& x, const Map& y,
                           float* sums, const Worker&);
  Scratch (*expand_depthwise_scratch)(const Conv& expand, const DepthwiseConv&, const Map& x,
                                      bool summed);

  // stem_conv, with the window given, then depthwise_conv; of the map between only a ring of rows
  // ever exists.
  void (*stem_depthwise)(const Conv& stem, const Window&, const DepthwiseConv&, const Planes& x,
                         const Map& y, float* sums, const Worker&);
  Scratch (*stem_depthwise_scratch)(const Conv& stem, const Window&, const DepthwiseConv&,
                                    const Planes& x, bool summed);

  // y = project(act(conv(x, window))) [+ residual]; without project y = act(conv(x, window)) [+
  // residual].
  void (*fused_mbconv)(const Conv&, const Window&, const Conv* project, const Map& x,
                       const Map* residual, const Map& y, const Worker&);
  Scratch (*fused_mbconv_scratch)(const Conv&, const Window&, const Conv* project, const Map& x);
  // The same with 2.25 times fewer multiply-adds, for 3 x 3 windows of stride and dilation 1.
  // conv's weight is of 4 x 4: G g G', as pack_conv packs it.
  void (*winograd_mbconv)(const Conv&, const Window&, const Conv* project, const Map& x,
                          const Map* residual, const Map& y, const Worker&);
  Scratch (*winograd_mbconv_scratch)(const Conv&, const Window&, const Conv* project, const Map& x);

  // y[i] = act(x[i]); x == y allowed.
  void (*activation)(Act, const float* x, float* y, int64_t n);

  // ---- 8-bit images: the passes of resize.h -----------------------------------------------------
  // Of up to kRowsAtOnce rows: y[i] = the sum of pixels, taps outputs[i], rounded and clamped, for
  // i < count. scratch: x.width * kRowsAtOnce * 4 bytes. After each row of y another byte is
  // written.
  void (*resize_rows)(const RgbImage& x, const Taps* outputs, int64_t count, uint8_t* scratch,
                      uint8_t* y, int64_t y_row);
  // y[0, bytes) = the sum of rows of x, `row` bytes apart, rounded and clamped.
  void (*resize_column)(const uint8_t* x, int64_t row, int64_t bytes, const Taps&, uint8_t* y);
};

constexpr int64_t kRowsAtOnce = 8;

// The tables compiled in that this processor can run, best first; the last is always "scalar".
const std::vector<const Kernels*>& available_kernels();
// The table in use: the best, or the one that EFFNET_FAST_ISA names (read once; an unknown or
// unsupported name is an std::invalid_argument that lists the available ones).
const Kernels& kernels();

}  // namespace effnet_fast
