"""Small launches of the package's GPU kernels, which together take every path through each.

Every operand is an allocation of its own, and its region is just what it spans. Where its elements
leave room between them lies NaN: in inputs it spoils a result, and in outputs it has to stay.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from operators import Random
from tolerances import (
    UNIT,
    Exact,
    activation,
    add,
    assert_parity,
    conv,
    divided,
    exact,
    linear,
    rounded,
    sums,
)

from effnet_fast.cuda import expand_depthwise, pointwise_conv, squeeze_excite
from effnet_fast.cuda.depthwise_conv import Tiling
from effnet_fast.errors import GpuError
from effnet_fast.gpu import Buffer, Device, Launch, Module
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window
from effnet_fast.ops.gpu_step import host_side

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
PLANE = 16  # channels


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor in an allocation of its own.

    Attributes
    ----------
    values : of an input; of an output anything of its shape, strides and type.
    offset : elements of the allocation before the first.
    expected : of an output.
    parts : the dimension along which an output's sum is expected.
    between : the type of a map that an output was made of, if not its own.
    """

    values: torch.Tensor
    offset: int = 0
    expected: Exact | None = None
    parts: int | None = None
    between: torch.dtype | None = None

    @cached_property
    def storage(self) -> torch.Tensor:
        """What the allocation holds before the launch."""
        sizes = zip(self.values.shape, self.values.stride(), strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in sizes)
        dtype = self.values.dtype
        beside = torch.nan if dtype.is_floating_point else 0
        storage = torch.full((self.offset + span,), beside, dtype=dtype)
        if self.expected is None:
            self.view(storage).copy_(self.values)
        return storage

    def view(self, storage: torch.Tensor) -> torch.Tensor:
        return storage.as_strided(self.values.shape, self.values.stride(), self.offset)

    def place(self, device: Device) -> DeviceTensor:
        buffer = device.upload(self.storage)
        x = self.values
        address = buffer.address + self.offset * x.dtype.itemsize
        return DeviceTensor(buffer, address, x.dtype, tuple(x.shape), tuple(x.stride()))

    def check(self, buffer: Buffer) -> None:
        """Is an output right, and what lies beside its elements as before?"""
        storage = buffer.device.download(buffer, self.values.dtype)
        y = self.view(storage)
        result = y.clone()
        y.fill_(torch.nan)
        bits = BITS[y.dtype.itemsize]
        assert torch.equal(storage.view(bits), self.storage.view(bits)), "written beside its place"
        result = result if self.parts is None else result.sum(self.parts)
        assert_parity(result, self.expected, self.between)


@dataclass(frozen=True, eq=False)
class Case:
    """A launch and its operands.

    Attributes
    ----------
    operands : by name; the outputs among them.
    launch : makes it, of a device and the operands there.
    attributes : of the device, where they are to be others.
    """

    operands: Mapping[str, Operand]
    launch: Callable[[Device, Mapping[str, DeviceTensor]], Launch]
    attributes: Mapping[str, int] = field(default_factory=dict)


# ---- depthwise_conv ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lie:
    """How a map lies: elements after each pixel and each row, and before the first."""

    gap: int = 0
    row_gap: int = 0
    offset: int = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        _, c, h, w = shape
        row = w * (c + self.gap) + self.row_gap
        return torch.empty_strided(shape, (h * row, 1, row, c + self.gap), dtype=dtype)


@dataclass(frozen=True)
class Cut:
    """Of a tile: threads down and across, planes of 16 channels, bytes added to a row's pitch."""

    rows: int
    columns: int
    planes: int = 1
    rows_first: bool = False
    pad: int = 0

    def tiling(
        self, variant: tuple[int, int], out: tuple[int, int], window: Window, size: int
    ) -> Tiling:
        """For a CUDA kernel of so many rows and columns of a thread."""
        (k, _), (s, _) = window.kernel, window.stride
        high, wide = self.rows * variant[0], self.columns * variant[1]
        down, across = (
            max(1, math.ceil(math.ceil(n / d) / own))
            for n, d, own in zip(out, window.dilation, (high, wide), strict=True)
        )
        pitch = ((wide - 1) * s + k) * PLANE * size + self.pad
        plane_bytes = ((high - 1) * s + k) * pitch
        return Tiling(
            *variant, self.rows, self.columns, self.planes, down, across,
            across * down * window.dilation[0] * window.dilation[1],
            self.rows_first, pitch, plane_bytes,
            self.planes * ((k * k + 2) * PLANE * 4 + plane_bytes),
        )  # fmt: skip


