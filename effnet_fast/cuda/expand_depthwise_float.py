"""Tiles and launches of csrc/cuda/expand_depthwise_float.cu; expand_depthwise has the rest."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.expand_problem import PLANE, SHARED, Problem, Tiling
from effnet_fast.cuda.gemm import ROW_BYTES
from effnet_fast.gpu import cost
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Window

COLUMNS = 7  # outputs of a thread
THREADS = 192
PIXELS = 16  # of a warp's product
PLANES = (3, 6)
SIZE = 4  # bytes of an element


class Arguments(ctypes.Structure):
    """ExpandDepthwiseFloat of csrc/cuda/expand_depthwise_float.h."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("x", "weight", "expand_bias", "constants", "y", "sums")
        ),
        *((name, ctypes.c_int64) for name in ("x_image", "y_image")),
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
            )
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """What follows from a tiling: sizes and places in shared memory, in bytes."""

    span: int
    groups: int
    units: int
    input_rows: int
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
        units = -(-p.depth // 16) * SIZE
        tiles = -(-units * 16 // ROW_BYTES)
        input_rows = -(-cut.step_rows * span // PIXELS) * PIXELS
        # What is below the map is made with its last rows.
        room = cut.step_rows + min(p.bottom, p.k - 1)
        ring_rows = min(p.k - 1 + room, (cut.rows - 1) * p.s + p.k)
        plane_bytes = ring_columns * PLANE * SIZE
        bias = cut.planes * (p.k * p.k + 2) * PLANE * 4
        weight = -(-(bias + 4 * cut.channels) // 128) * 128
        inputs = weight + tiles * cut.channels * ROW_BYTES
        ring = inputs + tiles * input_rows * ROW_BYTES
        return cls(
            span, groups, units, input_rows, room, ring_rows, ring_columns, plane_bytes,
            bias, weight, inputs, ring, ring + ring_rows * cut.planes * plane_bytes,
        )  # fmt: skip


@functools.lru_cache(4096)
def _tilings(p: Problem) -> tuple[tuple[Tiling, Geometry], ...]:
    """Those that fit shared memory."""
    rows = sorted({-(-p.out[0] // n) for n in (1, 2, 3, 4, 6, 8, 12, 16)})
    columns = sorted({-(-p.out[1] // n) for n in range(1, 13)})
    steps = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    found = []
    for row, column, step, planes in itertools.product(rows, columns, steps, PLANES):
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
        product = cut.planes * (2 * 2 * 13 + 8) + 90 + -(-p.depth // 16) * 190 * cut.planes
        copies = g.input_rows * g.units / 32 * 30
        loads = (COLUMNS - 1) * p.s + p.k
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
                l2_bytes=(wide_rows * g.span + cut.channels) * p.depth * SIZE,
                alone=rests + 2000,
            ),
            cut,
        )


def arguments(
    x: DeviceTensor, y: DeviceTensor, window: Window, p: Problem, cut: Tiling
) -> tuple[Arguments, int, int]:
    """What is of float32 alone; threads of a block and its shared memory."""
    g = Geometry.of(cut, p)
    made = Arguments(
        span=Divisor.of(g.span), units=Divisor.of(g.units), planes=Divisor.of(cut.planes),
        ring_rows=Divisor.of(g.ring_rows), groups=Divisor.of(g.groups),
        input_rows=g.input_rows, room=g.room, ring_columns=g.ring_columns,
        ring_pitch=cut.planes * g.plane_bytes, plane_bytes=g.plane_bytes,
        bias_offset=g.bias_offset, weight_offset=g.weight_offset,
        input_offset=g.input_offset, ring_offset=g.ring_offset,
    )  # fmt: skip
    made.x_image, _, made.x_row, made.x_pixel = x.strides
    made.y_image, made.y_row, made.y_pixel = y.map_strides
    return made, THREADS, g.shared
