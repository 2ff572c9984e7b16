// This instruction set's table of kernels.
#include "operators.h"
#include "simd.h"

#define EFFNET_FAST_STRING_(x) #x
#define EFFNET_FAST_STRING(x) EFFNET_FAST_STRING_(x)

namespace effnet_fast::EFFNET_FAST_ISA {

extern const Kernels kTable;
const Kernels kTable = {
    EFFNET_FAST_STRING(EFFNET_FAST_ISA),
    kLanes,
    packed_conv_size,
    pack_conv,
    packed_depthwise_size,
    pack_depthwise,
    stem_conv,
    stem_conv_scratch,
    pointwise_conv,
    pointwise_conv_scratch,
    depthwise_conv,
    depthwise_conv_scratch,
    squeeze_excite,
    squeeze_excite_scratch,
    expand_depthwise,
    expand_depthwise_scratch,
    stem_depthwise,
    stem_depthwise_scratch,
    fused_mbconv,
    fused_mbconv_scratch,
    winograd_mbconv,
    winograd_mbconv_scratch,
    activation,
    resize_rows,
    resize_column,
};

}  // namespace effnet_fast::EFFNET_FAST_ISA
