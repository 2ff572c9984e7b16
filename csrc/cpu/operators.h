// What one instruction set's files define and its table gathers; kernels.h has the contracts.
#pragma once

#include "effnet_fast/kernels.h"

#if !defined(EFFNET_FAST_ISA)
#error "EFFNET_FAST_ISA must name the instruction set: scalar, avx2 or avx512"
#endif

namespace effnet_fast::EFFNET_FAST_ISA {

int64_t packed_conv_size(int64_t cout, int64_t cin, int64_t kh, int64_t kw);
void pack_conv(const float* oihw, int64_t cout, int64_t cin, int64_t kh, int64_t kw, float* packed);
int64_t packed_depthwise_size(int64_t c, int64_t kh, int64_t kw);
void pack_depthwise(const float* c1hw, int64_t c, int64_t kh, int64_t kw, float* packed);

void stem_conv(const Conv&, const Window&, const Planes& x, const Map& y, const Worker&);
Scratch stem_conv_scratch(const Conv&, const Window&, const Planes& x);
void pointwise_conv(const Conv&, const Map& x, const float* gate, const Map* residual, const Map* y,
                    float* pool, const Worker&);
Scratch pointwise_conv_scratch(const Conv&, const Map& x, bool gated, bool pooled);
void depthwise_conv(const DepthwiseConv&, const Map& x, const Map& y, float* sums, const Worker&);
Scratch depthwise_conv_scratch(const DepthwiseConv&, const Map& x, bool summed);
void squeeze_excite(const SqueezeExcite&, const float* sums, int64_t pixels, float* gate,
                    const Worker&);
Scratch squeeze_excite_scratch(const SqueezeExcite&);
void expand_depthwise(const Conv& expand, const DepthwiseConv&, const Map& x, const Map& y,
                      float* sums, const Worker&);
Scratch expand_depthwise_scratch(const Conv& expand, const DepthwiseConv&, const Map& x,
                                 bool summed);
void stem_depthwise(const Conv& stem, const Window&, const DepthwiseConv&, const Planes& x,
                    const Map& y, float* sums, const Worker&);
Scratch stem_depthwise_scratch(const Conv& stem, const Window&, const DepthwiseConv&,
                               const Planes& x, bool summed);
void fused_mbconv(const Conv&, const Window&, const Conv* project, const Map& x,
                  const Map* residual, const Map& y, const Worker&);
Scratch fused_mbconv_scratch(const Conv&, const Window&, const Conv* project, const Map& x);
void winograd_mbconv(const Conv&, const Window&, const Conv* project, const Map& x,
                     const Map* residual, const Map& y, const Worker&);
Scratch winograd_mbconv_scratch(const Conv&, const Window&, const Conv* project, const Map& x);
void activation(Act, const float* x, float* y, int64_t n);
void resize_rows(const RgbImage& x, const Taps* outputs, int64_t count, uint8_t* scratch,
                 uint8_t* y, int64_t y_row);
void resize_column(const uint8_t* x, int64_t row, int64_t bytes, const Taps&, uint8_t* y);

}  // namespace effnet_fast::EFFNET_FAST_ISA