def depthwise_case(
    language: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    window: Window,
    act: str,
    x_lies: Lie = Lie(),
    y_lies: Lie = Lie(),
    with_sums: bool = False,
    variant: tuple[int, int] | None = None,
    cut: Cut | None = None,
) -> Case:
    """``variant`` and ``cut`` are of a tiled CUDA kernel."""
    host, r = host_side(language, "depthwise_conv"), Random(dtype)
    n, c, *size = shape
    out = window.output_size(*size)
    x = x_lies.empty(shape, dtype).copy_(r(*shape))
    weight, bias = r.weight(c, 1, *window.kernel), r(c)
    expected = conv(x, weight, bias, act, window)
    operands = {
        "x": Operand(x, x_lies.offset),
        "constants": Operand(host.pack(weight, bias)),
        "y": Operand(y_lies.empty((n, c, *out), dtype), y_lies.offset, expected),
    }
    options = {}
    if cut is not None:
        options["cut"] = cut.tiling(variant, out, window, dtype.itemsize)
        tiles = options["cut"].tiles
    elif language == "cuda":
        tiles = math.ceil(out[0] * out[1] / host.ANY_PIXELS)
    else:
        tiles = math.ceil(out[0] / host.TILE) * math.ceil(out[1] / host.TILE)
    if with_sums:
        operands["sums"] = Operand(torch.empty(n, tiles, c), expected=sums(expected), parts=1)

    def launch(device: Device, there: Mapping[str, DeviceTensor]) -> Launch:
        arguments = (there["x"], there["constants"], there["y"], window, Act[act.upper()])
        return host.launch(device, *arguments, there.get("sums"), **options)

    return Case(operands, launch)


def tiled_cases(k: int, s: int, variant: tuple[int, int], dtype: torch.dtype) -> Iterator[Case]:
    """Of the CUDA kernel depthwise_conv_k<k>s<s>_<variant>_<dtype>."""
    high, wide = variant

    def case(
        c, tiles, cut, act, x_lies, y_lies, with_sums=False, n=1, dilation=(1, 1),
        less=(1, wide - 1),
    ):  # fmt: skip
        """A map of so many tiles, less some rows and columns; padding on all sides."""
        out = (
            max(1, d * tile * own * threads - fewer)
            for d, tile, own, threads, fewer in zip(
                dilation, tiles, variant, (cut.rows, cut.columns), less, strict=True
            )
        )
        # More padding at the low end: SAME for a stride has less there, which others have.
        low, high = k // 2, max(k // 2 - 1, 0)
        pads = [(d * low, d * high) for d in dilation]
        h, w = (
            max(1, (o - 1) * s + d * (k - 1) + 1 - sum(pad))
            for o, d, pad in zip(out, dilation, pads, strict=True)
        )
        (top, bottom), (left, right) = pads
        window = Window((k, k), (s, s), dilation, (top, left, bottom, right))
        return depthwise_case(
            "cuda", dtype, (n, c, h, w), window, act, x_lies, y_lies, with_sums, variant, cut
        )

    unit = 16 // dtype.itemsize  # elements
    aligned, whole = Lie(gap=-20 % unit, row_gap=unit), Lie(gap=-20 % (2 * unit))
    # Sums over warps, which nvcc unrolls by 4: 5 of them, and 4; and no sums.
    for act in ("swish", "relu6"):
        yield case(20, (1, 1), Cut(5, 7), act, aligned, whole, True)
        yield case(20, (1, 1), Cut(4, 8), act, aligned, whole, True)
        yield case(20, (1, 1), Cut(1, 2), act, aligned, whole)
    # Two images of several tiles and chunks, in whole units.
    yield case(20, (2, 2), Cut(1, 1), "swish", aligned, whole, True, n=2)
    # Any activation, y at any alignment: a tile of more than a warp with rows first, of which a
    # thread has all columns outside; of a warp; and of fewer outputs than threads.
    cut = Cut(3, 3, planes=2, rows_first=True, pad=16)
    less, apart = (2 * high - 1, 2 * wide - 1), Lie(gap=1, offset=1)
    yield case(24, (1, 1), cut, "gelu", Lie(), apart, True, n=2, less=less)
    yield case(20, (1, 2), Cut(1, 1, planes=2), "gelu", Lie(), Lie(offset=1), True)
    less = (5 * high - 1, 3 * wide - 1)
    yield case(20, (2, 2), Cut(5, 3), "gelu", Lie(), Lie(offset=1), True, less=less)
    # Rows that are one run, at any alignment, fewer than warps; pixels with gaps; y in quads.
    cut = Cut(1, 12, planes=4)
    yield case(19, (3, 2), cut, "hard_swish", Lie(offset=1), Lie(offset=3), n=2)
    yield case(20, (3, 2), cut, "swish", Lie(offset=4), Lie(offset=4))
    yield case(20, (2, 1), Cut(1, 2), "swish", Lie(gap=1, offset=1), Lie(offset=4))
    # x in quads: aligned and not.
    yield case(20, (1, 1), Cut(2, 2, planes=2), "none", Lie(offset=4), whole)
    dilation = (2, 3) if s == 1 else (1, 1)
    yield case(20, (1, 2), Cut(1, 1, planes=2), "relu6", aligned, whole, True, dilation=dilation)
    yield case(17, (1, 1), Cut(2, 2, planes=2), "relu", Lie(), Lie(), dilation=dilation)


