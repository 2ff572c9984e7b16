"""The host side of csrc/cuda/expand_depthwise.cu: which kernel, which tile, how many blocks."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.epilogue import ROW_BYTES
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu import cost
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_depthwise, pack_rows
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

__all__ = ["Tiling", "can", "can_stem", "launch", "pack", "tiles", "tiling", "tilings"]

PLANE = 16  # channels of a plane
COLUMNS = 7  # outputs of a thread
PIXELS = 16  # of a warp's product
THREADS = 192
# Planes of a block: of an expansion, of a stem.
PLANES, STEM_PLANES = 3, 2
WINDOWS = frozenset({(3, 1), (3, 2), (5, 1), (5, 2)})  # k, stride
STEM_KERNEL = 3
ACTS = (Act.NONE, Act.SWISH, Act.RELU, Act.RELU6)
SHARED = 99 << 10  # bytes of a block, on an sm_86, which has the least


class Arguments(ctypes.Structure):
    """ExpandDepthwise of csrc/cuda/expand_depthwise.h."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("x", "weight", "expand_bias", "constants", "y", "sums")
        ),
        *((name, ctypes.c_int64) for name in ("x_image", "x_channel", "x_row", "x_pixel")),
        *((name, ctypes.c_int64) for name in ("y_image", "y_row", "y_pixel")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "depth", "weight_depth", "channels", "padded_channels", "h", "w", "out_h", "out_w",
                "top", "left", "expand_act", "act",
            )
        ),
        *((name, Divisor) for name in ("chunks", "tiles", "column_tiles")),
        *((name, ctypes.c_int32) for name in ("tile_rows", "tile_columns", "step_rows")),
        *((name, Divisor) for name in ("span", "units", "planes", "ring_rows", "groups")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "input_rows", "ring_pitch", "plane_bytes", "ring_padding",
                "bias_offset", "weight_offset", "input_offset", "ring_offset",
                "image_h", "image_w", "stem_stride_h", "stem_stride_w", "stem_top", "stem_left",
            )
        ),
    ]  # fmt: skip


