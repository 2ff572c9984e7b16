"""The host side of csrc/cuda/depthwise_conv.cu: which kernel, which tile, how many blocks."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu import cost
from effnet_fast.gpu.counts import SECTOR
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_depthwise as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

__all__ = ["Tiling", "launch", "pack", "tiles", "tiling", "total"]

PLANE = 16  # channels of a plane
SLOTS = 8  # threads of a warp with the same channels
MAX_THREADS = 256
RESIDENT_WARPS = 16  # of a multiprocessor, at 128 registers a thread
# Bytes of shared memory of a multiprocessor, on an sm_86, which has the least, and of a block.
MULTIPROCESSOR_SHARED = 100 << 10
SHARED = 48 << 10
PADDING = 1 << 10  # of that, for rows' pitches and what is static
# (k, stride) to the kernels' rows and columns of outputs of a thread.
VARIANTS = {
    (3, 1): ((2, 7), (1, 7), (2, 4)),
    (3, 2): ((1, 7), (1, 4)),
    (5, 1): ((2, 7), (1, 7), (2, 4)),
    (5, 2): ((1, 7), (1, 4)),
    (7, 1): ((1, 7),),
    (7, 2): ((1, 7),),
    (9, 1): ((1, 7),),
    (9, 2): ((1, 7),),
}
# Alignment of csrc/cuda/depthwise_conv.h.
ELEMENTS, QUADS, WHOLE = range(3)
# Activations that are computed where the outputs are, in registers.
FAST = (Act.NONE, Act.SWISH, Act.RELU, Act.RELU6)
# As in csrc/cuda/depthwise_conv.cu, for any other window.
ANY_PIXELS, ANY_CHANNELS, ANY_THREADS = 32, 32, 128


class Staging(ctypes.Structure):
    """Of csrc/cuda/depthwise_conv.h."""

    _fields_ = [
        ("units", Divisor),
        ("columns", Divisor),
        *(
            (name, ctypes.c_int32)
            for name in ("rows", "copies", "step_h", "step_w", "wrap_w", "to_step", "to_wrap")
        ),
        *((name, ctypes.c_int64) for name in ("from_step", "from_wrap")),
        *((name, ctypes.c_int32) for name in ("pitch", "plane_bytes")),
    ]


class Arguments(ctypes.Structure):
    """DepthwiseConv of csrc/cuda/depthwise_conv.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("x", "y", "constants", "sums")),
        *((name, ctypes.c_int64) for name in ("x_image", "x_row", "x_pixel")),
        *((name, ctypes.c_int64) for name in ("y_image", "y_row", "y_pixel", "y_down", "y_right")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "channels", "padded_channels", "h", "w", "out_h", "out_w",
                "kh", "kw", "stride_h", "stride_w", "dilation_h", "dilation_w", "top", "left",
                "act",
            )
        ),
        *((name, Divisor) for name in ("chunks", "tiles", "row_tiles", "column_tiles")),
        ("planes", Divisor),
        *((name, ctypes.c_int32) for name in ("tile_rows", "tile_columns")),
        ("tile_rows_or_columns", Divisor),
        ("rows_first", ctypes.c_int32),
        ("staging", Staging),
        *((name, ctypes.c_int32) for name in ("x_alignment", "y_alignment")),
    ]  # fmt: skip