def any_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Of the CUDA kernel depthwise_conv_any_<dtype>: more than one chunk, and tile."""
    window = Window((2, 3), (3, 2), (1, 2), (1, 2, 0, 3))
    lies = Lie(gap=1, row_gap=2, offset=1)
    yield depthwise_case("cuda", dtype, (2, 37, 20, 13), window, "gelu", lies, lies, True)
    window = Window((4, 1), (1, 3), (1, 1), (0, 0, 3, 1))
    yield depthwise_case("cuda", dtype, (1, 32, 5, 9), window, "swish")


def triton_cases(k: int, s: int, aligned: bool, dtype: torch.dtype) -> Iterator[Case]:
    """Of a Triton kernel with swish and sums."""
    unit = 16 // dtype.itemsize
    lies = Lie(gap=unit, row_gap=2 * unit) if aligned else Lie(gap=1, offset=1)
    c = 40 if aligned else 35
    # Tiles that are inside altogether, and others; and a map smaller than its padding, where every
    # tap of every output of a tile is outside somewhere.
    for size, pads in (((17 * s, 19 * s), (k // 2,) * 4), ((3, 4), (9, 9, 10, 11))):
        window = Window((k, k), (s, s), (1, 1), pads)
        yield depthwise_case("triton", dtype, (2, c, *size), window, "swish", lies, lies, True)


def total_cases(language: str) -> Iterator[Case]:
    """Of depthwise_conv_total."""
    for shape in ((2, 6, 150), (3, 1, 128), (1, 4, 600)):
        partial = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        operands = {
            "partial": Operand(partial),
            "sums": Operand(torch.empty(shape[0], shape[2]), expected=sum_of(partial)),
        }

        def launch(device: Device, there: Mapping[str, DeviceTensor]) -> Launch:
            host = host_side(language, "depthwise_conv")
            return host.total(device, there["partial"], there["sums"])

        yield Case(operands, launch)


def sum_of(partial: torch.Tensor) -> Exact:
    """Of float32, along dimension 1."""
    x = partial.double()
    return Exact(x.sum(1), len(x[0]) * UNIT * x.abs().sum(1))


# ---- expand_depthwise and pointwise_conv ---------------------------------------------------------


def expand_case(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channels: int,
    window: Window,
    cut: expand_depthwise.Tiling,
    act: str = "swish",
    stem: Window | None = None,
    x_lies: Lie = Lie(),
    y_lies: Lie = Lie(),
    biases: bool = True,
    has_sums: bool = True,
) -> Case:
    """A launch that is cut so; x of a stem is contiguous."""
    host, r = expand_depthwise, Random(dtype)
    n, cin = shape[:2]
    x = r(*shape) if stem else x_lies.empty(shape, dtype).copy_(r(*shape))
    first = r.weight(channels, cin, *((3, 3) if stem else (1, 1)))
    weight = r.weight(channels, 1, *window.kernel)
    first_bias, bias = (r(channels), r(channels)) if biases else (None, None)
    wide = conv(x, first, first_bias, act, stem)
    out = window.output_size(*wide.value.shape[2:])
    expected = conv(rounded(wide, dtype), weight, bias, act, window)
    tiles = math.ceil(out[0] / cut.rows) * math.ceil(out[1] / cut.columns)
    names = ("weight", "expand_bias", "constants")
    packed = dict(zip(names, host.pack(first, first_bias, weight, bias, stem), strict=True))
    operands = {name: Operand(t) for name, t in packed.items() if t is not None}
    operands |= {
        "x": Operand(x, 0 if stem else x_lies.offset),
        "y": Operand(y_lies.empty((n, channels, *out), dtype), y_lies.offset, expected),
    }
    if has_sums:
        partial = torch.empty(n, tiles, channels)
        operands["sums"] = Operand(partial, expected=sums(expected), parts=1, between=dtype)

    def launch(device: Device, there: Mapping[str, DeviceTensor]) -> Launch:
        weights = tuple(there.get(name) for name in names)
        acts = (Act[act.upper()],) * 2
        return host.launch(
            device, there["x"], weights, there["y"], window, *acts, there.get("sums"), stem, cut
        )

    return Case(operands, launch)


# Rows and columns of maps. Columns are made two by two: two images are 4, 8, 16 and 24 pixels, one
# is 2, 4, 8, 12 and 24.
FEW_PIXELS = ((1, 1), (1, 3), (1, 7), (2, 5), (3, 7))


def expand_cases(k: int, s: int, layout: str, planes: int, dtype: torch.dtype) -> Iterator[Case]:
    """Of the kernel of expand_depthwise for a window of k and s, and maps of a layout."""
    if dtype == torch.float32:
        yield from float_expand_cases(k, s, planes)
        return
    cut = functools.partial(expand_depthwise.Tiling, planes=planes, layout=layout)
    low = (k - 1) // 2
    window = Window((k, k), (s, s), (1, 1), (low, low, k - 1 - low, k - 1 - low))
    channels = 16 * planes
    lies, aligned = Lie(gap=8, row_gap=8), Lie(gap=8, row_gap=16, offset=8)
    case = functools.partial(expand_case, dtype)
    before, after = (
        Window((k, k), (s, s), (1, 1), padding)
        for padding in ((k - 1, k - 1, 0, 0), (0, 0, k - 1, k - 1))
    )
    most = {"wide": 8, "row8": 8, "block16": 16, "row16": 16}[layout]
    columns = (most - 2) // s + 1
    # Numbers of pixels that a warp may have of a step that padding follows; maps that end with the
    # first step of a block, in each number of copies of a pixel.
    few_pixels = (
        case((2, depth, h, w), 8, after, cut(-(-h // s), -(-w // s), k + 2), act)
        for (depth, (h, w)), act in itertools.product(
            zip((8, 24, 40, 120, 8), FEW_PIXELS, strict=True), ("swish", "relu6")
        )
    )
    if layout == "wide":
        # Rounds of rows, in steps that end within them, and tiles of columns, of which the last
        # are smaller; channels of a chunk in part; more columns of a matrix than one tile has.
        # The first tile sees whole units of columns.
        shape, wide = (1, 56, 35 * s, 23 * s), (24 - k - low % 2) // s + 1
        yield case(shape, channels + 8, window, cut(35, wide, 7), "swish", None, lies, aligned)
        yield case((2, 136, 10, 9), channels, window, cut(-(-10 // s), -(-9 // s), 4), "relu6")
        # x that ends within a copy; tiles of rows; no biases; padding at one side.
        x_lies = Lie(gap=5)
        for one, act in ((before, "relu"), (after, "swish")):
            yield case(
                (1, 11, 21, 37), 40, one, cut(16 // s, 32 // s, 16), act, None, x_lies,
                biases=False,
            )  # fmt: skip
        yield case((1, 8, 1, 1), 8, window, cut(1, 1, 1), "none", has_sums=False)
        # Maps that end with another step.
        for depth in (24, 40):
            few = cut(-(-3 // s), columns, low + 2)
            yield case((1, depth, 3, most - 1), 8, window, few, "relu")
        # Padding at the end of a whole round.
        shape = (1, 8, 16 * s, most - 1)
        yield case(shape, 8, after, cut(16, columns, k + 2), "swish")
        yield from few_pixels
        return
    # Two images at once, of which the last is alone, and several of a block.
    shape = (3, 56, 8 * s, most - 1)
    yield case(
        shape, channels + 8, window, cut(8, columns, 3, images=4), "swish", None, lies, aligned
    )
    few = cut(-(-3 // s), most // s, 2, images=4)
    yield case((5, 72, 3, most), channels, window, few, "relu6")
    # Rounds of rows, the last of them in part; tiles of rows.
    rows = 21 if planes == 3 else 7
    for one, images, depth, act in ((before, 1, 88, "relu"), (after, 2, 35, "swish")):
        shape = (images, depth, 42 * s, most - 3)
        yield case(
            shape, 40, one, cut(rows, -(-(most - 3) // s), 5, images=images), act, None,
            Lie(gap=-depth % 8), biases=False, has_sums=one is after,
        )  # fmt: skip
    yield case((2, 8, 1, 1), 8, window, cut(1, 1, 1, images=2), "none", has_sums=False)
    # Maps that end with the first step of another image, and of another round.
    for depth in (8, 24, 40, 120):
        few = cut(-(-3 // s), columns, k + 2, images=4)
        yield case((3, depth, 3, most - 1), 8, window, few, "relu")
        yield case((1, depth, 18 * s, most - 1), 8, window, cut(18, columns, low + 3), "none")
    # An image that ends with a whole round, before another.
    shape = (2, 8, 16 * s, most - 1)
    yield case(shape, 8, window, cut(16, columns, k + 2, images=2), "swish")
    # Padding at the end of a whole round.
    shape = (1, 8, 32 * s, most - 1)
    yield case(shape, 8, after, cut(32, columns, k + 2), "swish")
    yield from few_pixels


def float_expand_cases(k: int, s: int, planes: int) -> Iterator[Case]:
    """Of expand_depthwise_k<k>s<s>_<16 planes>_float32."""
    cut = functools.partial(expand_depthwise.Tiling, planes=planes)
    case = functools.partial(expand_case, torch.float32)
    unit = 4
    lies, quads = Lie(gap=unit, row_gap=unit), Lie(gap=4, row_gap=8, offset=4)
    low = (k - 1) // 2
    window = Window((k, k), (s, s), (1, 1), (low, low, k - 1 - low, k - 1 - low))
    channels = 16 * planes
    # Tiles of rows and of columns, of which the last are smaller; more than one chunk of channels,
    # the last of them in part; more columns of a matrix than one tile has.
    shape = (2, 5 * unit, 12 * s, 9 * s)
    yield case(shape, channels + 12, window, cut(5, 5, 2), "swish", None, lies, quads)
    depth = 17 * unit
    yield case((1, depth, 9, 8), channels, window, cut(-(-9 // s), 7, 2), "relu6")
    # x that ends within a copy; a step that is the whole map; no biases; padding at one side.
    window = Window((k, k), (s, s), (1, 1), (0, k - 1, k - 1, 0))
    yield case(
        (1, unit + 3, 7, 11), 36, window, cut(-(-7 // s), -(-11 // s), 16), "swish", None,
        Lie(gap=unit - 3), biases=False,
    )  # fmt: skip
    window = Window((k, k), (s, s), (1, 1), (k - 1,) * 4)
    yield case((1, unit, 2, 1), 4, window, cut(1, 1, 1), "none", has_sums=False)
    # Every number of outputs of a thread that are inside.
    window = Window((k, k), (s, s), (1, 1), (0, low, k - 1, k - 1 - low))
    for columns, act in itertools.product((2, 3, 4, 6, 7), ("swish", "relu")):
        yield case((1, unit, 1, columns * s), 4, window, cut(1, columns, 1), act)


def stem_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Of stem_depthwise_k3s1_<dtype>."""
    cut = functools.partial(expand_depthwise.Tiling, planes=2)
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    stem = Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))
    # Tiles of more columns than a product has, in whole units, and of fewer.
    yield expand_case(dtype, (2, 3, 42, 66), 40, window, cut(16, 28, 6), "swish", stem)
    stem = Window((3, 3), (2, 2), (1, 1), (1, 1, 0, 2))
    yield expand_case(dtype, (1, 4, 15, 71), 32, window, cut(7, 26, 9), "relu", stem)
    # An image whose rows are copied 16 bytes at a time.
    yield expand_case(dtype, (1, 1, 20, 40), 8, window, cut(10, 9, 5), "swish", stem)
    # Numbers of pixels that a warp may have of a step that padding follows.
    stem = Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))
    after = Window((3, 3), (1, 1), (1, 1), (0, 0, 2, 2))
    for (h, w), act in itertools.product(FEW_PIXELS, ("swish", "relu6")):
        yield expand_case(dtype, (1, 1, 2 * h, 2 * w), 8, after, cut(h, w, 5), act, stem)
    # Padding at the end of a whole round.
    yield expand_case(dtype, (1, 1, 32, 14), 8, after, cut(16, 7, 5), "swish", stem)


