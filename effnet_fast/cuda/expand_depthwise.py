"""The host side of csrc/cuda/expand_depthwise.cu: which kernel, which tile, how many blocks.

Float32 has kernels and tiles of its own, in expand_depthwise_float.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from effnet_fast.cuda import expand_depthwise_float as in_float
from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.expand_problem import (
    ACTS,
    PLANE,
    SHARED,
    STEM_KERNEL,
    STEM_STRIDE,
    WINDOWS,
    Problem,
    Tiling,
)
from effnet_fast.cuda.gemm import ROW_BYTES
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu import cost
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_depthwise, pack_rows
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

__all__ = [
    "LAYOUTS",
    "Problem",
    "Tiling",
    "blocks",
    "can",
    "kernel_name",
    "launch",
    "pack",
    "skips_first",
    "tile_count",
    "tiling",
    "tilings",
    "variants",
]

GROUP = 8  # channels of a warp's outputs, and columns of a unit
SIZE = 2  # bytes of an element
PIXELS = 32  # of a warp's product
# How rows of the window are matrices (the shapes in expand_depthwise.cu), by stride, and planes of
# a block.
LAYOUTS = {
    1: {"wide": (3,), "block16": (3, 4), "row8": (3, 4)},
    2: {"wide": (3,), "row16": (3,)},
}
STEM_PLANES, STEM_WARPS = 2, 8
STEM_CHANNELS = 4  # of the image, at most


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
                "depth", "weight_depth", "images", "channels", "h", "w", "out_h", "out_w",
                "top", "expand_act", "act", "block_images",
            )
        ),
        *((name, Divisor) for name in ("chunks", "tiles", "column_tiles")),
        *(
            (name, ctypes.c_int32)
            for name in ("tile_rows", "tile_columns", "step_rows", "round_rows")
        ),
        *((name, Divisor) for name in ("span", "units")),
        *((name, ctypes.c_int32) for name in ("half_rows", "half_columns", "half_images")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "window_left", "window_columns", "window_units", "tap_shift",
                "unit_bytes", "phase_bytes", "image_bytes", "half_bytes",
                "bias_offset", "places_offset", "weight_offset", "input_offset", "window_offset",
                "input_rows", "fold",
                "channels_in", "image_h", "image_w", "stem_top", "stem_left", "stem_offset",
                "image_is_aligned",
            )
        ),
        *((name, Divisor) for name in ("image_units", "image_rows")),
    ]  # fmt: skip


def pack(
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stem: Window | None = None,
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
    stem : Window, optional
        Of the stem.

    Returns
    -------
    Tensor, Tensor or None, Tensor
        Rows of the first, rounded up to 16 bytes; its bias in float32; in float32 what
        :func:`~effnet_fast.gpu.packing.pack_depthwise` makes of the second, in half precision
        (M, k (2 k + 2) + 1) int32: each row's taps two by two, with a zero before and after, two
        zeros, and the taps with a zero each; then the bias, a float32.
    """
    dtype = expand_weight.dtype
    if stem is not None:  # [channel][row][4]
        expand_weight = F.pad(expand_weight, (1, 0) if skips_first(stem) else (0, 1))
    rows = pack_rows(expand_weight, expand_bias, 16 // dtype.itemsize)
    if dtype == torch.float32:
        return (*rows, pack_depthwise(weight, bias))
    c, _, k, _ = weight.shape
    taps = F.pad(weight.detach().to(dtype).reshape(c, k, k), (1, 2))
    pairs = torch.stack((taps[..., :-1], taps[..., 1:]), -1)
    alone = torch.stack((taps[..., 1:-2], torch.zeros_like(taps[..., 1:-2])), -1)
    pairs = torch.cat((pairs, alone), 2).contiguous().view(torch.int32)
    last = torch.zeros(c) if bias is None else bias.detach().float()
    words = (pairs.reshape(c, -1), last.view(torch.int32).reshape(c, 1).to(pairs.device))
    return (*rows, torch.cat(words, 1).contiguous())


def skips_first(stem: Window | None) -> bool:
    """Whether windows of 4 columns begin at even columns of the image one before those of 3.

    It is all that :func:`pack` depends on besides the weights: SAME padding has it with odd images.
    """
    return stem is not None and stem.padding[1] % 2 == 1


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
    half = y.dtype.itemsize == SIZE
    group = GROUP if half else 4
    fits = (
        (k, s) == (kw, sw)
        and (k, s) in WINDOWS
        and window.dilation == (1, 1)
        and max(top, left) < k
        and first_act in ACTS
        and act in ACTS
        and y.shape[1] % group == 0
        and y.has_aligned_pixels(16 if half else 4 * y.dtype.itemsize)
        and max(*x.strides[2:], *y.strides[2:]) < 1 << 26
    )
    if stem is None:
        # Offsets in a tile are 32 bits: of up to 35 rows.
        _, row, pixel = x.map_strides
        fits = fits and x.has_aligned_pixels(16) and 35 * row + x.shape[3] * pixel < 1 << 31
    else:
        fits = (
            fits
            and (k, s) == (3, 1)
            and stem.kernel == (STEM_KERNEL, STEM_KERNEL)
            and stem.stride == (STEM_STRIDE, STEM_STRIDE)
            and stem.dilation == (1, 1)
            and x.shape[1] <= STEM_CHANNELS
            and half
        )
    return fits and any(True for _ in tilings(1, Problem.of(x, y, window, stem), 1))


@dataclass(frozen=True)
class Geometry:
    """What follows from a tiling: how rows are matrices; sizes and places in shared memory, in
    bytes.
    """

    span: int
    x_units: int
    round_rows: int
    half_rows: int
    half_columns: int
    half_images: int
    window_left: int
    window_columns: int
    window_units: int
    tap_shift: int
    unit_bytes: int
    phase_bytes: int
    image_bytes: int
    half_bytes: int
    input_rows: int
    fold: int
    image_units: int
    image_rows: int
    bias_offset: int
    places_offset: int
    stem_offset: int
    weight_offset: int
    input_offset: int
    window_offset: int
    shared: int

    @classmethod
    def of(cls, cut: Tiling, p: Problem) -> Geometry:
        is_wide = cut.layout == "wide"
        half_columns = GROUP if is_wide else 0
        is_interleaved = cut.layout == "block16"
        half_rows = GROUP if not is_wide and cut.rows > GROUP else 0
        half_images = cut.at_once - 1
        round_rows = 2 * GROUP if is_interleaved else GROUP + half_rows
        if is_interleaved:
            half_rows = 1
        round_inputs = (round_rows - 1) * p.s + p.k
        # Two columns are stored at a time: the first of the map is at an even place.
        left = p.left + p.left % 2 if is_wide else 0
        shift = left - p.left
        if is_wide:
            columns = (cut.columns - 1) * p.s + p.k + shift
            columns += columns % 2
            units = -(-columns // GROUP)
        else:
            units = 1 if cut.layout == "row8" else 2
            columns = units * GROUP
        span = min(columns, p.wide[1])
        span += span % 2
        row_bytes = (cut.channels + 1) * 16
        phases = 2 if is_interleaved else p.s
        unit_bytes = -(-round_inputs // phases) * row_bytes
        phase_bytes = units * unit_bytes
        image_bytes = phases * phase_bytes
        if is_interleaved:
            half_bytes = phase_bytes
        elif half_rows:
            half_bytes = GROUP * row_bytes
        else:
            half_bytes = p.s * unit_bytes if is_wide else half_images * image_bytes
        # Whole steps of 16 columns of the matrices, in copies of 16 bytes.
        depth = STEM_KERNEL * 4 * STEM_CHANNELS if p.is_stem else p.depth
        x_units = -(-depth // 16) * SIZE
        tiles = -(-x_units * 16 // ROW_BYTES)
        # Of shallow matrices two pixels share a row.
        fold = int(x_units <= ROW_BYTES // 16 // 2)
        input_rows = -(-(1 + half_images) * cut.step_rows * span // PIXELS) * PIXELS >> fold
        image_rows = cut.step_rows * STEM_STRIDE + STEM_KERNEL - STEM_STRIDE
        # From a multiple of 8 columns on, up to 6 before the first.
        image_units = -(-(span * STEM_STRIDE + 2 + 6) * SIZE // 16)
        bias = cut.channels * (p.k * (2 * p.k + 2) + 1) * 4
        places = bias + 4 * cut.channels
        stem = places + round_inputs * span // 2 * 8
        table = STEM_KERNEL * STEM_CHANNELS * 4 if p.is_stem else 0
        weight = -(-(stem + table) // 128) * 128
        inputs = weight + tiles * cut.channels * ROW_BYTES
        window = inputs + (
            p.cin * image_rows * image_units * 16 if p.is_stem else tiles * input_rows * ROW_BYTES
        )
        return cls(
            span, x_units, round_rows, half_rows, half_columns, half_images,
            left, columns, phases * units, shift, unit_bytes, phase_bytes, image_bytes, half_bytes,
            input_rows, fold, image_units, image_rows,
            bias, places, stem, weight, inputs, window, window + (1 + half_images) * image_bytes,
        )  # fmt: skip


def _layouts(p: Problem) -> Iterator[tuple[str, int]]:
    """Layouts and planes that a problem may have."""
    if p.is_stem:
        yield "wide", STEM_PLANES
        return
    columns = p.wide[1]
    layout = "wide"
    if columns <= GROUP and p.s == 1 and p.out[1] <= GROUP:
        layout = "row8"
    elif columns <= 2 * GROUP and p.out[1] <= 2 * GROUP // p.s:
        layout = "block16" if p.s == 1 else "row16"
    for planes in LAYOUTS[p.s][layout]:
        if planes == 3 or p.channels > 3 * PLANE:
            yield layout, planes


@functools.lru_cache(4096)
def _tilings(p: Problem) -> tuple[tuple[Tiling, Geometry], ...]:
    """Those that fit shared memory, of one image."""
    found = []
    for layout, planes in _layouts(p):
        if layout == "wide":
            columns = sorted({-(-p.out[1] // n) for n in range(1, 13)})
            rounds = GROUP
        else:
            columns = [p.out[1]]
            rounds = GROUP if p.out[0] <= GROUP and layout != "block16" else 2 * GROUP
        most = -(-p.out[0] // rounds)
        rows = sorted({min(-(-most // n) * rounds, p.out[0]) for n in range(1, most + 1)})
        if layout == "wide" and p.s == 1 and p.left > 2:
            # Where the first columns of a tile are padding, the map's begin at an even one.
            columns = [c for c in columns if c % 2 == 0 or c == p.out[1]]
        for row, column in itertools.product(rows, columns):
            # A round's inputs, in any number of steps.
            inputs = min((rounds - 1) * p.s + p.k, (row - 1) * p.s + p.k)
            for step in sorted({-(-inputs // n) for n in range(1, inputs + 1)}):
                cut = Tiling(row, column, step, planes, layout)
                geometry = Geometry.of(cut, p)
                if geometry.shared <= SHARED:
                    found.append((cut, geometry))
    return tuple(found)


def tilings(n: int, p: Problem, multiprocessors: int) -> Iterator[tuple[float, Tiling]]:
    """Tilings for n images with their modelled cycles."""
    if p.size != SIZE:
        yield from in_float.tilings(n, p, multiprocessors)
        return
    for cut, g in _tilings(p):
        several = [m for m in (2, 4, 8, 16) if cut.layout != "wide" and m <= n]
        for of_images in {cut.of_images(images) for images in (1, *several)}:
            yield _cycles(n, p, of_images, g, multiprocessors), of_images


@dataclass(frozen=True)
class Work:
    """What a block does, for its images: rounds of outputs, steps, products of a warp, all of
    them.
    """

    rounds: int
    steps: int
    products: int

    @classmethod
    @functools.lru_cache(4096)
    def of(cls, cut: Tiling, g: Geometry, p: Problem) -> Work:
        rounds = steps = products = 0
        for first in range(0, cut.rows, g.round_rows):
            rounds += 1
            top = first * p.s - p.top
            made = 0 if first == 0 else p.k - p.s
            end = (min(cut.rows - first, g.round_rows) - 1) * p.s + p.k
            while made < end:
                then = min(made + cut.step_rows, end)
                inside = max(min(then, p.wide[0] - top) - max(made, -top), 0)
                products += -(-cut.at_once * inside * g.span // PIXELS)
                steps += 1
                made = then
        passes = cut.images // cut.at_once
        return cls(passes * rounds, passes * steps, passes * products)


# Of a warp's outputs, by layout and stride: instructions once, for a row of the kernel, and for 16
# columns; passes through shared memory for a row of the kernel. Counted on the PTX machine, fitted
# to 213 tilings of 19 layers; off by 7 %.
_OUTPUTS = {
    ("wide", 1): (114, 52, 262, 78),
    ("wide", 2): (0, 100, 70, 77),
    ("block16", 1): (0, 49, 795, 45),
    ("row16", 2): (0, 212, 0, 73),
    ("row8", 1): (0, 16, 587, 35),
}


def best_tilings(n: int, p: Problem, multiprocessors: int, most: int) -> list[tuple[float, Tiling]]:
    """The tiling for n images that the model prefers, and some to measure beside it, with their
    modelled cycles.

    On an H200 launches of EfficientNet-B0 took 2.4 to 4.3 times their modelled cycles, and 1.9 to
    2.5 times what the model says of blocks that wait, two of them on a multiprocessor (the stem 5.4
    and 3.2). By that others are the best, by 7 to 15 % in 10 of 15 layers; these are the others.
    """
    all_of = list(tilings(n, p, multiprocessors))
    first = min(all_of, key=lambda pair: pair[0])
    if p.size != SIZE or most == 1:
        return [first]
    # Of each tile the best number of rows a step.
    best: dict[Tiling, tuple[float, float, Tiling]] = {}
    for cycles, cut in all_of:
        waiting = _cycles(n, p, cut, Geometry.of(cut, p), multiprocessors, waits=True)
        tile = dataclasses.replace(cut, step_rows=1)
        if tile not in best or waiting < best[tile][0]:
            best[tile] = waiting, cycles, cut
    others = sorted(best.values(), key=lambda found: found[0])
    return [first, *((cycles, cut) for _, cycles, cut in others if cut != first[1])][:most]


def _cycles(
    n: int, p: Problem, cut: Tiling, g: Geometry, multiprocessors: int, waits: bool = False
) -> float:
    """Modelled, of a launch; with what its blocks wait for, or without."""
    groups = cut.channels // GROUP
    warps = STEM_WARPS if p.is_stem else groups
    work = Work.of(cut, g, p)
    steps = 0 if p.is_stem else -(-p.depth // 16)
    own = cut.channels / 48
    made = work.products * own
    count = 310 * warps + 9.5 * (1 + g.half_images) * g.image_bytes / 512
    count += warps * (70 * work.rounds + 80 * work.steps)
    count += made * (475 + 15 * steps)
    passes = (
        warps * (33 + 12 * work.steps)
        + 3 * (1 + g.half_images) * g.image_bytes / 512
        + made * (42 + 22 * steps)
    )
    if p.is_stem:
        copies = work.steps * p.cin * g.image_rows * g.image_units / 32
        count += 60 * copies
        passes += 32 * copies + 6 * work.products * -(-p.depth // 16)
    once, row, sixteen, row_passes = _OUTPUTS[cut.layout, p.s]
    pairs = -(-cut.columns // (2 * GROUP))  # a warp makes two of them at stride 1
    tasks = work.rounds * groups * (-(-pairs // 2) if (cut.layout, p.s) == ("wide", 1) else pairs)
    count += tasks * (once + row * p.k) + work.rounds * groups * pairs * sixteen
    passes += tasks * row_passes * p.k
    blocks = 2 if cut.layout == "block16" else 1  # of 8 x 16 outputs
    outputs = work.rounds * groups * pairs * blocks * 16 * GROUP * GROUP
    elements = work.products * PIXELS * cut.channels + outputs
    row_tiles, column_tiles = -(-p.out[0] // cut.rows), -(-p.out[1] // cut.columns)
    # Blocks beside it hide what a block waits for, at its barriers and copies.
    resident = min(2 if warps == 6 else 1, (227 << 10) // (g.shared + 1024))
    rests = work.steps * 1000 + -(-work.products // warps) * 600 + work.rounds * p.k * 300
    return cost.cycles(
        -(-n // cut.images) * row_tiles * column_tiles * -(-p.channels // cut.channels),
        multiprocessors,
        count * (1 + max(12 - resident * warps, 0) / 40),
        special=(1.625 if cut.layout == "wide" and not p.is_stem else 2) * elements,
        products=work.products * PIXELS * cut.channels * p.depth + outputs * p.k * 16,
        l2_bytes=(work.products * PIXELS + cut.channels) * p.depth * SIZE,
        wavefronts=passes,
        alone=rests + 2500,
        resident=resident if waits else 1,
        waits=rests + 2500 if waits else 0.0,
    )


@functools.lru_cache(4096)
def tiling(n: int, problem: Problem, multiprocessors: int) -> Tiling:
    """The tiling for n images that the model prefers."""
    return min(tilings(n, problem, multiprocessors), key=lambda pair: pair[0])[1]


def tile_count(cut: Tiling, out: tuple[int, int]) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    return -(-out[0] // cut.rows) * -(-out[1] // cut.columns)


def blocks(cut: Tiling, n: int, channels: int, out: tuple[int, int]) -> int:
    """Of a launch for n images."""
    images = cut.of_images(cut.images).images
    return -(-n // images) * tile_count(cut, out) * -(-channels // cut.channels)


def variants(dtype: torch.dtype) -> Iterator[tuple[int, int, str, int]]:
    """k, s, layout and planes of every kernel of a type, but the stem's."""
    for k, s in WINDOWS:
        layouts = LAYOUTS[s] if dtype.itemsize == SIZE else {"wide": in_float.PLANES}
        for layout, planes in layouts.items():
            yield from ((k, s, layout, n) for n in planes)


def kernel_name(cut: Tiling, k: int, s: int, dtype: torch.dtype, is_stem: bool = False) -> str:
    """Of the kernel for a tiling, and a window of k and s."""
    if is_stem:
        return f"stem_depthwise_k3s1_{suffix(dtype)}"
    layout = f"{cut.layout}_" if dtype.itemsize == SIZE else ""
    return f"expand_depthwise_k{k}s{s}_{layout}{cut.channels}_{suffix(dtype)}"


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
    n, channels, out_h, out_w = y.shape
    problem = Problem.of(x, y, window, stem)
    cut = cut or tiling(n, problem, device.attributes["multiprocessor_count"])
    if problem.size == SIZE:
        arguments, threads, shared = _arguments(x, y, window, stem, problem, cut)
        arguments.images, arguments.weight_depth = n, weight.shape[1]
        stem_of = "expand_depthwise"
    else:
        arguments, threads, shared = in_float.arguments(x, y, window, problem, cut)
        arguments.left = window.padding[1]
        arguments.weight_depth, arguments.padded_channels = weight.shape[1], constants.shape[1]
        stem_of = "expand_depthwise_float"
    arguments.depth, arguments.channels = problem.depth, channels
    arguments.h, arguments.w = problem.wide
    arguments.out_h, arguments.out_w = out_h, out_w
    arguments.top = window.padding[0]
    arguments.expand_act, arguments.act = expand_act, act
    arguments.chunks = Divisor.of(-(-channels // cut.channels))
    arguments.tiles = Divisor.of(tile_count(cut, (out_h, out_w)))
    arguments.column_tiles = Divisor.of(-(-out_w // cut.columns))
    arguments.tile_rows, arguments.tile_columns = cut.rows, cut.columns
    arguments.step_rows = cut.step_rows
    named = {
        "x": x, "weight": weight, "expand_bias": expand_bias, "constants": constants, "y": y,
        "sums": sums,
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    for name, tensor in given.items():
        setattr(arguments, name, tensor.address)
    name = kernel_name(cut, problem.k, problem.s, x.dtype, stem is not None)
    return Launch(
        kernel(device, stem_of, name),
        grid=(blocks(cut, n, channels, (out_h, out_w)),),
        block=(threads,),
        shared=shared,
        arguments=(arguments,),
        regions=tuple(
            tensor.region(name, "w" if name in ("y", "sums") else "r")
            for name, tensor in given.items()
        ),
        alive=tuple(given.values()),
    )


def _arguments(
    x: DeviceTensor, y: DeviceTensor, window: Window, stem: Window | None, p: Problem, cut: Tiling
) -> tuple[Arguments, int, int]:
    """What is of half precision alone; threads of a block and its shared memory."""
    g = Geometry.of(cut, p)
    arguments = Arguments(
        block_images=cut.of_images(cut.images).images,
        round_rows=g.round_rows, span=Divisor.of(g.span), units=Divisor.of(g.x_units),
        half_rows=g.half_rows, half_columns=g.half_columns, half_images=g.half_images,
        window_left=g.window_left, window_columns=g.window_columns, tap_shift=g.tap_shift,
        unit_bytes=g.unit_bytes, phase_bytes=g.phase_bytes, image_bytes=g.image_bytes,
        half_bytes=g.half_bytes, bias_offset=g.bias_offset, places_offset=g.places_offset,
        weight_offset=g.weight_offset, input_offset=g.input_offset, window_offset=g.window_offset,
        input_rows=g.input_rows, window_units=g.window_units, fold=g.fold,
    )  # fmt: skip
    arguments.x_image, arguments.x_row, arguments.x_pixel = x.map_strides
    arguments.y_image, arguments.y_row, arguments.y_pixel = y.map_strides
    warps = cut.channels // GROUP
    if stem is not None:
        warps = STEM_WARPS
        arguments.x_image, arguments.x_channel, arguments.x_row, arguments.x_pixel = x.strides
        arguments.channels_in = x.shape[1]
        arguments.image_h, arguments.image_w = x.shape[2:]
        arguments.stem_top = stem.padding[0]
        arguments.stem_left = stem.padding[1] + skips_first(stem)
        arguments.stem_offset = g.stem_offset
        n, channel, row, pixel = x.strides
        whole = all(stride * SIZE % 16 == 0 for stride in (n, channel, row))
        arguments.image_is_aligned = pixel == 1 and whole and x.address % 16 == 0
        arguments.image_units = Divisor.of(g.image_units)
        arguments.image_rows = Divisor.of(g.image_rows)
    return arguments, 32 * warps, g.shared
