"""pointwise_conv: y = act(W (x * gate) + bias) + residual; or each channel's sum of act(...)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_rows as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import (
    TYPES,
    compile_triton,
    compile_without_spills,
    launch_arguments,
)
from effnet_fast.network import Act
from effnet_fast.triton.activation import activate

__all__ = ["compiled", "launch", "mean", "pack", "tiles"]

MEAN_BLOCK = 128


@triton.jit
def pointwise_conv_kernel(
    x_ptr, weight_ptr, bias_ptr, gate_ptr, residual_ptr, y_ptr, sums_ptr,
    cin, cout, w, pixels,
    x_image_stride, x_row_stride, x_pixel_stride,
    r_image_stride, r_row_stride, r_pixel_stride,
    y_image_stride, y_row_stride, y_pixel_stride,
    ACT: tl.constexpr, has_bias: tl.constexpr, has_gate: tl.constexpr,
    has_residual: tl.constexpr, has_sums: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels of an image times BLOCK_N output channels.

    Channels are adjacent. `cin` and the strides of x are in units of ALIGN_IN elements, `cout` and
    the strides of y and the residual in units of ALIGN_OUT: the compiler sees from the product
    that accesses of so many are aligned.
    The program's number is (image, tile of pixels, tile of channels).
    """
    cin *= ALIGN_IN
    cout *= ALIGN_OUT
    # Channels first: programs that run together share x.
    channel_tiles = tl.cdiv(cout, BLOCK_N)
    tiles = tl.cdiv(pixels, BLOCK_M)
    n_tile = tl.program_id(0) % channel_tiles
    tile = tl.program_id(0) // channel_tiles % tiles
    image = (tl.program_id(0) // channel_tiles // tiles).to(tl.int64)

    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, column = pixel // w, pixel % w
    m_mask = pixel < pixels
    n_offs = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = n_offs < cout
    x_offs = row.to(tl.int64) * (x_row_stride * ALIGN_IN) + column * (x_pixel_stride * ALIGN_IN)
    x_ptr += image * x_image_stride * ALIGN_IN
    if has_gate:
        gate_ptr += image * cin
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(0, cin, BLOCK_K):
        k_offs = first + tl.arange(0, BLOCK_K)
        k_mask = k_offs < cin
        x_ptrs = x_ptr + x_offs[:, None] + k_offs[None, :]
        x = tl.load(x_ptrs, mask=m_mask[:, None] & k_mask[None, :], other=0.0)
        weight_ptrs = weight_ptr + n_offs[None, :].to(tl.int64) * cin + k_offs[:, None]
        weight = tl.load(weight_ptrs, mask=n_mask[None, :] & k_mask[:, None], other=0.0)
        if has_gate:
            gate = tl.load(gate_ptr + k_offs, mask=k_mask, other=0.0).to(tl.float32)
            gated = x.to(tl.float32) * gate[None, :]
            # In half precision as a sum of two, which is exact: products of 11 bits have 22.
            x = gated.to(dtype)
            if dtype != tl.float32:
                rest = (gated - x.to(tl.float32)).to(dtype)
                acc = tl.dot(rest, weight, acc)
        acc = tl.dot(x, weight, acc, input_precision="ieee")
    if has_bias:
        acc += tl.load(bias_ptr + n_offs, mask=n_mask, other=0.0)[None, :]
    out = activate(acc, ACT)
    mask = m_mask[:, None] & n_mask[None, :]
    if has_sums:
        total = tl.sum(tl.where(mask, out, 0.0), axis=0)
        tl.store(sums_ptr + (image * tiles + tile) * cout + n_offs, total, mask=n_mask)
    else:
        if has_residual:
            offs = row.to(tl.int64) * (r_row_stride * ALIGN_OUT)
            offs += column * (r_pixel_stride * ALIGN_OUT)
            residual_ptr += image * r_image_stride * ALIGN_OUT
            ptrs = residual_ptr + offs[:, None] + n_offs[None, :]
            out += tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
        offs = row.to(tl.int64) * (y_row_stride * ALIGN_OUT)
        offs += column * (y_pixel_stride * ALIGN_OUT)
        y_ptrs = y_ptr + image * y_image_stride * ALIGN_OUT + offs[:, None] + n_offs[None, :]
        tl.store(y_ptrs, out.to(dtype), mask=mask)


@triton.jit
def pointwise_conv_mean_kernel(sums_ptr, y_ptr, channels, tiles, scale, BLOCK: tl.constexpr):
    """Compute y [image][channel] = scale times the sum of sums [image][tile][channel]."""
    blocks = tl.cdiv(channels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    offs = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = offs < channels
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in tl.range(tiles):
        total += tl.load(sums_ptr + (image * tiles + tile) * channels + offs, mask=mask, other=0.0)
    out = (total * scale).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + image * channels + offs, out, mask=mask)


# ---- the host side -------------------------------------------------------------------------------

SIZES = ("cin", "cout", "w", "pixels")
STRIDES = tuple(
    f"{tensor}_{of}_stride" for tensor in "xry" for of in ("image", "row", "pixel")
)  # fmt: skip


@dataclass(frozen=True)
class Tiling:
    """Pixels, output channels and input channels of a program at a time, and its warps."""

    m: int
    n: int
    k: int
    warps: int


@dataclass(frozen=True)
class Fusion:
    """What a kernel does besides the product.

    Attributes
    ----------
    aligned_in, aligned_out : whether all pixels of x, and of y and the residual, begin at multiples
        of 16 bytes, and end there.
    """

    act: Act
    has_bias: bool = False
    has_gate: bool = False
    has_residual: bool = False
    has_sums: bool = False
    aligned_in: bool = False
    aligned_out: bool = False


@functools.cache
def compiled(capability: int, dtype: torch.dtype, tiling: Tiling, fusion: Fusion) -> CompiledKernel:
    """The kernel for a type, a tile and what is fused.

    Parameters
    ----------
    capability : int
    dtype : torch.dtype
    tiling : Tiling
    fusion : Fusion
    """
    pointer = "*" + TYPES[dtype]
    pointers = {
        "x_ptr": (pointer, True),
        "weight_ptr": (pointer, True),
        "bias_ptr": ("*fp32", fusion.has_bias),
        "gate_ptr": (pointer, fusion.has_gate),
        "residual_ptr": (pointer, fusion.has_residual),
        "y_ptr": (pointer, not fusion.has_sums),
        "sums_ptr": ("*fp32", fusion.has_sums),
    }
    given = {name: kind for name, (kind, is_given) in pointers.items() if is_given}
    unit = 16 // dtype.itemsize
    divisible = ["x_ptr", "weight_ptr"] if fusion.aligned_in else []
    if fusion.aligned_out:
        divisible += [name for name in ("y_ptr", "residual_ptr") if name in given]
    return compile_without_spills(
        pointwise_conv_kernel,
        given | dict.fromkeys(SIZES, "i32") | dict.fromkeys(STRIDES, "i64"),
        {name: None for name in pointers if name not in given}
        | {
            "ACT": int(fusion.act), "has_bias": fusion.has_bias, "has_gate": fusion.has_gate,
            "has_residual": fusion.has_residual, "has_sums": fusion.has_sums,
            "ALIGN_IN": unit if fusion.aligned_in else 1,
            "ALIGN_OUT": unit if fusion.aligned_out else 1,
            "BLOCK_M": tiling.m, "BLOCK_N": tiling.n, "BLOCK_K": tiling.k,
        },
        capability,
        num_warps=tiling.warps,
        divisible=divisible,
    )  # fmt: skip


@functools.cache
def compiled_mean(capability: int, dtype: torch.dtype) -> CompiledKernel:
    """The kernel that makes means of the sums of tiles."""
    return compile_triton(
        pointwise_conv_mean_kernel,
        {
            "sums_ptr": "*fp32", "y_ptr": "*" + TYPES[dtype], "channels": "i32", "tiles": "i32",
            "scale": "fp32",
        },
        {"BLOCK": MEAN_BLOCK},
        capability,
    )  # fmt: skip


def joins(dtype: torch.dtype, has_sums: bool) -> bool:
    """Whether a launch takes the pixels of a batch for those of one image: never."""
    return False


@functools.lru_cache(4096)
def tiling(
    n: int, pixels: int, cin: int, cout: int, dtype: torch.dtype, multiprocessors: int
) -> Tiling:
    """A tile that wastes little of its products, with two programs for each multiprocessor.

    Parameters
    ----------
    n, pixels, cin, cout : int
        Images, pixels of an image, channels of the input and of the output.
    dtype : torch.dtype
    multiprocessors : int
    """
    wide = dtype == torch.float32  # no matrix units
    # An element of an operand from the L2 cache, in products of the same time: an H100 reads some
    # 5.5 TB/s from there, and does 495 T products a second in float16, 33 T in float32.
    element = 24 if wide else 180

    def cost(m: int, channels: int) -> float:
        """Products of all programs, over the multiprocessors' share."""
        programs = n * -(-pixels // m) * -(-cout // channels)
        return max(programs, 2 * multiprocessors) * (m * channels + element * (m + channels))

    best = min(
        (
            (m, channels)
            for m in (16, 32, 64, 128)
            for channels in (16, 32, 64, 128)
            if not wide or m * channels <= 64 * 32  # or they spill
        ),
        key=lambda tile: (cost(*tile), -tile[0]),
    )
    k = 16 if cin <= 16 else 32 if cin <= 96 or wide else 64
    return Tiling(*best, k, warps=8 if best[0] * best[1] > 128 * 64 else 4)


def tiles(device: Device, x: DeviceTensor, cout: int, cut: Tiling | None = None) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    h, w = x.shape[2:]
    return -(-h * w // (cut or _tiling(device, x, cout)).m)


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor | None,
    act: Act,
    gate: DeviceTensor | None = None,
    residual: DeviceTensor | None = None,
    sums: DeviceTensor | None = None,
    cut: Tiling | None = None,
) -> Launch:
    """Compute y = act(W (x * gate) + bias) + residual, or the sums of act(...) over each tile.

    Parameters
    ----------
    device : Device
    x : DeviceTensor
        (N, C, H, W) with adjacent channels; N at least 1.
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    y : DeviceTensor, optional
        (N, O, H, W) with adjacent channels; None with ``sums``.
    act : Act
    gate : DeviceTensor, optional
        (N, C), contiguous.
    residual : DeviceTensor, optional
        As y.
    sums : DeviceTensor, optional
        (N, tiles, O), float32: :func:`tiles` says how many.
    cut : Tiling, optional
        Other than :func:`tiling`'s.
    """
    n, cin, h, w = x.shape
    weight, bias = packed
    cout = weight.shape[0]
    unit = 16 // x.dtype.itemsize
    maps = {"x": x, "r": residual, "y": y}
    maps = {name: (0, 0, 0) if t is None else t.map_strides for name, t in maps.items()}
    aligned_in = x.address % 16 == weight.address % 16 == 0 and not any(
        size % unit for size in (cin, *maps["x"])
    )
    outputs = [t for t in (y, residual) if t is not None]
    aligned_out = all(t.address % 16 == 0 for t in outputs) and not any(
        size % unit for size in (cout, *maps["r"], *maps["y"])
    )
    fusion = Fusion(
        act, bias is not None, gate is not None, residual is not None, sums is not None,
        aligned_in, aligned_out,
    )  # fmt: skip
    cut = cut or _tiling(device, x, cout)
    kernel = compiled(device.capability, x.dtype, cut, fusion)
    named = {
        "x": x, "weight": weight, "bias": bias, "gate": gate, "residual": residual, "y": y,
        "sums": sums,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    unit_in, unit_out = (unit if is_aligned else 1 for is_aligned in (aligned_in, aligned_out))
    values = {f"{name}_ptr": tensor for name, tensor in given.items()}
    values |= {"cin": cin // unit_in, "cout": cout // unit_out, "w": w, "pixels": h * w}
    for name, strides in maps.items():
        for of, stride in zip(("image", "row", "pixel"), strides, strict=True):
            values[f"{name}_{of}_stride"] = stride // (unit_in if name == "x" else unit_out)
    return Launch(
        kernel.load(device),
        grid=(n * -(-h * w // cut.m) * -(-cout // cut.n),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, values),
        regions=tuple(
            tensor.region(name, "w" if name in ("y", "sums") else "r")
            for name, tensor in given.items()
        ),
    )


def mean(device: Device, sums: DeviceTensor, y: DeviceTensor, pixels: int) -> Launch:
    """Compute y (N, O) = the sum of sums (N, tiles, O) over the tiles, divided by ``pixels``."""
    n, tiles, cout = sums.shape
    kernel = compiled_mean(device.capability, y.dtype)
    values = {
        "sums_ptr": sums, "y_ptr": y, "channels": cout, "tiles": tiles, "scale": 1 / pixels,
    }  # fmt: skip
    return Launch(
        kernel.load(device),
        grid=(n * -(-cout // MEAN_BLOCK),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, values),
        regions=(sums.region("sums", "r"), y.region("y", "w")),
    )


def _tiling(device: Device, x: DeviceTensor, cout: int) -> Tiling:
    n, cin, h, w = x.shape
    return tiling(n, h * w, cin, cout, x.dtype, device.attributes["multiprocessor_count"])