def pack(
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """The constants of both convolutions.

    Parameters
    ----------
    expand_weight : Tensor
        (M, C, 1, 1), or a stem's (M, C, 3, 3).
    weight : Tensor
        (M, 1, k, k)
    expand_bias, bias : Tensor, optional
        (M,)

    Returns
    -------
    Tensor, Tensor or None, Tensor
        Rows of the first, rounded up to 16 bytes; its bias in float32; what
        :func:`~effnet_fast.gpu.packing.pack_depthwise` makes of the second.
    """
    rows = pack_rows(expand_weight, expand_bias, 16 // expand_weight.dtype.itemsize)
    return (*rows, pack_depthwise(weight, bias))


@dataclass(frozen=True)
class Tiling:
    """How outputs are cut.

    Attributes
    ----------
    rows, columns : of outputs, of a tile.
    step_rows : of the wide map, made at a time.
    """

    rows: int
    columns: int
    step_rows: int


@dataclass(frozen=True)
class Geometry:
    """What follows from a tiling: sizes and places in shared memory, in bytes."""

    span: int
    groups: int
    units: int
    input_rows: int
    ring_rows: int
    plane_bytes: int
    ring_pitch: int
    bias_offset: int
    weight_offset: int
    input_offset: int
    ring_offset: int
    shared: int

    @classmethod
    def of(cls, cut: Tiling, planes: int, k: int, s: int, depth: int, size: int) -> Geometry:
        span = (cut.columns - 1) * s + k
        groups = -(-cut.columns // COLUMNS)
        wide = (groups * COLUMNS - 1) * s + k  # columns that threads read
        # Whole steps of 16 columns of the matrices, in copies of 16 bytes.
        units = -(-depth // 16) * size
        tiles = -(-units * 16 // ROW_BYTES)
        input_rows = -(-cut.step_rows * span // PIXELS) * PIXELS
        ring_rows = min(k - 1 + cut.step_rows, (cut.rows - 1) * s + k)
        plane_bytes = wide * PLANE * size
        bias = planes * (k * k + 2) * PLANE * 4
        weight = -(-(bias + 4 * planes * PLANE) // 128) * 128
        inputs = weight + tiles * planes * PLANE * ROW_BYTES
        ring = inputs + tiles * input_rows * ROW_BYTES
        return cls(
            span, groups, units, input_rows, ring_rows, plane_bytes, planes * plane_bytes,
            bias, weight, inputs, ring, ring + ring_rows * planes * plane_bytes,
        )  # fmt: skip


def can(
    x: DeviceTensor, y: DeviceTensor, channels: int, window: Window, expand_act: Act, act: Act
) -> bool:
    """Whether there is a kernel for an expansion: window, activations, alignment, shared memory."""
    k, s = window.kernel[0], window.stride[0]
    if not _fits(y, channels, window, expand_act, act) or (k, s) not in WINDOWS:
        return False
    size, depth = x.dtype.itemsize, x.shape[1]
    return x.has_aligned_pixels(16) and bool(_tilings(y.shape[2:], PLANES, k, s, depth, size))


def can_stem(
    x: DeviceTensor,
    y: DeviceTensor,
    channels: int,
    stem_window: Window,
    window: Window,
    stem_act: Act,
    act: Act,
) -> bool:
    """Whether there is a kernel for a stem: windows, activations, alignment, shared memory."""
    if not _fits(y, channels, window, stem_act, act) or window.stride != (1, 1):
        return False
    if window.kernel != (3, 3) or stem_window.kernel != (STEM_KERNEL, STEM_KERNEL):
        return False
    depth = x.shape[1] * STEM_KERNEL**2
    return stem_window.dilation == (1, 1) and bool(
        _tilings(y.shape[2:], STEM_PLANES, 3, 1, depth, x.dtype.itemsize)
    )


def _fits(y: DeviceTensor, channels: int, window: Window, first_act: Act, act: Act) -> bool:
    (k, kw), (s, sw) = window.kernel, window.stride
    return (
        k == kw
        and s == sw
        and window.dilation == (1, 1)
        and first_act in ACTS
        and act in ACTS
        and channels % 4 == 0
        and y.has_aligned_pixels(4 * y.dtype.itemsize)
    )


@functools.lru_cache(4096)
def _tilings(
    out: tuple[int, int], planes: int, k: int, s: int, depth: int, size: int
) -> tuple[Tiling, ...]:
    """Those that fit shared memory."""
    out_h, out_w = out
    rows = sorted({-(-out_h // n) for n in (1, 2, 3, 4, 6, 8, 12, 16)})
    columns = sorted({-(-out_w // n) for n in range(1, 13)})
    steps = (1, 2, 3, 4, 6, 8, 12, 16)
    found = (
        Tiling(*cut)
        for cut in itertools.product(rows, columns, steps)
        if cut[2] == 1 or cut[2] <= (cut[0] - 1) * s + k
    )
    return tuple(c for c in found if Geometry.of(c, planes, k, s, depth, size).shared <= SHARED)


def tilings(
    n: int,
    channels: int,
    out: tuple[int, int],
    k: int,
    s: int,
    depth: int,
    size: int,
    multiprocessors: int,
    planes: int = PLANES,
) -> Iterator[tuple[float, Tiling]]:
    """Tilings with their modelled cycles.

    Parameters
    ----------
    n, channels : int
        Images, and channels of the wide map.
    out : (int, int)
        Height and width of y.
    k, s : int
        Of the window.
    depth, size : int
        Products of a wide element, and bytes of one.
    multiprocessors, planes : int
    """
    chunks = -(-channels // (PLANE * planes))
    per_plane = THREADS // 32 // planes * 8  # threads with different outputs
    for cut in _tilings(out, planes, k, s, depth, size):
        g = Geometry.of(cut, planes, k, s, depth, size)
        tiles = -(-out[0] // cut.rows) * -(-out[1] // cut.columns)
        wide_rows = (cut.rows - 1) * s + k
        steps = -(-wide_rows // cut.step_rows)
        # Instructions of warps: of products of 16 pixels, of threads' outputs, of copies.
        wide = planes * PLANE
        product = planes * (2 * 14 + 12) * 2 + 60
        product += -(-depth // 16) * ((8 + 3 * planes) if size == 2 else 190 * planes)
        loads = ((COLUMNS - 1) * s + k) * (1 if size == 4 else 5)
        item = k * (loads + k * (1 + 4 * COLUMNS)) + COLUMNS * 32 + 60
        rounds = -(-max(1, cut.step_rows // s) * g.groups // per_plane)
        count = steps * (
            g.input_rows / PIXELS * product
            + rounds * THREADS / 32 * item
            + g.input_rows * g.units / 32 * 36
            + 600
        )
        elements = steps * g.input_rows * wide + cut.rows * cut.columns * wide
        # Blocks beside it hide what a block waits for, at its barriers and copies.
        resident = min(3, (227 << 10) // (g.shared + 1024))
        warps = THREADS / 32
        rests = steps * (800 + -(-g.input_rows // PIXELS // warps) * product * 4)
        yield (
            cost.cycles(
                n * tiles * chunks,
                multiprocessors,
                (count + 2500) * (1.25 if resident < 2 else 1.0),
                special=cost.SWISH_SPECIAL * elements,
                products=steps * g.input_rows * wide * depth if size == 2 else 0,
                l2_bytes=(wide_rows * g.span + wide) * depth * size,
                alone=rests + 2000,
            ),
            cut,
        )


@functools.lru_cache(4096)
def tiling(
    n: int,
    channels: int,
    out: tuple[int, int],
    k: int,
    s: int,
    depth: int,
    size: int,
    multiprocessors: int,
    planes: int = PLANES,
) -> Tiling:
    """The tiling that the model prefers; arguments as of :func:`tilings`."""
    found = tilings(n, channels, out, k, s, depth, size, multiprocessors, planes)
    return min(found, key=lambda pair: pair[0])[1]


def tiles(
    device: Device,
    x: DeviceTensor,
    channels: int,
    out: tuple[int, int],
    window: Window,
    stem: Window | None = None,
    cut: Tiling | None = None,
) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    cut = cut or _tiling(device, x, channels, out, window, stem)
    return -(-out[0] // cut.rows) * -(-out[1] // cut.columns)


def _tiling(
    device: Device,
    x: DeviceTensor,
    channels: int,
    out: tuple[int, int],
    window: Window,
    stem: Window | None,
) -> Tiling:
    depth = x.shape[1] * (1 if stem is None else STEM_KERNEL**2)
    return tiling(
        x.shape[0], channels, tuple(out), window.kernel[0], window.stride[0], depth,
        x.dtype.itemsize, device.attributes["multiprocessor_count"],
        PLANES if stem is None else STEM_PLANES,
    )  # fmt: skip


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor,
    window: Window,
    expand_act: Act,
    act: Act,
    sums: DeviceTensor | None = None,
    stem: Window | None = None,
    cut: Tiling | None = None,
) -> Launch:
    """Compute y = act(depthwise(wide) + bias) of wide = expand_act(W x + bias).

    Parameters
    ----------
    device : Device
    x : DeviceTensor
        (N, C, H, W) with adjacent channels, or of any strides with a stem; N at least 1.
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    y : DeviceTensor
        (N, M, H', W') with adjacent channels.
    window : Window
        Of the depthwise convolution, with its padding.
    expand_act, act : Act
    sums : DeviceTensor, optional
        (N, tiles, M), float32: :func:`tiles` says how many.
    stem : Window, optional
        Of the stem, with its padding, where that is what makes the wide map.
    cut : Tiling, optional
        Other than :func:`tiling`'s.
    """
    weight, expand_bias, constants = packed
    n, _, image_h, image_w = x.shape
    _, channels, out_h, out_w = y.shape
    (k, _), (s, _) = window.kernel, window.stride
    cut = cut or _tiling(device, x, channels, (out_h, out_w), window, stem)
    planes, depth = PLANES, x.shape[1]
    h, w = image_h, image_w
    if stem is not None:
        planes, depth = STEM_PLANES, depth * STEM_KERNEL**2
        h, w = stem.output_size(image_h, image_w)
    g = Geometry.of(cut, planes, k, s, depth, x.dtype.itemsize)
    chunks = -(-channels // (PLANE * planes))
    row_tiles, column_tiles = -(-out_h // cut.rows), -(-out_w // cut.columns)
    arguments = Arguments(
        depth=depth, weight_depth=weight.shape[1],
        channels=channels, padded_channels=constants.shape[1],
        h=h, w=w, out_h=out_h, out_w=out_w, top=window.padding[0], left=window.padding[1],
        expand_act=expand_act, act=act,
        chunks=Divisor.of(chunks), tiles=Divisor.of(row_tiles * column_tiles),
        column_tiles=Divisor.of(column_tiles),
        tile_rows=cut.rows, tile_columns=cut.columns, step_rows=cut.step_rows,
        span=Divisor.of(g.span), units=Divisor.of(g.units), planes=Divisor.of(planes),
        ring_rows=Divisor.of(g.ring_rows), groups=Divisor.of(g.groups),
        input_rows=g.input_rows, ring_pitch=g.ring_pitch, plane_bytes=g.plane_bytes,
        ring_padding=cut.columns % COLUMNS != 0,
        bias_offset=g.bias_offset, weight_offset=g.weight_offset,
        input_offset=g.input_offset, ring_offset=g.ring_offset,
    )  # fmt: skip
    arguments.x_image, arguments.x_channel, arguments.x_row, arguments.x_pixel = x.strides
    arguments.y_image, arguments.y_row, arguments.y_pixel = y.map_strides
    if stem is not None:
        arguments.image_h, arguments.image_w = image_h, image_w
        arguments.stem_stride_h, arguments.stem_stride_w = stem.stride
        arguments.stem_top, arguments.stem_left = stem.padding[:2]
    named = {
        "x": x, "weight": weight, "expand_bias": expand_bias, "constants": constants, "y": y,
        "sums": sums,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    for name, tensor in given.items():
        setattr(arguments, name, tensor.address)
    name = f"expand_depthwise_k{k}s{s}" if stem is None else "stem_depthwise_k3s1"
    return Launch(
        kernel(device, "expand_depthwise", f"{name}_{suffix(x.dtype)}"),
        grid=(n * row_tiles * column_tiles * chunks,),
        block=(THREADS,),
        shared=g.shared,
        arguments=(arguments,),
        regions=tuple(
            tensor.region(name, "w" if name in ("y", "sums") else "r")
            for name, tensor in given.items()
        ),
        alive=tuple(given.values()),
    )
