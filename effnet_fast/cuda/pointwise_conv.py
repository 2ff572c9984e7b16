"""The host side of csrc/cuda/pointwise_conv.cu: which tile, how many blocks."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np
import torch

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.epilogue import Epilogue, address
from effnet_fast.cuda.gemm import ROW_BYTES, stages_bytes, sums_bytes, threads
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.cuda.squeeze_excite import Arguments as ExciteArguments
from effnet_fast.cuda.squeeze_excite import Excitation, latency, shared_bytes
from effnet_fast.gpu import cost
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_rows
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act

__all__ = [
    "EXCITED", "Tiling", "cycles", "images_of_tile", "joins", "launch", "mean", "pack", "tiles",
    "tiling", "variants",
]  # fmt: skip

MEAN_THREADS = 128
MOST_PIXELS = 1 << 30  # of a map
SHARED = 99 << 10  # bytes of a block, on an sm_86, which has the least


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """A pointwise convolution's constants.

    Parameters
    ----------
    weight : Tensor
        (O, C), or with a trailing 1 x 1.
    bias : Tensor, optional
        (O,)

    Returns
    -------
    Tensor
        (O, C rounded up to 16 bytes), contiguous, zeros from C on.
    Tensor or None
        (O,), float32.
    """
    return pack_rows(weight, bias, 16 // weight.dtype.itemsize)


@dataclass(frozen=True)
class Tiling:
    """Pixels and output channels of a block, and its warps along columns of the weights."""

    m: int
    n: int
    split: int = 1


# The tile of the kernel that makes its gate.
EXCITED = Tiling(32, 32, 4)


def variants(dtype: torch.dtype) -> tuple[Tiling, ...]:
    """The tiles that there are."""
    sizes = [(128, 32), (128, 64), (64, 64), (64, 128), (128, 128)]
    if dtype.itemsize == 2:
        sizes.append((128, 96))
    return (*(Tiling(m, n) for m, n in sizes), Tiling(32, 32, 4))


class Arguments(ctypes.Structure):
    """PointwiseConv of csrc/cuda/pointwise_conv.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("x", "weight", "gate")),
        ("x_image", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("x_row", "x_pixel")),
        *(
            (name, ctypes.c_int32)
            for name in ("cin", "weight_depth", "pixels", "images", "half_rows")
        ),
        *((name, Divisor) for name in ("channel_tiles", "tiles", "gate_pixels")),
        *((name, ctypes.c_int32) for name in ("gate_offset", "x_is_aligned")),
        ("out", Epilogue),
    ]


class ExcitedArguments(ctypes.Structure):
    """ExcitedPointwiseConv of csrc/cuda/pointwise_conv.h."""

    _fields_ = [("conv", Arguments), ("gate", ExciteArguments)]


