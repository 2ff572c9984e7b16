"""stem_conv: y = act(conv(x) + bias), from an image of any strides to a channels-last map."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_rows as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import TYPES, compile_without_spills, launch_arguments
from effnet_fast.network import Act, Window
from effnet_fast.triton.activation import activate

__all__ = ["compiled", "launch", "pack"]

BLOCK_K = 32  # a 3 x 3 window of 3 channels has 27 taps


@triton.jit
def stem_conv_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    taps, cout, h, w, out_w, pixels, top, left,
    x_image_stride, x_channel_stride, x_row_stride, x_pixel_stride,
    y_image_stride, y_row_stride, y_pixel_stride,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    ACT: tl.constexpr, has_bias: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels of an image times BLOCK_N output channels, as a product over all taps.

    Weights are [output channel][channel][row][column]. `cout` and the strides of y are in units of
    ALIGN elements. The program's number is (image, tile of pixels, tile of channels).
    """
    cout *= ALIGN
    channel_tiles = tl.cdiv(cout, BLOCK_N)
    tiles = tl.cdiv(pixels, BLOCK_M)
    n_tile = tl.program_id(0) % channel_tiles
    tile = tl.program_id(0) // channel_tiles % tiles
    image = (tl.program_id(0) // channel_tiles // tiles).to(tl.int64)

    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, column = pixel // out_w, pixel % out_w
    m_mask = pixel < pixels
    n_offs = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = n_offs < cout
    first_y, first_x = row * STRIDE_H - top, column * STRIDE_W - left
    x_ptr += image * x_image_stride
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(0, taps, BLOCK_K):
        k_offs = first + tl.arange(0, BLOCK_K)
        k_mask = k_offs < taps
        channel, i, j = k_offs // (KH * KW), k_offs % (KH * KW) // KW, k_offs % KW
        y, x = first_y[:, None] + i[None, :], first_x[:, None] + j[None, :]
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        offs = channel[None, :].to(tl.int64) * x_channel_stride + x * x_pixel_stride
        offs += y.to(tl.int64) * x_row_stride
        mask = m_mask[:, None] & k_mask[None, :] & inside
        value = tl.load(x_ptr + offs, mask=mask, other=0.0)
        weight_ptrs = weight_ptr + n_offs[None, :].to(tl.int64) * taps + k_offs[:, None]
        weight = tl.load(weight_ptrs, mask=n_mask[None, :] & k_mask[:, None], other=0.0)
        acc = tl.dot(value, weight, acc, input_precision="ieee")
    if has_bias:
        acc += tl.load(bias_ptr + n_offs, mask=n_mask, other=0.0)[None, :]
    out = activate(acc, ACT)
    offs = row.to(tl.int64) * (y_row_stride * ALIGN) + column * (y_pixel_stride * ALIGN)
    y_ptrs = y_ptr + image * y_image_stride * ALIGN + offs[:, None] + n_offs[None, :]
    tl.store(y_ptrs, out.to(dtype), mask=m_mask[:, None] & n_mask[None, :])


# ---- the host side -------------------------------------------------------------------------------

SIZES = ("taps", "cout", "h", "w", "out_w", "pixels", "top", "left")
STRIDES = (
    "x_image_stride", "x_channel_stride", "x_row_stride", "x_pixel_stride",
    "y_image_stride", "y_row_stride", "y_pixel_stride",
)  # fmt: skip


@functools.cache
def compiled(
    capability: int,
    dtype: torch.dtype,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    act: Act,
    has_bias: bool,
    aligned: bool,
    block: tuple[int, int],
) -> CompiledKernel:
    """The kernel for a type, a window and an activation.

    Parameters
    ----------
    capability : int
    dtype : torch.dtype
    kernel, stride : (int, int)
        Of the window.
    act : Act
    has_bias : bool
    aligned : bool
        Whether all pixels of y begin at multiples of 16 bytes, and end there.
    block : (int, int)
        Pixels and output channels of a program.
    """
    pointer = "*" + TYPES[dtype]
    given = {"x_ptr": pointer, "weight_ptr": pointer, "bias_ptr": "*fp32", "y_ptr": pointer}
    if not has_bias:
        del given["bias_ptr"]
    return compile_without_spills(
        stem_conv_kernel,
        given
        | dict.fromkeys(SIZES, "i32")
        | dict.fromkeys(STRIDES, "i64"),
        ({} if has_bias else {"bias_ptr": None})
        | {
            "KH": kernel[0], "KW": kernel[1], "STRIDE_H": stride[0], "STRIDE_W": stride[1],
            "ACT": int(act), "has_bias": has_bias, "ALIGN": _unit(dtype, aligned),
            "BLOCK_M": block[0], "BLOCK_N": block[1], "BLOCK_K": BLOCK_K,
        },
        capability,
        divisible=("y_ptr",) if aligned else (),
    )  # fmt: skip


def block(cout: int) -> tuple[int, int]:
    """Pixels and output channels of a program: each of 128 threads has 16 sums, and addresses."""
    channels = min(64, max(16, 1 << (cout - 1).bit_length()))
    return 2048 // channels, channels


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor,
    window: Window,
    act: Act,
) -> Launch:
    """Compute y = act(conv(x) + bias).

    Parameters
    ----------
    device : Device
    x : DeviceTensor
        (N, C, H, W), of any strides; N at least 1.
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    y : DeviceTensor
        (N, O, H', W') with adjacent channels.
    window : Window
        With its padding, without a dilation.
    act : Act
    """
    n, _, h, w = x.shape
    weight, bias = packed
    cout, taps = weight.shape
    out_h, out_w = y.shape[2:]
    outputs = y.map_strides
    aligned = y.address % 16 == 0 and not any(
        size % _unit(x.dtype, True) for size in (cout, *outputs)
    )
    m, channels = block(cout)
    kernel = compiled(
        device.capability, x.dtype, window.kernel, window.stride, act, bias is not None, aligned,
        (m, channels),
    )  # fmt: skip
    unit = _unit(x.dtype, aligned)
    named = {"x": x, "weight": weight, "bias": bias, "y": y}
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    values = {f"{name}_ptr": tensor for name, tensor in given.items()}
    pixels = out_h * out_w
    sizes = (taps, cout // unit, h, w, out_w, pixels, *window.padding[:2])
    values |= dict(zip(SIZES, sizes, strict=True))
    strides = (*x.strides, *(stride // unit for stride in outputs))
    values |= dict(zip(STRIDES, strides, strict=True))
    return Launch(
        kernel.load(device),
        grid=(n * -(-pixels // m) * -(-cout // channels),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, values),
        regions=tuple(t.region(name, "w" if t is y else "r") for name, t in given.items()),
    )


def _unit(dtype: torch.dtype, aligned: bool) -> int:
    return 16 // dtype.itemsize if aligned else 1