@dataclass(frozen=True)
class Tiling:
    """How the outputs of a map are cut.

    Attributes
    ----------
    rows, columns : outputs of a thread.
    tile_rows, tile_columns : threads of a block for the same channels.
    planes : of 16 channels, of a block.
    row_tiles, column_tiles : of the map, or of a phase of a dilated one.
    tiles : of an image.
    rows_first : whether neighbouring threads are below each other.
    pitch : bytes from a staged row to the next.
    shared : bytes of dynamic shared memory.
    """

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    planes: int
    row_tiles: int
    column_tiles: int
    tiles: int
    rows_first: bool = False
    pitch: int = 0
    plane_bytes: int = 0
    shared: int = 0

    @property
    def warps(self) -> int:
        """Of a plane."""
        return -(-self.tile_rows * self.tile_columns // SLOTS)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.planes * self.warps


def tiles(device: Device, x: DeviceTensor, window: Window) -> int:
    """How many partial sums a launch writes for each channel of an image."""
    return tile_count(_tiling(device, x, window), window.output_size(*x.shape[2:]))


def launch(
    device: Device,
    x: DeviceTensor,
    constants: DeviceTensor,
    y: DeviceTensor,
    window: Window,
    act: Act,
    sums: DeviceTensor | None = None,
    cut: Tiling | None = None,
) -> Launch:
    """Y = act(depthwise(x) + bias), with the sums of each tile.

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
    cut : Tiling, optional
        Other than the one with the least modelled time.
    """
    cut = _tiling(device, x, window) if cut is None else cut
    n, c, h, w = x.shape
    out_h, out_w = y.shape[2:]
    (x_image, x_row, x_pixel), (y_image, y_row, y_pixel) = x.map_strides, y.map_strides
    top, left, _, _ = window.padding
    arguments = Arguments(
        x=x.address,
        y=y.address,
        constants=constants.address,
        sums=0 if sums is None else sums.address,
        x_image=x_image, x_row=x_row, x_pixel=x_pixel,
        y_image=y_image, y_row=y_row, y_pixel=y_pixel,
        channels=c,
        padded_channels=constants.shape[1],
        h=h, w=w, out_h=out_h, out_w=out_w,
        kh=window.kernel[0], kw=window.kernel[1],
        stride_h=window.stride[0], stride_w=window.stride[1],
        dilation_h=window.dilation[0], dilation_w=window.dilation[1],
        top=top, left=left,
        y_down=window.dilation[0] * y_row, y_right=window.dilation[1] * y_pixel,
        act=act,
        tiles=Divisor.of(tile_count(cut, (out_h, out_w))),
    )  # fmt: skip
    if cut is None:
        name = f"depthwise_conv_any_{suffix(x.dtype)}"
        chunks, block, shared = -(-c // ANY_CHANNELS), (ANY_THREADS,), 0
    else:
        k, s = window.kernel[0], window.stride[0]
        name = f"depthwise_conv_k{k}s{s}_{cut.rows}x{cut.columns}_{suffix(x.dtype)}"
        chunks, block = -(-c // (PLANE * cut.planes)), (32 * cut.warps, cut.planes)
        shared = cut.shared
        arguments.row_tiles = Divisor.of(cut.row_tiles)
        arguments.column_tiles = Divisor.of(cut.column_tiles)
        arguments.planes = Divisor.of(cut.planes)
        arguments.tile_rows, arguments.tile_columns = cut.tile_rows, cut.tile_columns
        inner = cut.tile_rows if cut.rows_first else cut.tile_columns
        arguments.tile_rows_or_columns = Divisor.of(inner)
        arguments.rows_first = cut.rows_first
        arguments.staging = _staging(cut, k, s, window.dilation, x)
        arguments.x_alignment = WHOLE if x.has_aligned_pixels(16) else _elements_or_quads(x)
        arguments.y_alignment = _elements_or_quads(y)
        if arguments.y_alignment == QUADS and y.has_aligned_pixels(SECTOR):
            arguments.y_alignment = WHOLE
        if arguments.y_alignment != WHOLE or act not in FAST:
            outputs = 4 * cut.rows * cut.columns * cut.tile_rows * cut.tile_columns * PLANE
            inputs = cut.planes * max(cut.plane_bytes, outputs)
            shared = cut.shared - cut.planes * cut.plane_bytes + inputs
    arguments.chunks = Divisor.of(chunks)
    regions = [x.region("x", "r"), constants.region("constants", "r"), y.region("y", "w")]
    if sums is not None:
        regions.append(sums.region("sums", "w"))
    return Launch(
        kernel(device, "depthwise_conv", name),
        grid=(n * chunks * arguments.tiles.divisor,),
        block=block,
        shared=shared,
        arguments=(arguments,),
        regions=tuple(regions),
        alive=(x, constants, y, sums),
    )


def total(device: Device, partial: DeviceTensor, sums: DeviceTensor) -> Launch:
    """Sums (N, C) of partial (N, tiles, C)."""
    n, tiles, c = partial.shape
    return Launch(
        kernel(device, "depthwise_conv", "depthwise_conv_total"),
        grid=(-(-n * c // MAX_THREADS),),
        block=(MAX_THREADS,),
        arguments=(partial, sums, np.int64(n * c), np.int32(c), np.int32(tiles)),
        regions=(partial.region("partial", "r"), sums.region("sums", "w")),
    )


def tile_count(cut: Tiling | None, out: tuple[int, int]) -> int:
    """Of an image with so many rows and columns of outputs."""
    return -(-out[0] * out[1] // ANY_PIXELS) if cut is None else cut.tiles


def _elements_or_quads(x: DeviceTensor) -> int:
    is_aligned = x.shape[1] % 4 == 0 and x.has_aligned_pixels(4 * x.dtype.itemsize)
    return QUADS if is_aligned else ELEMENTS


def _staging(cut: Tiling, k: int, s: int, dilation: tuple[int, int], x: DeviceTensor) -> Staging:
    rows = (cut.tile_rows * cut.rows - 1) * s + k
    columns = (cut.tile_columns * cut.columns - 1) * s + k
    _, x_row, x_pixel = x.map_strides
    size = x.dtype.itemsize
    units = cut.planes * PLANE * size // 16  # copies of a pixel
    step_rows, step_columns = divmod(cut.threads // units, columns)
    down, right = dilation[0] * x_row, dilation[1] * x_pixel
    return Staging(
        units=Divisor.of(units),
        columns=Divisor.of(columns),
        rows=rows,
        copies=rows * columns * units,
        step_h=step_rows * dilation[0],
        step_w=step_columns * dilation[1],
        wrap_w=columns * dilation[1],
        to_step=step_rows * cut.pitch + step_columns * PLANE * size,
        to_wrap=cut.pitch - columns * PLANE * size,
        from_step=step_rows * down + step_columns * right,
        from_wrap=down - columns * right,
        pitch=cut.pitch,
        plane_bytes=cut.plane_bytes,
    )


# ---- the tile ------------------------------------------------------------------------------------


def _tiling(device: Device, x: DeviceTensor, window: Window) -> Tiling | None:
    n, c, h, w = x.shape
    # Otherwise a chunk's pixels would begin and end within sectors of 32 bytes.
    whole = c * x.dtype.itemsize % SECTOR != 0 or not x.has_aligned_pixels(SECTOR)
    multiprocessors = device.attributes["multiprocessor_count"]
    return tiling(n, c, h, w, window, x.dtype.itemsize, multiprocessors, whole)


@functools.lru_cache(4096)
def tiling(
    n: int,
    c: int,
    h: int,
    w: int,
    window: Window,
    size: int,
    multiprocessors: int,
    whole: bool = False,
    variants: tuple[tuple[int, int], ...] | None = None,
) -> Tiling | None:
    """The tiling with the least modelled time.

    Parameters
    ----------
    n, c, h, w : int
        Of the input.
    window : Window
        With its padding.
    size : int
        Bytes of an element.
    multiprocessors : int
    whole : bool
        Whether a block should have all channels, or 128: pixels in a row are one run of memory
        then, of which the sectors at both ends alone are used in part.
    variants : tuple of (int, int), optional
        Rows and columns of a thread's outputs to choose from; all that there are by default.

    Returns
    -------
    Tiling or None
        None where no tiled kernel is for that window.
    """
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    if kh != kw or sh != sw or (kh, sh) not in VARIANTS or (sh > 1 and (dh, dw) != (1, 1)):
        return None
    out_h, out_w = window.output_size(h, w)
    top, left, _, _ = window.padding
    best = []
    high, wide = -(-out_h // dh), -(-out_w // dw)  # of a phase
    chosen = variants or VARIANTS[kh, sh]
    for cut in _candidates(chosen, kh, sh, size, c, high, wide, dh * dw, whole):
        fetched = _covered(cut.rows * cut.tile_rows, cut.row_tiles, kh, sh, top, h, dh)
        fetched *= _covered(cut.columns * cut.tile_columns, cut.column_tiles, kw, sw, left, w, dw)
        cost = _cost(cut, n, c, kh, sh, size, multiprocessors, fetched, h * w)
        best.append((cost, len(best), cut))
    # The bank conflicts of the cheapest alone are looked at: they are what takes long.
    placed = [(cost, _placed(cut, kh, sh, size)) for cost, _, cut in sorted(best)[:16]]
    return min(placed, key=lambda p: p[0] * p[1][0])[1][1]


def _candidates(
    variants: Iterable[tuple[int, int]],
    k: int,
    s: int,
    size: int,
    c: int,
    rows: int,
    columns: int,
    phases: int,
    whole: bool,
) -> Iterator[Tiling]:
    """Every cut of a map of `rows` x `columns` outputs; if `whole`, with the most planes."""
    needed = -(-c // PLANE)
    # Chunks of channels are as even as can be, too.
    planes = sorted({-(-needed // chunks) for chunks in range(-(-needed // 8), needed + 1)})
    found = 0
    for p, variant in itertools.product(reversed(planes), variants):
        if whole and found and p < found:
            return
        high, wide = (-(-size // own) for size, own in zip((rows, columns), variant, strict=True))
        # As even as can be: 14 rows of threads are cut into 7 + 7 and not into 8 + 6.
        row_tiles = sorted({-(-high // r) for r in range(1, high + 1)})
        column_tiles = sorted({-(-wide // r) for r in range(1, wide + 1)})
        for i, j in itertools.product(row_tiles, column_tiles):
            cut = Tiling(*variant, -(-high // i), -(-wide // j), p, i, j, i * j * phases)
            if cut.threads <= MAX_THREADS and _shared(cut, k, s, size) <= SHARED - PADDING:
                found = p
                yield cut


def _shared(cut: Tiling, k: int, s: int, size: int) -> int:
    """Bytes, without padding: of the constants, and of inputs or outputs."""
    rows, columns = cut.tile_rows * cut.rows, cut.tile_columns * cut.columns
    inputs = ((rows - 1) * s + k) * ((columns - 1) * s + k) * size
    return cut.planes * PLANE * ((k * k + 2) * 4 + max(inputs, rows * columns * 4))


def _covered(outputs: int, tiles: int, k: int, s: int, low: int, size: int, dilation: int) -> int:
    """Pixels along one side that the tiles stage, all together, without padding."""
    total = 0
    for tile, phase in itertools.product(range(tiles), range(dilation)):
        begin = phase - low + tile * outputs * s * dilation
        end = begin + ((outputs - 1) * s + k - 1) * dilation + 1
        inside = min(end, size) - max(begin, 0)
        total += max(0, -(-inside // dilation))
    return total


def cycles(
    cut: Tiling | None,
    n: int,
    c: int,
    out: tuple[int, int],
    window: Window,
    size: int,
    multiprocessors: int,
) -> float:
    """What a launch takes, modelled.

    Parameters
    ----------
    cut : Tiling or None
    n, c : int
        Images and channels.
    out : (int, int)
        Height and width of the output.
    window : Window
    size : int
        Bytes of an element.
    multiprocessors : int
    """
    k, s = window.kernel[0], window.stride[0]
    if cut is None:
        blocks = n * tile_count(None, out) * -(-c // ANY_CHANNELS)
        taps = window.kernel[0] * window.kernel[1]
        return cost.cycles(blocks, multiprocessors, ANY_PIXELS * (taps * 20 + 60))
    warps = cut.planes * cut.warps
    outputs = cut.tile_rows * cut.rows * cut.tile_columns * cut.columns * cut.planes * PLANE
    inputs = (cut.tile_rows * cut.rows - 1) * s + k, (cut.tile_columns * cut.columns - 1) * s + k
    return cost.cycles(
        n * cut.tiles * -(-c // (PLANE * cut.planes)),
        multiprocessors,
        warps * _instructions(cut, k, s, size),
        special=cost.SWISH_SPECIAL * outputs,
        l2_bytes=inputs[0] * inputs[1] * cut.planes * PLANE * size,
        alone=3000,
    )


def _instructions(cut: Tiling, k: int, s: int, size: int) -> float:
    """Of a warp: loads, conversions and products of the taps; activation and store; staging."""
    rows, columns = (cut.rows - 1) * s + k, (cut.columns - 1) * s + k
    outputs = cut.rows * cut.columns
    taps = rows * columns * (1 if size == 4 else 5) + k * k * cut.rows * (1 + 4 * cut.columns)
    staged = (cut.tile_rows * cut.rows - 1) * s + k, (cut.tile_columns * cut.columns - 1) * s + k
    copies = staged[0] * staged[1] * cut.planes * PLANE * size / 16 / cut.threads
    return taps + outputs * 32 + copies * 18 + 300


def _cost(
    cut: Tiling,
    n: int,
    c: int,
    k: int,
    s: int,
    size: int,
    multiprocessors: int,
    fetched: int,
    pixels: int,
) -> float:
    """Modelled cycles of a launch: of instructions or of L2, with what is idle at the end."""
    chunks = -(-c // (PLANE * cut.planes))
    blocks = n * cut.tiles * chunks
    instructions = _instructions(cut, k, s, size)
    warps = cut.planes * cut.warps
    # Multiprocessors take turns with blocks; one needs some 6 warps to be busy.
    own = -(-blocks // multiprocessors)
    fitting = MULTIPROCESSOR_SHARED // (_shared(cut, k, s, size) + PADDING)
    resident = min(min(own, fitting) * warps, RESIDENT_WARPS)
    issue = own * warps * instructions / 4 * max(1.0, 6 / resident)
    # What is done for nothing, as threads without outputs, slows nothing down here but others.
    issue += 0.1 * blocks * warps * instructions / 4 / multiprocessors
    # 64 bytes a cycle and multiprocessor are what an H100's L2 gives.
    l2 = n * chunks * cut.planes * PLANE * size * fetched / multiprocessors / 48
    cost = max(issue, l2) + 0.5 * min(issue, l2)
    if blocks < 2 * multiprocessors:
        cost *= 1.5
    if s == 1 and fetched > 1.35 * pixels:
        cost *= 1.5
    return cost


def _placed(cut: Tiling, k: int, s: int, size: int) -> tuple[float, Tiling]:
    """The tiling with the pitch and the order of threads that have the fewest bank conflicts.

    Returns
    -------
    float
        Wavefronts of a warp's loads, for each that there has to be.
    Tiling
    """
    columns = (cut.tile_columns * cut.columns - 1) * s + k
    rows = (cut.tile_rows * cut.rows - 1) * s + k
    pixel = PLANE * size
    choices = []
    for rows_first, pad in itertools.product((False, True), range(0, 128, 16)):
        pitch = columns * pixel + pad
        ratio = _conflicts(cut, rows_first, cut.rows * s * pitch, cut.columns * s * pixel, pixel)
        choices.append((ratio, pitch, rows_first))
    ratio, pitch, rows_first = min(choices)
    pads = range(0, 128 if cut.planes > 1 else 16, 16)
    copies, pad = min((_copy_conflicts(cut.planes, rows * pitch + pad, pixel), pad) for pad in pads)
    constants = cut.planes * (k * k + 2) * PLANE * 4
    plane_bytes = rows * pitch + pad
    # A thread's loads are many times its copies.
    return ratio + 0.1 * copies, dataclasses.replace(
        cut,
        rows_first=rows_first,
        pitch=pitch,
        plane_bytes=plane_bytes,
        shared=constants + cut.planes * plane_bytes,
    )


def _copy_conflicts(planes: int, plane_bytes: int, pixel: int) -> float:
    """As :func:`_conflicts`, of the copies of 16 bytes to the planes."""
    units = planes * pixel // 16
    wavefronts = groups = 0
    for begin in range(0, 8 * units, 8):
        banks = []
        for i in range(begin, begin + 8):
            column, unit = divmod(i, units)
            plane, part = divmod(unit, pixel // 16)
            banks.append((plane * plane_bytes + column * pixel + part * 16) // 16 % 8)
        wavefronts += max(map(banks.count, banks))
        groups += 1
    return wavefronts / groups


def _conflicts(cut: Tiling, rows_first: bool, down: int, right: int, pixel: int) -> float:
    """Of the loads of a plane's warps; a wavefront has 128 bytes of 32 banks."""
    together = 128 // pixel
    outputs = cut.tile_rows * cut.tile_columns
    wavefronts = groups = 0
    for begin in range(0, min(outputs, 64), together):
        starts = set()
        for i in range(begin, min(begin + together, outputs)):
            if rows_first:
                starts.add(i % cut.tile_rows * down + i // cut.tile_rows * right)
            else:
                starts.add(i // cut.tile_columns * down + i % cut.tile_columns * right)
        banks = [(start // 8 + i) % 16 for start in starts for i in range(pixel // 8)]
        wavefronts += max(map(banks.count, set(banks)))
        groups += 1
    return wavefronts / groups
