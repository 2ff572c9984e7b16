"""The operators, one file each: ``effnet_fast.ops.<name>``.

They are registered as ``torch.ops.effnet_fast.<name>`` too, there without ``impl``.
"""

from effnet_fast.ops.classifier import classifier
from effnet_fast.ops.depthwise_conv import depthwise_conv
from effnet_fast.ops.expand_depthwise import expand_depthwise
from effnet_fast.ops.fused_mbconv import fused_mbconv
from effnet_fast.ops.gpu_step import emulated
from effnet_fast.ops.packing import clear_cache
from effnet_fast.ops.pointwise_conv import pointwise_conv
from effnet_fast.ops.squeeze_excite import squeeze_excite
from effnet_fast.ops.stem_conv import stem_conv
from effnet_fast.ops.stem_depthwise import stem_depthwise
from effnet_fast.ops.swish import swish

__all__ = [
    "classifier",
    "clear_cache",
    "depthwise_conv",
    "emulated",
    "expand_depthwise",
    "fused_mbconv",
    "pointwise_conv",
    "squeeze_excite",
    "stem_conv",
    "stem_depthwise",
    "swish",
]
