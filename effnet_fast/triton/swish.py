"""Swish, or another activation, elementwise: for what stays outside a fusion."""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import TYPES, compile_triton, launch_arguments
from effnet_fast.network import Act
from effnet_fast.triton.activation import activate

__all__ = ["compiled", "launch"]

THREADS = 128


@triton.jit
def swish_kernel(x_ptr, y_ptr, n, ACT: tl.constexpr, BLOCK: tl.constexpr):
    """Compute y = act(x) for n elements; y may be x. Program i begins at BLOCK * i."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    tl.store(y_ptr + offs, activate(x, ACT).to(y_ptr.dtype.element_ty), mask=mask)


def _block(dtype: torch.dtype) -> int:
    return THREADS * 16 // dtype.itemsize  # one 16-byte access for each thread


@functools.cache
def compiled(capability: int, dtype: torch.dtype, act: Act, aligned: bool) -> CompiledKernel:
    """The kernel for a type and an activation.

    Parameters
    ----------
    capability : int
    dtype : torch.dtype
    act : Act
    aligned : bool
        Whether x and y begin at multiples of 16 bytes and n is a multiple of 16.
    """
    pointer = "*" + TYPES[dtype]
    return compile_triton(
        swish_kernel,
        {"x_ptr": pointer, "y_ptr": pointer, "n": "i64"},
        {"ACT": int(act), "BLOCK": _block(dtype)},
        capability,
        num_warps=THREADS // 32,
        divisible=("x_ptr", "y_ptr", "n") if aligned else (),
    )


def launch(device: Device, x: DeviceTensor, y: DeviceTensor, act: Act) -> Launch:
    """Compute y = act(x), elementwise.

    Parameters
    ----------
    device : Device
    x, y : DeviceTensor
        Dense, in the same order in memory, of at least one element; y may be x.
    act : Act
    """
    n = math.prod(x.shape)
    aligned = x.address % 16 == y.address % 16 == n % 16 == 0
    kernel = compiled(device.capability, x.dtype, act, aligned)
    return Launch(
        kernel.load(device),
        grid=(-(-n // _block(x.dtype)),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, {"x_ptr": x, "y_ptr": y, "n": n}),
        regions=(x.region("x", "r"), y.region("y", "w")),
    )
