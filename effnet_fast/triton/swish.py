"""Swish, elementwise, for what stays outside a fusion."""

from __future__ import annotations

import triton
import triton.language as tl

from effnet_fast.triton.activation import swish


@triton.jit
def swish_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Compute y = swish(x) for n elements; y may be x. Program i begins at BLOCK * i."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    tl.store(y_ptr + offs, swish(x).to(y_ptr.dtype.element_ty), mask=mask)
