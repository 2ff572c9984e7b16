"""The host side of csrc/cuda/expand_depthwise.cu: which kernel, which tile, how many blocks."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.gemm import ROW_BYTES
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu import cost
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_depthwise, pack_rows
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

__all__ = ["Problem", "Tiling", "can", "launch", "pack", "tile_count", "tiling", "tilings"]

PLANE = 16  # channels of a plane
COLUMNS = 7  # outputs of a thread
PIXELS = 16  # of a warp's product
THREADS = 192
# Planes of a block: of an expansion, of a stem.
PLANES, STEM_PLANES = (3, 6), (2,)
WINDOWS = ((3, 1), (3, 2), (5, 1), (5, 2))  # k, stride
STEM_KERNEL, STEM_STRIDE = 3, 2
ACTS = (Act.NONE, Act.SWISH, Act.RELU, Act.RELU6)
SHARED = 99 << 10  # bytes of a block, on an sm_86, which has the least


class Arguments(ctypes.Structure):
    """ExpandDepthwise of csrc/cuda/expand_depthwise.h."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("x", "weight", "expand_bias", "constants", "y", "sums")
        ),
        *((name, ctypes.c_int64) for name in ("x_image", "x_channel", "y_image")),
        *((name, ctypes.c_int32) for name in ("x_row", "x_pixel", "y_row", "y_pixel")),
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
                "input_rows", "room", "ring_columns", "ring_pitch", "plane_bytes",
                "bias_offset", "weight_offset", "input_offset", "ring_offset",
                "channels_in", "image_h", "image_w", "stem_top", "stem_left",
            )
        ),
        *((name, Divisor) for name in ("image_units", "image_rows")),
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
    if expand_weight.shape[2:] == (STEM_KERNEL, STEM_KERNEL):  # [channel][row][4]
        expand_weight = F.pad(expand_weight, (0, 1))
    rows = pack_rows(expand_weight, expand_bias, 16 // expand_weight.dtype.itemsize)
    return (*rows, pack_depthwise(weight, bias))


@dataclass(frozen=True)
class Tiling:
    """How outputs are cut.

    Attributes
    ----------
    rows, columns : of outputs, of a tile.
    step_rows : of the wide map, made at a time.
    planes : of 16 channels, of a block.
    """

    rows: int
    columns: int
    step_rows: int
    planes: int = 3

    @property
    def channels(self) -> int:
        """Of a block."""
        return PLANE * self.planes


@dataclass(frozen=True)
class Problem:
    """What a kernel is for: all that its tiling depends on, but the batch.

    Attributes
    ----------
    k, s : the window's kernel and stride.
    channels : of the wide map.
    wide, out : height and width of the wide map, and of y.
    top, bottom : rows of padding.
    cin : channels of x.
    size : bytes of an element.
    is_stem : whether a stem makes the wide map.
    """

    k: int
    s: int
    channels: int
    wide: tuple[int, int]
    out: tuple[int, int]
    top: int
    bottom: int
    cin: int
    size: int
    is_stem: bool = False

    @property
    def depth(self) -> int:
        """Columns of the matrices."""
        return self.cin * STEM_KERNEL * (STEM_KERNEL + 1) if self.is_stem else self.cin

    @classmethod
    def of(cls, x: DeviceTensor, y: DeviceTensor, window: Window, stem: Window | None) -> Problem:
        wide = x.shape[2:] if stem is None else stem.output_size(*x.shape[2:])
        return cls(
            window.kernel[0], window.stride[0], y.shape[1], tuple(wide), tuple(y.shape[2:]),
            window.padding[0], window.padding[2], x.shape[1], x.dtype.itemsize, stem is not None,
        )  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """What follows from a tiling: sizes and places in shared memory, in bytes."""

    span: int
    groups: int
    units: int
    input_rows: int
    image_units: int
    image_rows: int
    room: int
    ring_rows: int
    ring_columns: int
    plane_bytes: int
    bias_offset: int
    weight_offset: int
    input_offset: int
    ring_offset: int
    shared: int

    @classmethod
    def of(cls, cut: Tiling, p: Problem) -> Geometry:
        span = min((cut.columns - 1) * p.s + p.k, p.wide[1])
        groups = -(-cut.columns // COLUMNS)
        ring_columns = (groups * COLUMNS - 1) * p.s + p.k  # that threads read
        # Whole steps of 16 columns of the matrices, in copies of 16 bytes.
        units = -(-p.depth // 16) * p.size
        tiles = -(-units * 16 // ROW_BYTES)
        input_rows = -(-cut.step_rows * span // PIXELS) * PIXELS
        image_rows = cut.step_rows * STEM_STRIDE + STEM_KERNEL - STEM_STRIDE
        image_units = -(-(span * STEM_STRIDE + 2) * p.size // 16)
        # What is below the map is made with its last rows.
        room = cut.step_rows + min(p.bottom, p.k - 1)
        ring_rows = min(p.k - 1 + room, (cut.rows - 1) * p.s + p.k)
        plane_bytes = ring_columns * PLANE * p.size
        bias = cut.planes * (p.k * p.k + 2) * PLANE * 4
        weight = -(-(bias + 4 * cut.channels) // 128) * 128
        inputs = weight + tiles * cut.channels * ROW_BYTES
        ring = inputs + (
            p.cin * image_rows * image_units * 16 if p.is_stem else tiles * input_rows * ROW_BYTES
        )
        return cls(
            span, groups, units, input_rows, image_units, image_rows,
            room, ring_rows, ring_columns, plane_bytes,
            bias, weight, inputs, ring, ring + ring_rows * cut.planes * plane_bytes,
        )  # fmt: skip


def can(
    x: DeviceTensor,
    y: DeviceTensor,
    window: Window,
    first_act: Act,
    act: Act,
    stem: Window | None = None,
) -> bool:
    """Whether there is a kernel: windows, activations, alignment, type, shared memory."""
    (k, kw), (s, sw), (top, left, _, _) = window.kernel, window.stride, window.padding
    fits = (
        (k, s) == (kw, sw)
        and (k, s) in WINDOWS
        and window.dilation == (1, 1)
        and max(top, left) < k
        and first_act in ACTS
        and act in ACTS
        and y.shape[1] % 4 == 0
        and y.has_aligned_pixels(4 * y.dtype.itemsize)
        and max(*x.strides[2:], *y.strides[2:]) < 1 << 31
    )
    if stem is None:
        fits = fits and x.has_aligned_pixels(16)
    else:
        fits = (
            fits
            and (k, s) == (3, 1)
            and stem.kernel == (STEM_KERNEL, STEM_KERNEL)
            and stem.stride == (STEM_STRIDE, STEM_STRIDE)
            and stem.dilation == (1, 1)
            and x.dtype.itemsize == 2
        )
    return fits and bool(_tilings(Problem.of(x, y, window, stem)))


@functools.lru_cache(4096)
def _tilings(p: Problem) -> tuple[tuple[Tiling, Geometry], ...]:
    """Those that fit shared memory."""
    rows = sorted({-(-p.out[0] // n) for n in (1, 2, 3, 4, 6, 8, 12, 16)})
    columns = sorted({-(-p.out[1] // n) for n in range(1, 13)})
    steps = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    found = []
    for row, column, step, planes in itertools.product(
        rows, columns, steps, STEM_PLANES if p.is_stem else PLANES
    ):
        if step > 1 and step > min((row - 1) * p.s + p.k, p.wide[0]):
            continue
        if planes > 3 and p.channels <= 3 * PLANE:
            continue
        cut = Tiling(row, column, step, planes)
        geometry = Geometry.of(cut, p)
        if geometry.shared <= SHARED:
            found.append((cut, geometry))
    return tuple(found)


def tilings(n: int, p: Problem, multiprocessors: int) -> Iterator[tuple[float, Tiling]]:
    """Tilings for n images with their modelled cycles."""
    for cut, g in _tilings(p):
        chunks = -(-p.channels // cut.channels)
        own = THREADS // 32 // cut.planes * 8  # threads with different outputs
        tiles = -(-p.out[0] // cut.rows) * -(-p.out[1] // cut.columns)
        wide_rows = min((cut.rows - 1) * p.s + p.k, p.wide[0])
        steps = -(-wide_rows // cut.step_rows)
        # Instructions of warps: of products of 16 pixels, of threads' outputs, of copies.
        half = p.size == 2
        product = cut.planes * (2 * 2 * 13 + 8) + 90
        if p.is_stem:
            product += -(-p.depth // 16) * (40 + 3 * cut.planes)
            copies = p.cin * g.image_rows * g.image_units / 32 * 75
        else:
            product += -(-p.depth // 16) * ((16 + 3 * cut.planes) if half else 190 * cut.planes)
            copies = g.input_rows * g.units / 32 * 30
        loads = ((COLUMNS - 1) * p.s + p.k) * (5 if half else 1)
        item = p.k * (loads + p.k * (1 + 4 * COLUMNS)) + COLUMNS * 30 + 60
        # Outputs follow their last row: the first steps make fewer than later ones.
        rounds = done = 0
        for made in range(cut.step_rows, wide_rows + cut.step_rows, cut.step_rows):
            end = (made + p.top - p.k) // p.s + 1 if made < wide_rows else cut.rows
            rounds += -(-max(end - done, 0) * g.groups // own)
            done = max(done, end)
        warps = THREADS // 32
        pixels = -(-cut.step_rows * g.span // PIXELS)
        count = steps * (pixels * product + copies + 600) + rounds * warps * item + 3000
        elements = (wide_rows * g.span + cut.rows * cut.columns) * cut.channels
        # Blocks beside it hide what a block waits for, at its barriers and copies.
        resident = min(3, (227 << 10) // (g.shared + 1024))
        rests = steps * (800 + -(-pixels // warps) * product * 2) + rounds * item * 2
        yield (
            cost.cycles(
                n * tiles * chunks,
                multiprocessors,
                count * (1.25 if resident < 2 else 1.0),
                special=cost.SWISH_SPECIAL * elements,
                products=steps * pixels * PIXELS * cut.channels * p.depth if half else 0,
                l2_bytes=(wide_rows * g.span + cut.channels) * p.depth * p.size,
                alone=rests + 2000,
            ),
            cut,
        )


@functools.lru_cache(4096)
def tiling(n: int, problem: Problem, multiprocessors: int) -> Tiling:
    """The tiling for n images that the model prefers."""
    return min(tilings(n, problem, multiprocessors), key=lambda pair: pair[0])[1]


def tile_count(cut: Tiling, out: tuple[int, int]) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    return -(-out[0] // cut.rows) * -(-out[1] // cut.columns)


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
        (N, tiles, M), float32: :func:`tile_count` says how many.
    stem : Window, optional
        Of the stem, with its padding, where that is what makes the wide map.
    cut : Tiling, optional
        Other than :func:`tiling`'s.
    """
    weight, expand_bias, constants = packed
    n, cin, image_h, image_w = x.shape
    _, channels, out_h, out_w = y.shape
    (k, _), (s, _) = window.kernel, window.stride
    problem = Problem.of(x, y, window, stem)
    cut = cut or tiling(n, problem, device.attributes["multiprocessor_count"])
    g = Geometry.of(cut, problem)
    chunks = -(-channels // cut.channels)
    row_tiles, column_tiles = -(-out_h // cut.rows), -(-out_w // cut.columns)
    arguments = Arguments(
        depth=problem.depth, weight_depth=weight.shape[1],
        channels=channels, padded_channels=constants.shape[1],
        h=problem.wide[0], w=problem.wide[1], out_h=out_h, out_w=out_w,
        top=window.padding[0], left=window.padding[1],
        expand_act=expand_act, act=act,
        chunks=Divisor.of(chunks), tiles=Divisor.of(row_tiles * column_tiles),
        column_tiles=Divisor.of(column_tiles),
        tile_rows=cut.rows, tile_columns=cut.columns, step_rows=cut.step_rows,
        span=Divisor.of(g.span), units=Divisor.of(g.units), planes=Divisor.of(cut.planes),
        ring_rows=Divisor.of(g.ring_rows), groups=Divisor.of(g.groups),
        input_rows=g.input_rows, room=g.room, ring_columns=g.ring_columns,
        ring_pitch=cut.planes * g.plane_bytes, plane_bytes=g.plane_bytes,
        bias_offset=g.bias_offset, weight_offset=g.weight_offset,
        input_offset=g.input_offset, ring_offset=g.ring_offset,
    )  # fmt: skip
    arguments.x_image, arguments.x_channel, arguments.x_row, arguments.x_pixel = x.strides
    arguments.y_image, arguments.y_row, arguments.y_pixel = y.map_strides
    if stem is not None:
        arguments.channels_in = cin
        arguments.image_h, arguments.image_w = image_h, image_w
        arguments.stem_top, arguments.stem_left = stem.padding[:2]
        arguments.image_units = Divisor.of(g.image_units)
        arguments.image_rows = Divisor.of(g.image_rows)
    named = {
        "x": x, "weight": weight, "expand_bias": expand_bias, "constants": constants, "y": y,
        "sums": sums,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    for name, tensor in given.items():
        setattr(arguments, name, tensor.address)
    name = f"expand_depthwise_k{k}s{s}_{cut.channels}" if stem is None else "stem_depthwise_k3s1"
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
