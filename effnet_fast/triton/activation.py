"""Activations of float32 tiles."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

LOG2_E = tl.constexpr(1.4426950408889634)
NAN = tl.constexpr(tl.PropagateNan.ALL)  # torch's relu keeps a NaN; max.f32 would not


@triton.jit
def sigmoid(x):
    """Compute 1 / (1 + exp(-x)). Below -88 the exponential is infinite and the quotient 0."""
    # The division takes 4 instructions more than rcp.approx, which Triton has not. Both use the
    # special-function unit twice, at an eighth of the others' rate: it is what limits.
    return 1.0 / (1.0 + tl.exp2(-LOG2_E * x))


@triton.jit
def swish(x):
    """Compute x / (1 + exp(-x)), with one division."""
    return x / (1.0 + tl.exp2(-LOG2_E * x))


@triton.jit
def clamp(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Compute min(max(x, LOW), HIGH); a NaN stays one."""
    return tl.minimum(tl.maximum(x, LOW, propagate_nan=NAN), HIGH, propagate_nan=NAN)


@triton.jit
def activate(x, ACT: tl.constexpr):
    """Apply an activation, by its number in effnet_fast.network.Act."""
    if ACT == 1:
        return swish(x)
    elif ACT == 2:
        return tl.maximum(x, 0.0, propagate_nan=NAN)
    elif ACT == 3:
        return clamp(x, 0.0, 6.0)
    elif ACT == 4:
        return x * (clamp(x + 3.0, 0.0, 6.0) * (1.0 / 6.0))
    elif ACT == 5:
        return clamp(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)
    elif ACT == 6:
        return sigmoid(x)
    elif ACT == 7:  # erfc, for 1 + erf cancels below 0
        return 0.5 * x * libdevice.erfc(-0.7071067811865476 * x)
    elif ACT == 8:  # (1 + tanh u) / 2 = sigmoid(2 u)
        return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        return x