def cycles(
    m: int,
    n: int,
    images: int,
    pixels: int,
    cin: int,
    cout: int,
    dtype: torch.dtype,
    multiprocessors: int,
    gated: bool = False,
    pooled: bool = False,
    squeezed: int = 0,
) -> float:
    """What a launch with tiles of m pixels x n channels takes, modelled: of an H100's clock.

    Parameters
    ----------
    m, n : int
    images, pixels, cin, cout : int
        Images, pixels of an image, channels of the input and of the output.
    dtype : torch.dtype
    multiprocessors : int
    gated, pooled : bool
        Whether x is gated; whether y is made into sums.
    squeezed : int
        Channels between the two layers of what makes the gate, if blocks do that themselves.
    """
    size, half = dtype.itemsize, dtype.itemsize == 2
    of_block = images_of_tile(m, images, pixels, dtype, gated) if pooled else 1
    blocks = -(-images // of_block) * -(-pixels // m) * -(-cout // n)
    steps, tiles = -(-cin // 16), -(-cin * size // ROW_BYTES)
    split = 4 if m * n == 1024 else 1
    warps = threads(m, n, size, split) // 32
    # Of a warp: once; for each tile of columns; for each 16 columns; for each four outputs.
    if half:
        own = min(n, 64)
        step = 18 + 0.7 * own + (28 + 0.25 * own if gated else 0)
    else:
        step = 1100 + (256 if gated else 0)
    instructions = 350 + 100 * tiles + step * steps / split + 45 * m * n / 128 / warps
    excited = 2 * cin * squeezed
    alone = 2000 + 500 * tiles / split
    if squeezed:
        instructions += 100 + 20 * excited / 128 / warps
        alone += latency(cin, squeezed, dtype, 32 * warps)
    return cost.cycles(
        blocks,
        multiprocessors,
        warps * instructions,
        special=cost.SWISH_SPECIAL * m * n,
        products=m * n * 16 * steps * (1 + gated) if half else 0,
        l2_bytes=((m + n) * cin + excited) * size,
        alone=alone,
    )


@functools.lru_cache(4096)
def tiling(
    images: int,
    pixels: int,
    cin: int,
    cout: int,
    dtype: torch.dtype,
    multiprocessors: int,
    gated: bool = False,
    pooled: bool = False,
) -> Tiling:
    """The tile with the fewest modelled cycles; arguments as of :func:`cycles`."""
    arguments = (images, pixels, cin, cout, dtype, multiprocessors, gated, pooled)
    return min(variants(dtype), key=lambda cut: (cycles(cut.m, cut.n, *arguments), cut.m * cut.n))


def joins(dtype: torch.dtype, has_sums: bool) -> bool:
    """Whether a launch takes the pixels of a batch for those of one image, if they lie so: else the
    last tile of each image is not full.
    """
    return dtype.itemsize == 2 and not has_sums


def images_of_tile(m: int, images: int, pixels: int, dtype: torch.dtype, gated: bool) -> int:
    """Whose sums a tile of m pixels makes: of two that have half as many at most, and no gates."""
    two = dtype.itemsize == 2 and m == 128 and 2 * pixels <= m and images > 1 and not gated
    return 2 if two else 1


def tiles(device: Device, x: DeviceTensor, cout: int, cut: Tiling | None = None) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    h, w = x.shape[2:]
    return -(-h * w // (cut or _tiling(device, x, cout, True)).m)


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor | None,
    act: Act,
    gate: DeviceTensor | Excitation | None = None,
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
    gate : DeviceTensor or Excitation, optional
        (N, C), contiguous; or what it is made of, for tiles of ``EXCITED``.
    residual : DeviceTensor, optional
        As y.
    sums : DeviceTensor, optional
        (N, tiles, O), float32: :func:`tiles` says how many.
    cut : Tiling, optional
        Other than :func:`tiling`'s.
    """
    n, cin, h, w = x.shape
    weight, bias = packed
    cout, depth = weight.shape
    size = x.dtype.itemsize
    excited = gate if isinstance(gate, Excitation) else None
    cut = cut or (EXCITED if excited else _tiling(device, x, cout, sums is not None))
    pixels = h * w
    # Rows that follow each other without a gap are one, and so are images, but for sums.
    strides = [t.map_strides for t in (x, residual, y) if t is not None]
    joined = h == 1 or all(row == w * pixel for _, row, pixel in strides)
    gate_offset = max(stages_bytes(cut.m + cut.n, cin, size), sums_bytes(cut.m, cut.n))
    if excited:
        gate_offset = max(gate_offset, -(-shared_bytes(1, cin, excited.squeezed) // 16) * 16)
    padded = -(-cin * size // ROW_BYTES) * ROW_BYTES
    own, gates = pixels, 0 if gate is None else 1  # of an image; images of a block's pixels
    can_join = joins(x.dtype, sums is not None) and not excited
    if can_join and n * pixels < MOST_PIXELS and n > 1:
        several = gates * min((cut.m - 2) // own + 2, n)
        adjacent = joined and all(image == pixels * pixel for image, _, pixel in strides)
        if adjacent and gate_offset + several * padded <= SHARED:
            n, pixels, gates = 1, n * pixels, several
    of_tile = 1
    if sums is not None:
        of_tile = images_of_tile(cut.m, n, pixels, x.dtype, gate is not None)
    blocks = (-(-pixels // cut.m), -(-cout // cut.n))
    image, row, pixel = x.map_strides
    arguments = Arguments(
        x=x.address, weight=weight.address, gate=0 if excited else address(gate),
        x_image=image, x_row=row, x_pixel=pixel,
        cin=cin, weight_depth=depth, pixels=pixels, images=n, half_rows=cut.m // of_tile,
        channel_tiles=Divisor.of(blocks[1]), tiles=Divisor.of(blocks[0]),
        gate_pixels=Divisor.of(own), gate_offset=gate_offset, x_is_aligned=x.has_aligned_pixels(16),
        out=Epilogue.of(cout, act, bias, y, residual, sums, pixels if joined else w),
    )  # fmt: skip
    named = {
        "x": x, "weight": weight, "bias": bias, "gate": None if excited else gate,
        "residual": residual, "y": y, "sums": sums,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    gating = "" if gate is None else "_excited" if excited else "_gated"
    if excited:
        arguments = ExcitedArguments(arguments, excited.arguments())
        given |= {f"gate's {name}": tensor for name, tensor in excited.reads().items()}
    return Launch(
        kernel(
            device, "pointwise_conv", f"pointwise_conv{gating}_{cut.m}x{cut.n}_{suffix(x.dtype)}"
        ),
        grid=(-(-n // of_tile) * blocks[0] * blocks[1],),
        block=(threads(cut.m, cut.n, size, cut.split),),
        shared=gate_offset + gates * padded,
        arguments=(arguments,),
        regions=tuple(
            tensor.region(name, "w" if name in ("y", "sums") else "r")
            for name, tensor in given.items()
        ),
        alive=tuple(given.values()),
    )


def mean(device: Device, sums: DeviceTensor, y: DeviceTensor, pixels: int) -> Launch:
    """Compute y (N, O) = the sum of sums (N, tiles, O) over the tiles, divided by ``pixels``."""
    n, tiles, cout = sums.shape
    return Launch(
        kernel(device, "pointwise_conv", f"pointwise_conv_mean_{suffix(y.dtype)}"),
        grid=(-(-n * cout // MEAN_THREADS),),
        block=(MEAN_THREADS,),
        arguments=(
            sums, y, np.int64(n * cout), np.int32(cout), np.int32(tiles), np.float32(1 / pixels),
        ),
        regions=(sums.region("sums", "r"), y.region("y", "w")),
    )  # fmt: skip


def _tiling(device: Device, x: DeviceTensor, cout: int, has_sums: bool) -> Tiling:
    n, cin, h, w = x.shape
    images, pixels = (1, n * h * w) if joins(x.dtype, has_sums) else (n, h * w)
    multiprocessors = device.attributes["multiprocessor_count"]
    return tiling(images, pixels, cin, cout, x.dtype, multiprocessors, pooled=has_sums)