def pointwise_case(
    language: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    cout: int,
    cut: Any,
    act: str = "none",
    fused: Collection[str] = (),
    x_lies: Lie = Lie(),
    y_lies: Lie = Lie(),
    excite: tuple[int, int] = (3, 5),
) -> Case:
    """``fused``: of "bias", "gate" or "excite", "residual", "sums"; the residual lies as y.

    ``excite``: parts of each sum that a gate is made of, and squeezed channels.
    """
    host, r = host_side(language, "pointwise_conv"), Random(dtype)
    n, cin, *size = shape
    x = x_lies.empty(shape, dtype).copy_(r(*shape))
    weight, bias = r.weight(cout, cin), r(cout) if "bias" in fused else None
    gate = r(n, cin) if "gate" in fused else None
    layers: dict[str, torch.Tensor] = {}
    if "excite" in fused:
        parts, squeezed = excite
        layers = {"w1": r.weight(squeezed, cin), "w2": r.weight(cin, squeezed)}
        if "bias" in fused:
            layers |= {"b1": r(squeezed), "b2": r(cin)}
        partial = Random()(n, parts, cin)
        gate = excited(partial, layers, dtype)
        layers = packed_layers("cuda", layers) | {"partial": partial}
    out = (n, cout, *size)
    expected = conv(x, weight[:, :, None, None], bias, act, gate=gate)
    names = ("weight", "bias")
    packed = dict(zip(names, host.pack(weight, bias), strict=True))
    operands = {name: Operand(t) for name, t in packed.items() if t is not None}
    operands["x"] = Operand(x, x_lies.offset)
    operands |= {name: Operand(t) for name, t in layers.items()}
    if "gate" in fused:
        operands["gate"] = Operand(gate)
    if "residual" in fused:
        residual = y_lies.empty(out, dtype).copy_(r(*out))
        operands["residual"] = Operand(residual, y_lies.offset)
        expected = add(expected, residual)
    if "sums" in fused:
        tiles = math.ceil(size[0] * size[1] / cut.m)
        operands["sums"] = Operand(torch.empty(n, tiles, cout), expected=sums(expected), parts=1)
    else:
        operands["y"] = Operand(y_lies.empty(out, dtype), y_lies.offset, expected)

    def launch(device: Device, there: Mapping[str, DeviceTensor]) -> Launch:
        weights = tuple(there.get(name) for name in names)
        gate = there.get("gate")
        if layers:
            constants = tuple(there.get(name) for name in LAYERS)
            gate = squeeze_excite.Excitation(
                there["partial"], PIXELS, constants, Act.SWISH, Act.SIGMOID
            )
        rest = (there.get(name) for name in ("residual", "sums"))
        return host.launch(
            device, there["x"], weights, there.get("y"), Act[act.upper()], gate, *rest, cut
        )

    return Case(operands, launch)


