"""The host side of csrc/cuda/fused_mbconv.cu: which kernel, which tile, how many blocks."""

from __future__ import annotations

import ctypes
import functools

import torch

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.epilogue import Epilogue, address
from effnet_fast.cuda.gemm import ROW_BYTES, stages_bytes, sums_bytes, threads
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.cuda.pointwise_conv import Tiling, cycles
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_windows
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

__all__ = ["launch", "modelled", "pack", "projects", "tiling"]

VARIANTS = (Tiling(128, 64), Tiling(64, 64))
# With a projection: all of its channels are a block's.
PROJECTIONS = (Tiling(128, 64), Tiling(128, 128))
PROJECT_THREADS = 256


class Arguments(ctypes.Structure):
    """FusedMbconv of csrc/cuda/fused_mbconv.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("x", "weight", "bias", "project")),
        ("x_image", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("x_row", "x_pixel")),
        *((name, ctypes.c_int32) for name in ("cin", "depth", "mid", "project_depth", "pixels")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "h", "w", "stride_h", "stride_w", "dilation_h", "dilation_w", "top", "left", "act",
            )
        ),
        *(
            (name, Divisor)
            for name in ("tap_depth", "kernel_columns", "out_columns", "channel_tiles", "tiles")
        ),
        ("out", Epilogue),
    ]  # fmt: skip


def pack(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    project_weight: torch.Tensor | None = None,
    project_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """The constants: of taps and of rows, rounded up to 16 bytes, and biases in float32.

    Parameters
    ----------
    weight : Tensor
        (M, C, kh, kw)
    project_weight : Tensor, optional
        (P, M, 1, 1)
    bias, project_bias : Tensor, optional
        (M,) and (P,)
    """
    return pack_windows(weight, bias, project_weight, project_bias, 16 // weight.dtype.itemsize)


def projects(cout: int) -> bool:
    """Whether there is a kernel for a projection to so many channels."""
    return cout <= PROJECTIONS[-1].n


def tiling(
    images: int, pixels: int, depth: int, channels: int, dtype: torch.dtype, multiprocessors: int
) -> Tiling:
    """Of a convolution without a projection, as of
    :func:`~effnet_fast.cuda.pointwise_conv.tiling`.
    """
    arguments = (images, pixels, depth, channels, dtype, multiprocessors)
    return min(VARIANTS, key=lambda cut: cycles(cut.m, cut.n, *arguments))


@functools.lru_cache(4096)
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
    arguments = (images, pixels, depth, mid, dtype, multiprocessors)
    if cout is None:
        cut = tiling(*arguments)
        return cycles(cut.m, cut.n, *arguments)
    cut = PROJECTIONS[0 if cout <= PROJECTIONS[0].n else 1]
    blocks = images * -(-pixels // cut.m)
    wide = ROW_BYTES // dtype.itemsize
    chunks = -(-mid // wide)
    # One block after the other of a multiprocessor, each chunk as a launch of its own would be.
    first = cycles(cut.m, wide, 1, cut.m, depth, wide, dtype, 1)
    second = cycles(cut.m, cut.n, 1, cut.m, wide, cut.n, dtype, 1)
    return -(-blocks // multiprocessors) * chunks * (first + second) / 2


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor,
    window: Window,
    act: Act,
    project_act: Act = Act.NONE,
    residual: DeviceTensor | None = None,
    cut: Tiling | None = None,
) -> Launch:
    """Compute y = act(conv(x) + bias) + residual, or with a projection of act(conv(x) + bias).

    Parameters
    ----------
    device : Device
    x : DeviceTensor
        (N, C, H, W) with adjacent channels, pixels aligned to 16 bytes; N at least 1.
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    y : DeviceTensor
        (N, O, H', W') with adjacent channels; with a projection O is at most 128.
    window : Window
        With its padding.
    act, project_act : Act
    residual : DeviceTensor, optional
        As y.
    cut : Tiling, optional
        Of one product, other than :func:`tiling`'s.
    """
    weight, bias, project, project_bias = packed
    n, cin, h, w = x.shape
    _, cout, out_h, out_w = y.shape
    assert x.has_aligned_pixels(16)
    size, pixels, taps = x.dtype.itemsize, out_h * out_w, window.kernel[0] * window.kernel[1]
    mid, depth = weight.shape
    if project is None:
        cut = cut or tiling(
            n, pixels, depth, cout, x.dtype, device.attributes["multiprocessor_count"]
        )
        name = f"fused_mbconv_{cut.m}x{cut.n}"
        shared = max(stages_bytes(cut.m + cut.n, depth, size), sums_bytes(cut.m, cut.n))
        out = Epilogue.of(cout, act, bias, y, residual, columns=out_w)
        block = threads(cut.m, cut.n, size)
        channel_tiles = -(-cout // cut.n)
    else:
        cut = PROJECTIONS[0 if cout <= PROJECTIONS[0].n else 1]
        name = f"fused_mbconv_project_{cut.m}x{cut.n}"
        wide = ROW_BYTES // size
        tiles = max(2 * (cut.m + wide) * ROW_BYTES, sums_bytes(cut.m, wide))
        shared = max(tiles + (cut.m + cut.n) * ROW_BYTES, sums_bytes(cut.m, cut.n))
        out = Epilogue.of(cout, project_act, project_bias, y, residual, columns=out_w)
        block = PROJECT_THREADS
        channel_tiles = 1
    image, row, pixel = x.map_strides
    blocks = -(-pixels // cut.m)
    arguments = Arguments(
        x=x.address, weight=weight.address, bias=address(bias), project=address(project),
        x_image=image, x_row=row, x_pixel=pixel,
        cin=cin, depth=depth, mid=mid, pixels=pixels,
        project_depth=0 if project is None else project.shape[1],
        h=h, w=w, stride_h=window.stride[0], stride_w=window.stride[1],
        dilation_h=window.dilation[0], dilation_w=window.dilation[1],
        top=window.padding[0], left=window.padding[1], act=act,
        tap_depth=Divisor.of(depth // taps), kernel_columns=Divisor.of(window.kernel[1]),
        out_columns=Divisor.of(out_w),
        channel_tiles=Divisor.of(channel_tiles), tiles=Divisor.of(blocks), out=out,
    )  # fmt: skip
    named = {
        "x": x, "weight": weight, "bias": bias, "project": project, "project_bias": project_bias,
        "residual": residual, "y": y,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    return Launch(
        kernel(device, "fused_mbconv", f"{name}_{suffix(x.dtype)}"),
        grid=(n * blocks * channel_tiles,),
        block=(block,),
        shared=shared,
        arguments=(arguments,),
        regions=tuple(t.region(name, "w" if t is y else "r") for name, t in given.items()),
        alive=tuple(given.values()),
    )
