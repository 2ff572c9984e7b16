"""fused_mbconv: y = act(conv(x) + bias) + residual, or with a projection of act(conv(x) + bias)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from effnet_fast.cuda.pointwise_conv import cycles
from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_windows
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import TYPES, compile_without_spills, launch_arguments
from effnet_fast.network import Act, Window
from effnet_fast.triton.activation import activate

__all__ = ["compiled", "launch", "modelled", "pack", "projects"]

PROJECT_CHANNELS = 128  # of a projection, at most


@triton.jit
def fused_mbconv_kernel(
    x_ptr, weight_ptr, bias_ptr, project_ptr, project_bias_ptr, residual_ptr, y_ptr,
    cin, mid, cout, h, w, out_w, pixels, top, left,
    x_image_stride, x_row_stride, x_pixel_stride,
    r_image_stride, r_row_stride, r_pixel_stride,
    y_image_stride, y_row_stride, y_pixel_stride,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ACT: tl.constexpr, PROJECT_ACT: tl.constexpr, has_bias: tl.constexpr,
    has_project: tl.constexpr, has_project_bias: tl.constexpr, has_residual: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_MID: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels of an image times BLOCK_N output channels; with a projection times all.

    Weights are [mid][row][column][cin]. `cin` and the strides of x are in units of ALIGN_IN
    elements, `cout`, `mid` and the strides of y and the residual in units of ALIGN_OUT.
    The program's number is (image, tile of pixels, tile of channels).
    """
    cin *= ALIGN_IN
    cout *= ALIGN_OUT
    mid *= ALIGN_OUT
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
    x_ptr += image * x_image_stride * ALIGN_IN
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if has_project:
        begin, end = 0, mid
    else:
        begin, end = n_tile * BLOCK_MID, n_tile * BLOCK_MID + 1
    for first_mid in tl.range(begin, end, BLOCK_MID):
        mid_offs = first_mid + tl.arange(0, BLOCK_MID)
        mid_mask = mid_offs < mid
        acc = tl.zeros((BLOCK_M, BLOCK_MID), tl.float32)
        for tap in tl.range(KH * KW):
            y = first_y + tap // KW * DILATION_H
            x = first_x + tap % KW * DILATION_W
            inside = m_mask & (y >= 0) & (y < h) & (x >= 0) & (x < w)
            offs = y.to(tl.int64) * (x_row_stride * ALIGN_IN) + x * (x_pixel_stride * ALIGN_IN)
            rows = (mid_offs.to(tl.int64) * (KH * KW) + tap) * cin
            for first in tl.range(0, cin, BLOCK_K):
                k_offs = first + tl.arange(0, BLOCK_K)
                k_mask = k_offs < cin
                x_ptrs = x_ptr + offs[:, None] + k_offs[None, :]
                value = tl.load(x_ptrs, mask=inside[:, None] & k_mask[None, :], other=0.0)
                weight_ptrs = weight_ptr + rows[None, :] + k_offs[:, None]
                weight = tl.load(weight_ptrs, mask=mid_mask[None, :] & k_mask[:, None], other=0.0)
                acc = tl.dot(value, weight, acc, input_precision="ieee")
        if has_bias:
            acc += tl.load(bias_ptr + mid_offs, mask=mid_mask, other=0.0)[None, :]
        acc = activate(acc, ACT)
        if has_project:
            wide = tl.where(mid_mask[None, :], acc, 0.0).to(dtype)
            ptrs = project_ptr + n_offs[None, :].to(tl.int64) * mid + mid_offs[:, None]
            weight = tl.load(ptrs, mask=n_mask[None, :] & mid_mask[:, None], other=0.0)
            out = tl.dot(wide, weight, out, input_precision="ieee")
        else:
            out = acc
    if has_project:
        if has_project_bias:
            out += tl.load(project_bias_ptr + n_offs, mask=n_mask, other=0.0)[None, :]
        out = activate(out, PROJECT_ACT)
    mask = m_mask[:, None] & n_mask[None, :]
    if has_residual:
        offs = row.to(tl.int64) * (r_row_stride * ALIGN_OUT) + column * (r_pixel_stride * ALIGN_OUT)
        ptrs = residual_ptr + image * r_image_stride * ALIGN_OUT + offs[:, None] + n_offs[None, :]
        out += tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    offs = row.to(tl.int64) * (y_row_stride * ALIGN_OUT) + column * (y_pixel_stride * ALIGN_OUT)
    y_ptrs = y_ptr + image * y_image_stride * ALIGN_OUT + offs[:, None] + n_offs[None, :]
    tl.store(y_ptrs, out.to(dtype), mask=mask)