def pointwise_cases(language: str, dtype: torch.dtype, cut: Any, gated: bool) -> Iterator[Case]:
    """Of the CUDA kernel pointwise_conv[_gated]_<cut>_<dtype>."""
    unit = 16 // dtype.itemsize
    gate = ["gate"] if gated else []
    args = (language, dtype)
    aligned, quads = Lie(gap=unit, row_gap=2 * unit), Lie(gap=4, row_gap=4, offset=4)
    apart = Lie(gap=1, row_gap=3, offset=1)
    size = (cut.m // 8 + 1, 9)  # more than a tile of pixels
    # More columns of the matrices than stages in shared memory hold; a tile of channels in part.
    yield pointwise_case(
        *args, (2, 26 * unit, *size), cut.n + 12, cut, "swish", ["bias", *gate], aligned, quads
    )
    fused = ["bias", "residual", *gate]
    yield pointwise_case(*args, (2, 9 * unit, *size), 20, cut, "none", fused, Lie(), quads)
    yield pointwise_case(*args, (1, 26 * unit + 3, 3, 5), 21, cut, "gelu", fused, apart, apart)
    yield pointwise_case(*args, (1, 2, 1, 1), 7, cut, "relu6", gate, Lie(gap=unit - 2))
    yield pointwise_case(*args, (2, 3 * unit, *size), cut.n + 5, cut, "swish", ["sums", *gate])
    # Several images in a tile: as one map, or, with sums, two.
    fused = ["bias", "residual", *gate]
    yield pointwise_case(*args, (11, 3 * unit, 3, 5), 32, cut, "swish", fused)
    yield pointwise_case(*args, (3, 3 * unit, 3, 5), 32, cut, "swish", ["sums", *gate])


def excited_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Of pointwise_conv_excited_32x32_<dtype>."""
    unit, cut = 16 // dtype.itemsize, pointwise_conv.EXCITED
    case = functools.partial(pointwise_case, "cuda", dtype)
    aligned, quads = Lie(gap=unit, row_gap=2 * unit), Lie(gap=4, row_gap=4, offset=4)
    apart = Lie(gap=1, row_gap=3, offset=1)
    # More columns of the matrices than stages in shared memory hold; a tile of channels in part.
    fused = ["bias", "excite"]
    yield case((2, 26 * unit, 5, 9), cut.n + 12, cut, "none", fused, aligned, quads, (7, 40))
    # A gate in fewer columns than a tile has; unaligned weights of the gate. nvcc unrolls parts and
    # squeezed channels by 4: with every rest.
    fused = ["bias", "excite", "residual"]
    yield case((2, 9 * unit, 5, 9), 20, cut, "none", fused, Lie(), quads, (4, 15))
    yield case((1, 26 * unit + 3, 3, 5), 21, cut, "none", fused, apart, apart, (5, 41))
    yield case((3, 7, 1, 1), 7, cut, "relu6", ["excite"], Lie(gap=-7 % unit), excite=(2, 3))
    fused = ["excite", "sums"]
    yield case((2, 3 * unit, 5, 9), cut.n + 5, cut, "swish", fused, excite=(3, 6))


# ---- stem_conv and fused_mbconv ------------------------------------------------------------------


def stem_conv_case(
    dtype: torch.dtype,
    x: torch.Tensor,
    cout: int,
    window: Window,
    act: str,
    offset: int = 0,
    y_lies: Lie = Lie(),
    bias: bool = True,
) -> Case:
    """x has the strides that it is to have, and lies from an offset on."""
    host, r = host_side("cuda", "stem_conv"), Random(dtype)
    x = x.copy_(r(*x.shape))
    n, cin, *size = x.shape
    weight, bias = r.weight(cout, cin, *window.kernel), r(cout) if bias else None
    out = (n, cout, *window.output_size(*size))
    packed = host.pack(weight, bias)
    operands = {"weight": Operand(packed[0]), "x": Operand(x, offset)}
    if bias is not None:
        operands["bias"] = Operand(packed[1])
    expected = conv(x, weight, bias, act, window)
    operands["y"] = Operand(y_lies.empty(out, dtype), y_lies.offset, expected)

    def launch(device: Device, there: Mapping[str, DeviceTensor]) -> Launch:
        weights = (there["weight"], there.get("bias"))
        return host.launch(device, there["x"], weights, there["y"], window, Act[act.upper()])

    return Case(operands, launch)


def stem_conv_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Of the CUDA kernel stem_conv_128x64_<dtype>."""
    case = functools.partial(stem_conv_case, dtype)
    # More columns of the matrices than stages in shared memory hold; tiles of pixels and of
    # channels in part; a batch of maps with adjacent columns.
    x = torch.empty_strided((2, 5, 25, 21), (2900, 570, 22, 1), dtype=dtype)
    quads = Lie(gap=4, row_gap=4, offset=4)
    yield case(x, 76, Window((7, 7), (2, 2), (1, 1), (3, 3, 2, 3)), "swish", 0, quads)
    # Adjacent channels, y at any alignment, a map that is smaller than its padding.
    x, apart = Lie(gap=1, row_gap=2).empty((1, 3, 4, 5), dtype), Lie(gap=1, row_gap=3, offset=1)
    yield case(x, 37, Window((3, 2), (1, 3), (1, 1), (4, 6, 5, 7)), "gelu", 1, apart)
    # Channels with every rest of four.
    x = torch.empty((1, 1, 1, 1), dtype=dtype)
    for cout, act in ((34, "none"), (35, "relu6")):
        yield case(x, cout, Window((1, 1)), act, bias=False)


def fused_mbconv_case(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    mid: int,
    cout: int | None,
    window: Window,
    act: str,
    fused: Collection[str] = (),
    x_lies: Lie = Lie(),
    y_lies: Lie = Lie(),
    cut: Any = None,
) -> Case:
    """``cout`` of the projection, if any; ``fused``: of "biases", "residual", which lies as y."""
    host, r = host_side("cuda", "fused_mbconv"), Random(dtype)
    n, cin, *size = shape
    biases = "biases" in fused
    x = x_lies.empty(shape, dtype).copy_(r(*shape))
    weight, bias = r.weight(mid, cin, *window.kernel), r(mid) if biases else None
    expected = conv(x, weight, bias, act, window)
    project = project_bias = None
    if cout is not None:
        project, project_bias = r.weight(cout, mid), r(cout) if biases else None
        expected = conv(rounded(expected, dtype), project[:, :, None, None], project_bias, act)
    names = ("weight", "bias", "project", "project_bias")
    packed = dict(zip(names, host.pack(weight, bias, project, project_bias), strict=True))
    operands = {name: Operand(t) for name, t in packed.items() if t is not None}
    operands["x"] = Operand(x, x_lies.offset)
    out = (n, cout or mid, *window.output_size(*size))
    if "residual" in fused:
        residual = y_lies.empty(out, dtype).copy_(r(*out))
        operands["residual"] = Operand(residual, y_lies.offset)
        expected = add(expected, residual)
    operands["y"] = Operand(y_lies.empty(out, dtype), y_lies.offset, expected)

    def launch(device: Device, there: Mapping[str, DeviceTensor]) -> Launch:
        weights = tuple(there.get(name) for name in names)
        acts = (Act[act.upper()],) * 2
        return host.launch(
            device, there["x"], weights, there["y"], window, *acts, there.get("residual"), cut
        )

    return Case(operands, launch)


def fused_mbconv_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Of the CUDA kernel fused_mbconv_project_128x64_<dtype>."""
    case = functools.partial(fused_mbconv_case, dtype)
    unit = 16 // dtype.itemsize
    wide = 8 * unit  # channels that a block makes at a time
    aligned, quads = Lie(gap=unit, row_gap=2 * unit), Lie(gap=4, row_gap=4, offset=4)
    apart = Lie(gap=1, row_gap=3, offset=1)
    fused = ["biases", "residual"]
    # Pixels of an image in two tiles; more columns of the matrices than stages in shared memory
    # hold; wide channels in rounds, of which the last is in part.
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    yield case((2, 3 * unit, 11, 12), wide + 12, 36, window, "swish", fused, aligned, quads)
    # x that ends within a copy; a map that is smaller than its padding.
    window = Window((2, 3), (1, 2), (2, 1), (3, 4, 4, 5))
    lies = Lie(gap=unit - 3)
    yield case((1, unit + 3, 4, 5), 2 * unit + 3, 37, window, "gelu", fused, lies, apart)
    # Channels with every rest of four.
    for cout, act in ((6, "none"), (7, "relu6"), (8, "relu")):
        yield case((1, unit, 1, 1), 3, cout, Window((1, 1)), act)


# ---- squeeze_excite and swish --------------------------------------------------------------------

# What squeeze_excite packs; pixels that its sums are over.
LAYERS = "w1", "b1", "w2", "b2"
PIXELS = 9


def excited(partial: torch.Tensor, layers: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Exact:
    """The gate, as it is kept."""
    middle = linear(divided(partial.sum(1), PIXELS), layers["w1"], layers.get("b1"), "swish")
    return rounded(linear(middle, layers["w2"], layers.get("b2"), "sigmoid"), dtype)


def packed_layers(language: str, layers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a kernel takes, by the same names."""
    packed = host_side(language, "squeeze_excite").pack(*(layers.get(name) for name in LAYERS))
    return {name: t for name, t in zip(LAYERS, packed, strict=True) if t is not None}


def squeeze_cases(
    language: str, dtype: torch.dtype, images: int, sizes: Sequence[tuple]
) -> Iterator[Case]:
    """Of a kernel with so many images in a block: for (n, tiles, channels, squeezed, offset).

    Of CUDA's also without biases; Triton has another kernel for that.
    """
    biases = (True, False) if language == "cuda" else (True,)
    for with_biases, (n, tiles, c, squeezed, offset) in itertools.product(biases, sizes):
        r, wide = Random(dtype), Random()
        partial = wide(n, tiles, c)
        layers = {"w1": r.weight(squeezed, c), "w2": r.weight(c, squeezed)}
        if with_biases:
            layers |= {"b1": r(squeezed), "b2": r(c)}
        expected = excited(partial, layers, torch.float64)
        host = host_side(language, "squeeze_excite")
        packed = packed_layers(language, layers)
        operands = {name: Operand(t, offset) for name, t in packed.items()}
        operands |= {
            "sums": Operand(partial, offset),
            "gate": Operand(torch.empty(n, c, dtype=dtype), offset, expected),
        }

        def launch(device: Device, there: Mapping[str, DeviceTensor], host=host) -> Launch:
            weights = tuple(there.get(name) for name in LAYERS)
            return host.launch(
                device, there["sums"], PIXELS, weights, there["gate"], Act.SWISH, Act.SIGMOID
            )

        yield Case(operands, launch, {"multiprocessor_count": n // images} if n > 1 else {})


def swish_cases(
    language: str, dtype: torch.dtype, runs: Sequence[tuple[int, int, str]]
) -> Iterator[Case]:
    """For (n, offset, act)."""
    for n, offset, act in runs:
        x = Random(dtype)(n, scale=3)
        expected = activation(Exact(exact(x).value, 4 * UNIT * x.double().abs()), act)
        operands = {
            "x": Operand(x, offset),
            "y": Operand(torch.empty(n, dtype=dtype), offset, expected),
        }

        def launch(device: Device, there: Mapping[str, DeviceTensor], act=act) -> Launch:
            host = host_side(language, "swish")
            return host.launch(device, there["x"], there["y"], Act[act.upper()])

        yield Case(operands, launch, {"multiprocessor_count": 1})


# ---- running them --------------------------------------------------------------------------------


class OneKernelDevice(Device):
    """The PTX machine, with one text of PTX for whatever is to be loaded."""

    def __init__(self, ptx: str, index: int, **options):
        super().__init__("ptx", index, threads=1, **options)
        self.ptx = ptx

    def load(self, image: bytes | str, registers: Mapping[str, int] | None = None) -> Module:
        return super().load(self.ptx, registers)


class Bench:
    """A kernel's cases, for one text after another in its place.

    Parameters
    ----------
    cases : list of Case
    index : int
        Of the PTX machine's device.
    **options
        Of the PTX machine.
    """

    def __init__(self, cases: list[Case], index: int = 0, **options):
        self.cases = cases
        self.index = index
        self.options = options
        self.device: OneKernelDevice | None = None
        self.placed: list[tuple[dict[str, DeviceTensor], Launch]] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, ptx: str) -> None:
        """Raise a KernelFault or an AssertionError at the first case that is wrong."""
        try:
            self._run(ptx)
        except GpuError:
            self.close()  # a fault ends the context
            raise

    def _run(self, ptx: str) -> None:
        if self.device is None:
            self.device = OneKernelDevice(ptx, self.index, **self.options)
        self.device.ptx = ptx
        module = self.device.load(ptx)
        for i, case in enumerate(self.cases):
            if i == len(self.placed):
                self.placed.append(self._place(case))
            there, launch = self.placed[i]
            kernel = module.kernel(launch.kernel.name)
            outputs = {n: o for n, o in case.operands.items() if o.expected is not None}
            for name, operand in outputs.items():
                self.device.upload(operand.storage, into=there[name].memory)
            self.device.launch(dataclasses.replace(launch, kernel=kernel))
            self.device.synchronize()
            for name, operand in outputs.items():
                operand.check(there[name].memory)

    def _place(self, case: Case) -> tuple[dict[str, DeviceTensor], Launch]:
        there = {name: operand.place(self.device) for name, operand in case.operands.items()}
        own = self.device.attributes
        self.device.attributes = own | dict(case.attributes)
        launch = case.launch(self.device, there)
        self.device.attributes = own
        return there, launch

    def close(self) -> None:
        self.placed.clear()
        if self.device is not None:
            self.device.close()
        self.device = None
