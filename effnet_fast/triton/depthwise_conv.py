"""depthwise_conv: y = act(depthwise(x) + bias), and for each channel the sum of y over a tile."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_depthwise as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import (
    TYPES,
    compile_triton,
    compile_without_spills,
    launch_arguments,
)
from effnet_fast.network import Act, Window
from effnet_fast.triton.activation import activate

__all__ = ["compiled", "launch", "pack", "tiles", "total"]

TILE = 8  # outputs of a program, high and wide: B0's smallest maps have 7 x 7
# Channels of a program: 2 sectors of a pixel in float16. With more, B0's last maps would be too few
# programs for an H100 at batch 8 (288 of them now, for 132 multiprocessors).
BLOCK_C = 32
UNROLLED = 5  # rows of taps; more make code that takes longer to compile than to run
TOTAL_BLOCK = 128


@triton.jit
def depthwise_conv_kernel(
    x_ptr, constants_ptr, y_ptr, sums_ptr,
    channels, padded_channels, h, w, out_h, out_w, top, left,
    x_image_stride, x_row_stride, x_pixel_stride,
    y_image_stride, y_row_stride, y_pixel_stride,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, ACT: tl.constexpr,
    has_sums: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, BLOCK_C: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """TILE x TILE outputs of BLOCK_C channels.

    Channels are adjacent; those of the constants are padded to whole chunks.
    `channels` and all strides are in units of ALIGN elements: the compiler sees from the product
    that accesses of so many are aligned.
    The program's number is (image, row of tiles, column of tiles, chunk of channels).
    """
    channels *= ALIGN
    chunks = tl.cdiv(channels, BLOCK_C)
    column_tiles = tl.cdiv(out_w, TILE)
    tiles = column_tiles * tl.cdiv(out_h, TILE)
    # Chunks first: programs that run together share the memory's bursts.
    chunk = tl.program_id(0) % chunks
    tile = tl.program_id(0) // chunks % tiles
    image = (tl.program_id(0) // chunks // tiles).to(tl.int64)
    x_ptr += image * x_image_stride * ALIGN
    y_ptr += image * y_image_stride * ALIGN

    c_offs = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c_offs < channels
    pixel = tl.arange(0, TILE * TILE)
    row = tile // column_tiles * TILE + pixel // TILE
    column = tile % column_tiles * TILE + pixel % TILE
    taps_ptr = constants_ptr + c_offs
    acc = tl.zeros((TILE * TILE, BLOCK_C), tl.float32)
    if KH <= UNROLLED:
        for i in tl.static_range(KH):
            acc = _accumulate_row(
                acc, x_ptr, taps_ptr, i, row, column, c_offs, c_mask, padded_channels,
                h, w, top, left, x_row_stride * ALIGN, x_pixel_stride * ALIGN,
                KW, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
            )  # fmt: skip
    else:
        for i in tl.range(KH):
            acc = _accumulate_row(
                acc, x_ptr, taps_ptr, i, row, column, c_offs, c_mask, padded_channels,
                h, w, top, left, x_row_stride * ALIGN, x_pixel_stride * ALIGN,
                KW, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
            )  # fmt: skip
    bias = tl.load(taps_ptr + KH * KW * padded_channels)
    out = activate(acc + bias[None, :], ACT)
    inside = ((row < out_h) & (column < out_w))[:, None] & c_mask[None, :]
    y_offs = row.to(tl.int64) * (y_row_stride * ALIGN) + column * (y_pixel_stride * ALIGN)
    y_ptrs = y_ptr + y_offs[:, None] + c_offs[None, :]
    tl.store(y_ptrs, out.to(y_ptr.dtype.element_ty), mask=inside)
    if has_sums:
        total = tl.sum(tl.where(inside, out, 0.0), axis=0)
        tl.store(sums_ptr + (image * tiles + tile) * channels + c_offs, total, mask=c_mask)


@triton.jit
def _accumulate_row(
    acc, x_ptr, taps_ptr, i, row, column, c_offs, c_mask, padded_channels,
    h, w, top, left, x_row_stride, x_pixel_stride,
    KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """Add the products of row i of the taps."""
    y = row * STRIDE_H - top + i * DILATION_H
    for j in tl.static_range(KW):
        x = column * STRIDE_W - left + j * DILATION_W
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        offs = y.to(tl.int64) * x_row_stride + x * x_pixel_stride
        ptrs = x_ptr + offs[:, None] + c_offs[None, :]
        value = tl.load(ptrs, mask=inside[:, None] & c_mask[None, :], other=0.0).to(tl.float32)
        tap = tl.load(taps_ptr + (i * KW + j) * padded_channels)
        acc += value * tap[None, :]
    return acc


@triton.jit
def depthwise_conv_total_kernel(partial_ptr, sums_ptr, channels, tiles, BLOCK: tl.constexpr):
    """Add up partial [image][tile][channel] over the tiles, in their order."""
    blocks = tl.cdiv(channels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    offs = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = offs < channels
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in tl.range(tiles):
        from_ptrs = partial_ptr + (image * tiles + tile) * channels + offs
        total += tl.load(from_ptrs, mask=mask, other=0.0)
    tl.store(sums_ptr + image * channels + offs, total, mask=mask)


# ---- the host side -------------------------------------------------------------------------------

SIZES = (
    "channels", "padded_channels", "h", "w", "out_h", "out_w", "top", "left",
)  # fmt: skip
STRIDES = (
    "x_image_stride", "x_row_stride", "x_pixel_stride",
    "y_image_stride", "y_row_stride", "y_pixel_stride",
)  # fmt: skip


@functools.cache
def compiled(
    capability: int,
    dtype: torch.dtype,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    act: Act,
    has_sums: bool,
    aligned: bool,
) -> CompiledKernel:
    """The kernel for a type, a window and an activation.

    Parameters
    ----------
    capability : int
    dtype : torch.dtype
    kernel, stride, dilation : (int, int)
        Of the window.
    act : Act
    has_sums : bool
    aligned : bool
        Whether every pixel of x and y begins at a multiple of 16 bytes, and so do their ends.
    """
    pointer = "*" + TYPES[dtype]
    pointers = {"x_ptr": pointer, "constants_ptr": "*fp32", "y_ptr": pointer}
    constants = {"sums_ptr": None}
    if has_sums:
        pointers["sums_ptr"] = "*fp32"
        constants = {}
    return compile_without_spills(
        depthwise_conv_kernel,
        pointers | dict.fromkeys(SIZES, "i32") | dict.fromkeys(STRIDES, "i64"),
        constants
        | {
            "KH": kernel[0], "KW": kernel[1],
            "STRIDE_H": stride[0], "STRIDE_W": stride[1],
            "DILATION_H": dilation[0], "DILATION_W": dilation[1],
            "ACT": int(act), "has_sums": has_sums, "ALIGN": _unit(dtype, aligned),
            "TILE": TILE, "BLOCK_C": BLOCK_C, "UNROLLED": UNROLLED,
        },
        capability,
        # Single elements take an address each, in registers.
        num_warps=4 if aligned else 8,
        divisible=("constants_ptr", "padded_channels", *(("x_ptr", "y_ptr") if aligned else ())),
    )  # fmt: skip


@functools.cache
def compiled_total(capability: int) -> CompiledKernel:
    """The kernel that adds up the sums of tiles."""
    return compile_triton(
        depthwise_conv_total_kernel,
        {"partial_ptr": "*fp32", "sums_ptr": "*fp32", "channels": "i32", "tiles": "i32"},
        {"BLOCK": TOTAL_BLOCK},
        capability,
    )


def tile_count(out: tuple[int, int]) -> int:
    """Of an image with so many rows and columns of outputs."""
    return -(-out[0] // TILE) * -(-out[1] // TILE)


def tiles(device: Device, x: DeviceTensor, window: Window) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    return tile_count(window.output_size(*x.shape[2:]))


def launch(
    device: Device,
    x: DeviceTensor,
    constants: DeviceTensor,
    y: DeviceTensor,
    window: Window,
    act: Act,
    sums: DeviceTensor | None = None,
) -> Launch:
    """Compute y = act(depthwise(x) + bias), with the sums of each tile.

    Parameters
    ----------
    device : Device
    x, y : DeviceTensor
        Maps (N, C, H, W) with adjacent channels; N at least 1.
    constants : DeviceTensor
        What :func:`pack` returned.
    window : Window
        With its padding.
    act : Act
    sums : DeviceTensor, optional
        (N, tiles, C), float32: :func:`tiles` says how many.
    """
    n, c, h, w = x.shape
    out_h, out_w = y.shape[2:]
    strides = [t.map_strides for t in (x, y)]
    aligned = x.address % 16 == y.address % 16 == 0 and not any(
        size % _unit(x.dtype, True) for size in (c, *strides[0], *strides[1])
    )
    kernel = compiled(
        device.capability, x.dtype, window.kernel, window.stride, window.dilation, act,
        sums is not None, aligned,
    )  # fmt: skip
    values = {"x_ptr": x, "constants_ptr": constants, "y_ptr": y}
    unit = _unit(x.dtype, aligned)
    sizes = (c // unit, constants.shape[1], h, w, out_h, out_w, *window.padding[:2])
    values |= dict(zip(SIZES, sizes, strict=True))
    strides = (stride // unit for stride in (*strides[0], *strides[1]))
    values |= dict(zip(STRIDES, strides, strict=True))
    regions = [x.region("x", "r"), constants.region("constants", "r"), y.region("y", "w")]
    if sums is not None:
        values["sums_ptr"] = sums
        regions.append(sums.region("sums", "w"))
    return Launch(
        kernel.load(device),
        grid=(n * tiles(device, x, window) * -(-c // BLOCK_C),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, values),
        regions=tuple(regions),
    )


def total(device: Device, partial: DeviceTensor, sums: DeviceTensor) -> Launch:
    """Compute sums (N, C) of partial (N, tiles, C)."""
    n, tiles, c = partial.shape
    kernel = compiled_total(device.capability)
    values = {"partial_ptr": partial, "sums_ptr": sums, "channels": c, "tiles": tiles}
    return Launch(
        kernel.load(device),
        grid=(n * -(-c // TOTAL_BLOCK),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, values),
        regions=(partial.region("partial", "r"), sums.region("sums", "w")),
    )


def _unit(dtype: torch.dtype, aligned: bool) -> int:
    return 16 // dtype.itemsize if aligned else 1
