"""Every GPU kernel of the package, with how it is compiled and an example of its launch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from effnet_fast.cuda import expand_depthwise, fused_mbconv, pointwise_conv, squeeze_excite
from effnet_fast.cuda.depthwise_conv import VARIANTS
from effnet_fast.cuda.kernels import suffix
from effnet_fast.errors import ArgumentError, BackendError, CompileError, GpuError
from effnet_fast.gpu import fat_binary
from effnet_fast.gpu.compiled import LANGUAGES, CompiledKernel
from effnet_fast.gpu.counts import Counts, table
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.resources import CAPABILITIES, Occupancy
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import TYPES
from effnet_fast.network import Act, Window
from effnet_fast.ops.gpu_step import host_side

DTYPES = tuple(TYPES)
# The PTX machine's device for kernels of a capability. It has none for 90 and 100: Triton's kernels
# for them are of those architectures alone, with instructions that the machine does not execute.
MACHINE = {80: 0, 86: 1, 89: 1, 120: 2}


@dataclass(frozen=True)
class CatalogueEntry:
    """A kernel in one language.

    Attributes
    ----------
    name : the operator's stem and what the kernel is specialised for: ``"swish_float16"``.
    compile : the kernel for a capability.
    example : a launch of the compiled kernel on a device, as a layer of EfficientNet-B0 has it.
    """

    name: str
    language: str
    compile: Callable[[int], CompiledKernel]
    example: Callable[[Device, CompiledKernel], Launch]


# ---- examples: layers of EfficientNet-B0 at 224 pixels, one image --------------------------------


# Cut as at this batch for the multiprocessors of an H100.
BATCH, MULTIPROCESSORS = 8, 132


def _operand(device: Device, shape: tuple[int, ...], dtype: torch.dtype) -> DeviceTensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    return DeviceTensor.upload(device, x.contiguous(memory_format=_format(shape)))


def _output(device: Device, shape: tuple[int, ...], dtype: torch.dtype) -> DeviceTensor:
    like = torch.empty(shape, dtype=dtype, device="meta", memory_format=_format(shape))
    return DeviceTensor.empty(device, shape, like.stride(), dtype)


def _format(shape: tuple[int, ...]) -> torch.memory_format:
    return torch.channels_last if len(shape) == 4 else torch.contiguous_format


# (k, stride): channels, height and width of the input. B0 has no 7 and 9: as MixNet-S has them.
DEPTHWISE = {
    (3, 1): (144, 56), (3, 2): (96, 112), (5, 1): (240, 28), (5, 2): (144, 56),
    (7, 1): (120, 14), (7, 2): (40, 56), (9, 1): (120, 14), (9, 2): (200, 14),
}  # fmt: skip


def _depthwise_example(
    language: str,
    dtype: torch.dtype,
    k: int,
    stride: int,
    variant: tuple[int, int] | None,
    less: int = 0,
) -> Callable[[Device, CompiledKernel], Launch]:
    """With so many channels less than the layer has."""

    def example(device: Device, _: CompiledKernel) -> Launch:
        side = host_side(language, "depthwise_conv")
        c, size = DEPTHWISE.get((k, stride), (64, 28))
        c -= less
        window = Window((k, k), (stride, stride), (1, 1), (k // 2,) * 4)
        x = _operand(device, (1, c, size, size), dtype)
        y = _output(device, (1, c, *window.output_size(size, size)), dtype)
        constants = side.pack(torch.randn(c, 1, k, k) / k, torch.randn(c))
        options = {}
        if variant is not None:
            options["cut"] = side.tiling(
                BATCH,
                c,
                size,
                size,
                window,
                dtype.itemsize,
                MULTIPROCESSORS,
                c % 16 != 0,
                (variant,),
            )
            tiles = options["cut"].tiles
        else:
            tiles = side.tiles(device, x, window)
        sums = _output(device, (1, tiles, c), torch.float32)
        uploaded = DeviceTensor.upload(device, constants)
        return side.launch(device, x, uploaded, y, window, Act.SWISH, sums, **options)

    return example


def _total_example(language: str, device: Device, _: CompiledKernel) -> Launch:
    partial = _operand(device, (1, 16, 144), torch.float32)
    sums = _output(device, (1, 144), torch.float32)
    return host_side(language, "depthwise_conv").total(device, partial, sums)


def _squeeze_example(
    language: str, dtype: torch.dtype, images: int, squeezed: int = 20
) -> Callable[[Device, CompiledKernel], Launch]:
    def example(device: Device, _: CompiledKernel) -> Launch:
        side, c = host_side(language, "squeeze_excite"), 24 * squeezed
        # As many images as it takes to have so many in a block.
        n = 1 if images == 1 else images * device.attributes["multiprocessor_count"]
        uploaded = _layers(device, side, c, squeezed, dtype)
        sums = _operand(device, (n, 2, c), torch.float32)
        gate = _output(device, (n, c), dtype)
        return side.launch(device, sums, 196, uploaded, gate, Act.SWISH, Act.SIGMOID)

    return example


# As B0 has them at 224 pixels: cin, cout, size, what is fused.
POINTWISE = {
    "expand": (24, 144, 56, ("act",)),
    "project": (240, 40, 28, ("gate", "residual")),
    "head": (320, 1280, 7, ("act", "sums")),
}


def _layers(
    device: Device, side: Any, c: int, squeezed: int, dtype: torch.dtype
) -> tuple[DeviceTensor, ...]:
    """Constants of squeeze-and-excite."""
    shapes = (squeezed, c), (squeezed,), (c, squeezed), (c,)
    packed = side.pack(*(torch.randn(shape).to(dtype) for shape in shapes))
    return tuple(DeviceTensor.upload(device, w) for w in packed)


def _pointwise_cut(layer: str, dtype: torch.dtype) -> Any:
    cin, cout, size, _ = POINTWISE[layer]
    side = host_side("triton", "pointwise_conv")
    return side.tiling(BATCH, size * size, cin, cout, dtype, MULTIPROCESSORS)


def _packed(
    device: Device, side: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[DeviceTensor, ...]:
    """Constants of a dense convolution."""
    constants = side.pack(torch.randn(shape).to(dtype), torch.randn(shape[0]))
    return tuple(DeviceTensor.upload(device, t) for t in constants)


def _pointwise_example(
    language: str, layer: str, dtype: torch.dtype, cut: Any = None
) -> Callable[[Device, CompiledKernel], Launch]:
    def example(device: Device, _: CompiledKernel) -> Launch:
        side = host_side(language, "pointwise_conv")
        tile = cut or _pointwise_cut(layer, dtype)
        cin, cout, size, fused = POINTWISE[layer]
        x = _operand(device, (1, cin, size, size), dtype)
        packed = _packed(device, side, (cout, cin), dtype)
        y = gate = residual = sums = None
        if "gate" in fused:
            gate = _operand(device, (1, cin), dtype)
        if "residual" in fused:
            residual = _operand(device, (1, cout, size, size), dtype)
        if "sums" in fused:
            sums = _output(device, (1, side.tiles(device, x, cout, tile), cout), torch.float32)
        else:
            y = _output(device, (1, cout, size, size), dtype)
        act = Act.SWISH if "act" in fused else Act.NONE
        return side.launch(device, x, packed, y, act, gate, residual, sums, tile)

    return example


def _excited_example(dtype: torch.dtype) -> Callable[[Device, CompiledKernel], Launch]:
    def example(device: Device, _: CompiledKernel) -> Launch:
        cin, cout, size, _ = POINTWISE["project"]
        x, residual = (_operand(device, (1, c, size, size), dtype) for c in (cin, cout))
        sums = _operand(device, (1, 2, cin), torch.float32)
        layers = _layers(device, squeeze_excite, cin, cin // 24, dtype)
        gate = squeeze_excite.Excitation(sums, size * size, layers, Act.SWISH, Act.SIGMOID)
        packed = _packed(device, pointwise_conv, (cout, cin), dtype)
        y = _output(device, (1, cout, size, size), dtype)
        return pointwise_conv.launch(device, x, packed, y, Act.NONE, gate, residual)

    return example


# As B0 has them: cin, size of the input; the stem's 3 channels and 224 pixels.
EXPAND = {(3, 1): (24, 56), (3, 2): (16, 112), (5, 1): (40, 28), (5, 2): (24, 56)}
EXPAND_NARROW = {"block16": (80, 14), "row16": (112, 14), "row8": (192, 7)}


def _expand_example(
    dtype: torch.dtype, k: int, stride: int, cut: expand_depthwise.Tiling
) -> Callable[[Device, CompiledKernel], Launch]:
    """``cut`` is of the kernel's layout and planes."""

    def example(device: Device, _: CompiledKernel) -> Launch:
        cin, size = EXPAND_NARROW.get(cut.layout, EXPAND[k, stride])
        window = Window((k, k), (stride, stride), (1, 1), (k // 2,) * 4)
        x = _operand(device, (1, cin, size, size), dtype)
        return _expand_launch(device, x, (6 * cin, cin, 1, 1), window, cut.planes)

    return example


def _stem_depthwise_example(dtype: torch.dtype) -> Callable[[Device, CompiledKernel], Launch]:
    def example(device: Device, _: CompiledKernel) -> Launch:
        window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
        x = DeviceTensor.upload(device, torch.randn(1, 3, 224, 224).to(dtype))
        stem = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
        return _expand_launch(device, x, (32, 3, 3, 3), window, 2, stem)

    return example


def _expand_launch(
    device: Device,
    x: DeviceTensor,
    weight: tuple[int, ...],
    window: Window,
    planes: int,
    stem: Window | None = None,
) -> Launch:
    side, channels, k = expand_depthwise, weight[0], window.kernel[0]
    wide = x.shape[2:] if stem is None else stem.output_size(*x.shape[2:])
    y = _output(device, (1, channels, *window.output_size(*wide)), x.dtype)
    problem = side.Problem.of(x, y, window, stem)
    found = side.tilings(BATCH, problem, MULTIPROCESSORS)
    _, cut = min((pair for pair in found if pair[1].planes == planes), key=lambda pair: pair[0])
    constants = side.pack(
        torch.randn(weight).to(x.dtype), torch.randn(channels),
        torch.randn(channels, 1, k, k) / k, torch.randn(channels), stem,
    )  # fmt: skip
    packed = tuple(DeviceTensor.upload(device, t) for t in constants)
    sums = _output(device, (1, side.tile_count(cut, y.shape[2:]), channels), torch.float32)
    return side.launch(device, x, packed, y, window, Act.SWISH, Act.SWISH, sums, stem, cut)


def _mean_example(language: str, dtype: torch.dtype, device: Device, _: CompiledKernel) -> Launch:
    sums = _operand(device, (1, 2, 1280), torch.float32)
    y = _output(device, (1, 1280), dtype)
    return host_side(language, "pointwise_conv").mean(device, sums, y, 49)


def _stem_example(
    language: str, dtype: torch.dtype, channels: int = 32
) -> Callable[[Device, CompiledKernel], Launch]:
    def example(device: Device, _: CompiledKernel) -> Launch:
        window = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
        x = DeviceTensor.upload(device, torch.randn(1, 3, 224, 224).to(dtype))
        side = host_side(language, "stem_conv")
        packed = _packed(device, side, (channels, 3, 3, 3), dtype)
        y = _output(device, (1, channels, 112, 112), dtype)
        return side.launch(device, x, packed, y, window, Act.SWISH)

    return example


def _fused_example(
    language: str, dtype: torch.dtype, project: int | None, cut: Any = None
) -> Callable[[Device, CompiledKernel], Launch]:
    """A block of EfficientNetV2 with 48 channels, at 28 pixels."""

    def example(device: Device, _: CompiledKernel) -> Launch:
        side, window = host_side(language, "fused_mbconv"), Window((3, 3), padding=(1, 1, 1, 1))
        x = _operand(device, (1, 48, 28, 28), dtype)
        first = torch.randn(192, 48, 3, 3).to(dtype) / 20, torch.randn(192)
        last = (None, None)
        if project is not None:
            last = torch.randn(project, 192, 1, 1).to(dtype), torch.randn(project)
        packed = tuple(
            None if t is None else DeviceTensor.upload(device, t) for t in side.pack(*first, *last)
        )
        y = _output(device, (1, project or 192, 28, 28), dtype)
        options = {} if cut is None else {"cut": cut}
        return side.launch(device, x, packed, y, window, Act.SWISH, **options)

    return example


def _swish_example(language: str, dtype: torch.dtype) -> Callable[[Device, CompiledKernel], Launch]:
    def example(device: Device, _: CompiledKernel) -> Launch:
        shape = (1, 144, 56, 56)
        x, y = _operand(device, shape, dtype), _output(device, shape, dtype)
        return host_side(language, "swish").launch(device, x, y, Act.SWISH)

    return example


# ---- CUDA ----------------------------------------------------------------------------------------


def _cuda() -> Iterator[CatalogueEntry]:
    """The kernels of the fat binaries, which need not be there."""
    for dtype in DTYPES:
        for (k, s), variants in VARIANTS.items():
            for variant in variants:
                name = f"depthwise_conv_k{k}s{s}_{variant[0]}x{variant[1]}_{suffix(dtype)}"
                example = _depthwise_example("cuda", dtype, k, s, variant)
                yield _cuda_entry("depthwise_conv", name, example)
        name = f"depthwise_conv_any_{suffix(dtype)}"
        yield _cuda_entry("depthwise_conv", name, _depthwise_example("cuda", dtype, 3, 3, None))
        for images in (1, 2, 4):
            name = f"squeeze_excite_{images}_{suffix(dtype)}"
            example = _squeeze_example("cuda", dtype, images)
            yield _cuda_entry("squeeze_excite", name, example)
        stem = "expand_depthwise" if dtype.itemsize == 2 else "expand_depthwise_float"
        for k, s, layout, planes in expand_depthwise.variants(dtype):
            cut = expand_depthwise.Tiling(1, 1, 1, planes, layout)
            name = expand_depthwise.kernel_name(cut, k, s, dtype)
            yield _cuda_entry(stem, name, _expand_example(dtype, k, s, cut))
        if dtype != torch.float32:
            name = f"stem_depthwise_k3s1_{suffix(dtype)}"
            yield _cuda_entry("expand_depthwise", name, _stem_depthwise_example(dtype))
        for channels in (32, 64):
            name = f"stem_conv_128x{channels}_{suffix(dtype)}"
            yield _cuda_entry("stem_conv", name, _stem_example("cuda", dtype, channels))
        for cut in fused_mbconv.VARIANTS:
            name = f"fused_mbconv_{cut.m}x{cut.n}_{suffix(dtype)}"
            yield _cuda_entry("fused_mbconv", name, _fused_example("cuda", dtype, None, cut))
        for cut in fused_mbconv.PROJECTIONS:
            name = f"fused_mbconv_project_{cut.m}x{cut.n}_{suffix(dtype)}"
            example = _fused_example("cuda", dtype, cut.n - 16)
            yield _cuda_entry("fused_mbconv", name, example)
        for tile, gated in itertools.product(pointwise_conv.variants(dtype), (False, True)):
            name = f"pointwise_conv{'_gated' * gated}_{tile.m}x{tile.n}_{suffix(dtype)}"
            layer = "project" if gated else "expand"
            example = _pointwise_example("cuda", layer, dtype, tile)
            yield _cuda_entry("pointwise_conv", name, example)
        cut = pointwise_conv.EXCITED
        name = f"pointwise_conv_excited_{cut.m}x{cut.n}_{suffix(dtype)}"
        yield _cuda_entry("pointwise_conv", name, _excited_example(dtype))
        name = f"pointwise_conv_mean_{suffix(dtype)}"
        example = functools.partial(_mean_example, "cuda", dtype)
        yield _cuda_entry("pointwise_conv", name, example)
        name = f"swish_{suffix(dtype)}"
        yield _cuda_entry("swish", name, _swish_example("cuda", dtype))
    yield _cuda_entry(
        "depthwise_conv", "depthwise_conv_total", functools.partial(_total_example, "cuda")
    )


def _cuda_entry(stem: str, name: str, example: Callable) -> CatalogueEntry:
    compile_ = functools.partial(fat_binary.compiled, stem, name)
    return CatalogueEntry(name, "cuda", compile_, example)


# ---- Triton --------------------------------------------------------------------------------------


# Specialised at plan time for what a network has. Here: with swish, for every window of the CUDA
# kernels, and what differs most from those.
def _triton() -> Iterator[CatalogueEntry]:
    for dtype in DTYPES:
        for k, s in VARIANTS:
            name = f"depthwise_conv_k{k}s{s}_{suffix(dtype)}"
            window = ((k, k), (s, s), (1, 1))
            example = _depthwise_example("triton", dtype, k, s, None)
            arguments = (dtype, *window, Act.SWISH, True, True)
            yield _triton_entry("depthwise_conv", name, arguments, example)
        name = f"depthwise_conv_unaligned_{suffix(dtype)}"
        example = _depthwise_example("triton", dtype, 5, 1, None, less=3)
        arguments = (dtype, (5, 5), (1, 1), (1, 1), Act.SWISH, True, False)
        yield _triton_entry("depthwise_conv", name, arguments, example)
        for squeezed in (32, 256):
            name = f"squeeze_excite_{squeezed}_{suffix(dtype)}"
            example = _squeeze_example("triton", dtype, 1, squeezed - 12)
            arguments = (dtype, squeezed, Act.SWISH, Act.SIGMOID, True, True, True)
            yield _triton_entry("squeeze_excite", name, arguments, example)
        name = f"swish_{suffix(dtype)}"
        arguments = (dtype, Act.SWISH, True)
        yield _triton_entry("swish", name, arguments, _swish_example("triton", dtype))
        for layer, (*_, fused) in POINTWISE.items():
            name = f"pointwise_conv_{layer}_{suffix(dtype)}"
            yield _pointwise_entry(name, layer, dtype, fused)
        name = f"stem_conv_{suffix(dtype)}"
        yield _stem_entry(name, dtype)
        for project in (None, 48):
            kind = "_project" if project else ""
            yield _fused_entry(f"fused_mbconv{kind}_{suffix(dtype)}", dtype, project)
        name = f"pointwise_conv_mean_{suffix(dtype)}"
        example = functools.partial(_mean_example, "triton", dtype)
        yield _triton_entry("pointwise_conv", name, (dtype,), example, "compiled_mean")
    example = functools.partial(_total_example, "triton")
    yield _triton_entry("depthwise_conv", "depthwise_conv_total", (), example, "compiled_total")


def _stem_entry(name: str, dtype: torch.dtype) -> CatalogueEntry:
    def compile_(capability: int) -> CompiledKernel:
        side = host_side("triton", "stem_conv")
        fused = (Act.SWISH, True, True, side.block(32))
        return side.compiled(capability, dtype, (3, 3), (2, 2), *fused)

    return CatalogueEntry(name, "triton", compile_, _stem_example("triton", dtype))


def _fused_entry(name: str, dtype: torch.dtype, project: int | None) -> CatalogueEntry:
    def compile_(capability: int) -> CompiledKernel:
        side = host_side("triton", "fused_mbconv")
        fusion = side.Fusion(
            Act.SWISH, True, Act.NONE if project else None, project is not None, False, True, True
        )
        cut = side.tiling(48, project or 192, project is not None, dtype)
        return side.compiled(capability, dtype, ((3, 3), (1, 1), (1, 1)), cut, fusion)

    return CatalogueEntry(name, "triton", compile_, _fused_example("triton", dtype, project))


def _pointwise_entry(
    name: str, layer: str, dtype: torch.dtype, fused: tuple[str, ...]
) -> CatalogueEntry:
    def compile_(capability: int) -> CompiledKernel:
        side = host_side("triton", "pointwise_conv")
        fusion = side.Fusion(
            Act.SWISH if "act" in fused else Act.NONE,
            True,
            *(what in fused for what in ("gate", "residual", "sums")),
            aligned_in=True,
            aligned_out=True,
        )
        return side.compiled(capability, dtype, _pointwise_cut(layer, dtype), fusion)

    return CatalogueEntry(name, "triton", compile_, _pointwise_example("triton", layer, dtype))


def _triton_entry(
    stem: str,
    name: str,
    arguments: tuple[Any, ...],
    example: Callable[[Device, CompiledKernel], Launch],
    function: str = "compiled",
) -> CatalogueEntry:
    def compile_(capability: int) -> CompiledKernel:
        return getattr(host_side("triton", stem), function)(capability, *arguments)

    return CatalogueEntry(name, "triton", compile_, example)


CATALOGUE: tuple[CatalogueEntry, ...] = (*_cuda(), *_triton())


# ---- the survey ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A kernel on one architecture.

    Attributes
    ----------
    kernel : None when it was not compiled; ``note`` says why.
    occupancy : with the largest block that the kernel allows.
    counts : of the example on the PTX machine; None when it was not run; ``note`` says why.
    failed : whether ``note`` is a fault of the kernel, not of what is installed here.
    """

    name: str
    language: str
    capability: int
    kernel: CompiledKernel | None = None
    occupancy: Occupancy | None = None
    counts: Counts | None = None
    note: str = ""
    failed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the kernel's resources in place of its code."""
        result = {"name": self.name, "language": self.language, "arch": f"sm_{self.capability}"}
        if self.kernel is not None:
            result |= asdict(self.kernel.resources) | {
                "dynamic_shared": self.kernel.dynamic_shared,
                "threads": self.kernel.entry.max_threads,
                "occupancy": asdict(self.occupancy),
            }
        counts = None if self.counts is None else self.counts.to_dict()
        return result | {"counts": counts, "note": self.note, "failed": self.failed}


def select(pattern: str = "*", languages: Iterable[str] = LANGUAGES) -> list[CatalogueEntry]:
    """The entries whose names match a pattern such as ``"swish_*"``.

    Raises
    ------
    ArgumentError
        There are none.
    """
    entries = [e for e in CATALOGUE if e.language in languages and fnmatchcase(e.name, pattern)]
    if not entries:
        raise ArgumentError(
            f"pattern is {pattern!r}, which no kernel's name matches; accepted: one of "
            f"{', '.join(sorted({e.name for e in CATALOGUE}))}, or one like 'swish_*'"
        )
    return entries


def survey(
    entries: Iterable[CatalogueEntry],
    capabilities: Sequence[int] = CAPABILITIES,
    counts: bool = True,
) -> Iterator[Row]:
    """Compile kernels for architectures, and run their examples on the PTX machine.

    Parameters
    ----------
    entries : iterable of CatalogueEntry
    capabilities : sequence of int
    counts : bool
        Whether to run them.

    Yields
    ------
    Row
        One for each kernel and architecture, also where something is missing.
    """
    for entry in entries:
        for capability in capabilities:
            row = functools.partial(Row, entry.name, entry.language, capability)
            try:
                kernel = entry.compile(capability)
            except (BackendError, CompileError) as error:
                yield row(note=str(error), failed=isinstance(error, CompileError))
                continue
            row = functools.partial(row, kernel, kernel.occupancy(kernel.entry.max_threads))
            if not counts:
                yield row()
                continue
            try:
                yield row(run_example(entry, kernel))
            except (BackendError, GpuError) as error:
                yield row(note=str(error), failed=isinstance(error, GpuError))


def run_example(entry: CatalogueEntry, kernel: CompiledKernel) -> Counts:
    """Run a kernel's example on the PTX machine.

    Raises
    ------
    BackendError
        The kernel is compiled for a capability that the machine has no device for.
    GpuError
        The kernel did something wrong.
    """
    if kernel.capability not in MACHINE:
        raise BackendError(f"not run: the PTX machine has no sm_{kernel.capability}")
    with Device("ptx", MACHINE[kernel.capability]) as device:
        device.take_counts()
        device.launch(entry.example(device, kernel))
        device.synchronize()
        (counted,) = device.take_counts()
    return Counts.parse(counted)


def describe(rows: Iterable[Row]) -> str:
    """The rows as a table for people."""
    head = (
        "kernel", "language", "arch", "registers", "spills", "shared", "threads", "occupancy",
        "limited by", "warp instr.", "lanes", "used", "L2 bytes", "DRAM bytes", "note",
    )  # fmt: skip
    cells = [_cells(row) for row in rows]
    wanted = [i for i in range(len(head)) if i < 3 or any(row[i] for row in cells)]
    lines = [[row[i] for i in wanted] for row in (head, *cells)]
    texts = ("kernel", "language", "arch", "limited by", "note")
    return "\n".join(table(lines, left=[i for i, w in enumerate(wanted) if head[w] in texts]))


def _cells(row: Row) -> tuple[str, ...]:
    compiled, counted = ("",) * 6, ("",) * 5
    if row.kernel is not None:
        used = row.kernel.resources
        compiled = (
            str(used.registers),
            f"{used.spill_stores + used.spill_loads:,}",
            f"{used.static_shared + row.kernel.dynamic_shared:,}",
            str(row.kernel.entry.max_threads),
            f"{100 * row.occupancy.fraction:.0f} %",
            ", ".join(row.occupancy.limiters),
        )
    if row.counts is not None:
        traffic = row.counts.traffic
        counted = (
            f"{row.counts.warp_instructions:,}",
            f"{row.counts.average_lanes:.1f}",
            f"{100 * traffic.used_share:.1f} %",
            f"{traffic.l2_bytes:,}",
            f"{traffic.dram_bytes:,}",
        )
    arch = f"sm_{row.capability}"
    return (row.name, row.language, arch, *compiled, *counted, row.note)