# ---- the host side -------------------------------------------------------------------------------

SIZES = ("cin", "mid", "cout", "h", "w", "out_w", "pixels", "top", "left")
STRIDES = tuple(f"{tensor}_{of}_stride" for tensor in "xry" for of in ("image", "row", "pixel"))


def pack(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    project_weight: torch.Tensor | None = None,
    project_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """The constants, arguments as of :func:`effnet_fast.cuda.fused_mbconv.pack`."""
    return pack_windows(weight, bias, project_weight, project_bias)


def projects(cout: int) -> bool:
    """Whether there is a kernel for a projection to so many channels."""
    return cout <= PROJECT_CHANNELS


@dataclass(frozen=True)
class Fusion:
    """What a kernel does besides the product.

    Attributes
    ----------
    aligned_in, aligned_out : whether all pixels of x, and of y and the residual, begin at multiples
        of 16 bytes, and end there.
    """

    act: Act
    has_bias: bool
    project_act: Act | None = None
    has_project_bias: bool = False
    has_residual: bool = False
    aligned_in: bool = False
    aligned_out: bool = False


@functools.cache
def compiled(
    capability: int,
    dtype: torch.dtype,
    window: tuple[tuple[int, int], ...],
    tiling: tuple[int, int, int, int],
    fusion: Fusion,
) -> CompiledKernel:
    """The kernel for a type, a window, a tile and what is fused.

    Parameters
    ----------
    capability : int
    dtype : torch.dtype
    window : (int, int), (int, int), (int, int)
        Kernel, stride, dilation.
    tiling : (int, int, int, int)
        Pixels, wide channels, output channels, input channels.
    fusion : Fusion
    """
    pointer = "*" + TYPES[dtype]
    projects = fusion.project_act is not None
    pointers = {
        "x_ptr": (pointer, True),
        "weight_ptr": (pointer, True),
        "bias_ptr": ("*fp32", fusion.has_bias),
        "project_ptr": (pointer, projects),
        "project_bias_ptr": ("*fp32", fusion.has_project_bias),
        "residual_ptr": (pointer, fusion.has_residual),
        "y_ptr": (pointer, True),
    }
    given = {name: kind for name, (kind, is_given) in pointers.items() if is_given}
    unit = 16 // dtype.itemsize
    divisible = ["x_ptr", "weight_ptr"] if fusion.aligned_in else []
    if fusion.aligned_out:
        divisible += [n for n in ("y_ptr", "residual_ptr", "project_ptr") if n in given]
    (kh, kw), (sh, sw), (dh, dw) = window
    m, mid, n, k = tiling
    return compile_without_spills(
        fused_mbconv_kernel,
        given | dict.fromkeys(SIZES, "i32") | dict.fromkeys(STRIDES, "i64"),
        {name: None for name in pointers if name not in given}
        | {
            "KH": kh, "KW": kw, "STRIDE_H": sh, "STRIDE_W": sw, "DILATION_H": dh, "DILATION_W": dw,
            "ACT": int(fusion.act), "PROJECT_ACT": int(fusion.project_act or 0),
            "has_bias": fusion.has_bias, "has_project": projects,
            "has_project_bias": fusion.has_project_bias, "has_residual": fusion.has_residual,
            "ALIGN_IN": unit if fusion.aligned_in else 1,
            "ALIGN_OUT": unit if fusion.aligned_out else 1,
            "BLOCK_M": m, "BLOCK_MID": mid, "BLOCK_N": n, "BLOCK_K": k,
        },
        capability,
        divisible=divisible,
    )  # fmt: skip


def tiling(cin: int, cout: int, projects: bool, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Pixels, wide channels, output channels and input channels of a program at a time."""
    k = 16 if cin <= 16 else 32
    if not projects:
        return (32, 32, 32, k) if dtype.itemsize == 4 else (64, 64, 64, k)
    n = max(16, 1 << (cout - 1).bit_length())
    if dtype.itemsize == 4:
        return 16, 32, n, k
    return 64, 32, n, k


def modelled(
    images: int,
    pixels: int,
    depth: int,
    mid: int,
    cout: int | None,
    dtype: torch.dtype,
    multiprocessors: int,
) -> float:
    """Cycles of a launch, modelled; ``cout`` of the projection."""
    total = cycles(64, 64, images, pixels, depth, mid, dtype, multiprocessors)
    if cout is not None:
        total += cycles(64, 64, images, pixels, mid, cout, dtype, multiprocessors)
    return total


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor,
    window: Window,
    act: Act,
    project_act: Act = Act.NONE,
    residual: DeviceTensor | None = None,
) -> Launch:
    """Compute y = act(conv(x) + bias) + residual, or with a projection of act(conv(x) + bias).

    Parameters
    ----------
    device : Device
    x : DeviceTensor
        (N, C, H, W) with adjacent channels; N at least 1.
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    y : DeviceTensor
        (N, O, H', W') with adjacent channels; with a projection O is at most 128.
    window : Window
        With its padding.
    act, project_act : Act
    residual : DeviceTensor, optional
        As y.
    """
    weight, bias, project, project_bias = packed
    n, cin, h, w = x.shape
    _, cout, out_h, out_w = y.shape
    mid, unit = weight.shape[0], 16 // x.dtype.itemsize
    maps = {"x": x, "r": residual, "y": y}
    maps = {name: (0, 0, 0) if t is None else t.map_strides for name, t in maps.items()}
    aligned_in = x.address % 16 == weight.address % 16 == 0 and not any(
        size % unit for size in (cin, *maps["x"])
    )
    others = [t for t in (y, residual, project) if t is not None]
    aligned_out = all(t.address % 16 == 0 for t in others) and not any(
        size % unit for size in (mid, cout, *maps["r"], *maps["y"])
    )
    fusion = Fusion(
        act, bias is not None, None if project is None else project_act,
        project_bias is not None, residual is not None, aligned_in, aligned_out,
    )  # fmt: skip
    cut = tiling(cin, cout, project is not None, x.dtype)
    shape = (window.kernel, window.stride, window.dilation)
    kernel = compiled(device.capability, x.dtype, shape, cut, fusion)
    named = {
        "x": x, "weight": weight, "bias": bias, "project": project, "project_bias": project_bias,
        "residual": residual, "y": y,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    unit_in, unit_out = (unit if is_aligned else 1 for is_aligned in (aligned_in, aligned_out))
    values = {f"{name}_ptr": tensor for name, tensor in given.items()}
    pixels = out_h * out_w
    sizes = (
        cin // unit_in, mid // unit_out, cout // unit_out, h, w, out_w, pixels, *window.padding[:2],
    )  # fmt: skip
    values |= dict(zip(SIZES, sizes, strict=True))
    for name, strides in maps.items():
        for of, stride in zip(("image", "row", "pixel"), strides, strict=True):
            values[f"{name}_{of}_stride"] = stride // (unit_in if name == "x" else unit_out)
    return Launch(
        kernel.load(device),
        grid=(n * -(-pixels // cut[0]) * -(-cout // cut[2]),),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, values),
        regions=tuple(t.region(name, "w" if t is y else "r") for name, t in given.items()),
    )
