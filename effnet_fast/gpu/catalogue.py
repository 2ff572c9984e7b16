"""Every GPU kernel of the package, with how it is compiled and an example of its launch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from effnet_fast.errors import ArgumentError, BackendError, CompileError, GpuError
from effnet_fast.gpu.compiled import LANGUAGES, CompiledKernel
from effnet_fast.gpu.counts import Counts, table
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.nvcc import compile_cuda
from effnet_fast.gpu.resources import CAPABILITIES, Occupancy
from effnet_fast.gpu.triton_compile import compile_triton, import_triton, launch_arguments

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Of the PTX machine's devices, by their capability; it runs nothing newer.
MACHINE = {80: 0, 89: 1}


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


def cuda_source(stem: str) -> Path:
    """The file of an operator's CUDA kernels.

    Raises
    ------
    BackendError
        The package is installed without its sources.
    """
    path = Path(__file__).parents[2] / "csrc" / "cuda" / f"{stem}.cu"
    if not path.is_file():
        raise BackendError(
            f"{path} is not there: CUDA kernels are compiled from a source checkout, installed "
            "with `pip install --editable .`"
        )
    return path


# ---- swish ---------------------------------------------------------------------------------------


def _swish_cuda(name: str, capability: int) -> CompiledKernel:
    return compile_cuda(cuda_source("swish"), capability, names=[name])[name]


def _swish_triton(dtype: torch.dtype, capability: int) -> CompiledKernel:
    import_triton()
    from effnet_fast.triton.swish import swish_kernel

    pointer = "*" + DTYPES[dtype]
    return compile_triton(
        swish_kernel,
        {"x_ptr": pointer, "y_ptr": pointer, "n": "i64"},
        {"BLOCK": 128 * 16 // dtype.itemsize},  # one 16-byte access for each thread
        capability,
        divisible=("x_ptr", "y_ptr", "n"),
    )


def _swish_example(dtype: torch.dtype, device: Device, kernel: CompiledKernel) -> Launch:
    n = 56 * 56 * 24  # the first map that B0 has at that size
    x = device.upload(torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype))
    y = device.empty(x.bytes)
    arguments = (x, y, n)
    if kernel.language == "triton":
        arguments = launch_arguments(kernel, {"x_ptr": x, "y_ptr": y, "n": n})
    threads = kernel.entry.max_threads
    return Launch(
        kernel.load(device),
        grid=(-(-x.bytes // (16 * threads)),),
        block=(threads,),
        shared=kernel.dynamic_shared,
        arguments=arguments,
        regions=(x.region("x", "r"), y.region("y", "w")),
    )


def _swish() -> Iterator[CatalogueEntry]:
    for dtype in DTYPES:
        name = f"swish_{str(dtype).removeprefix('torch.')}"
        example = functools.partial(_swish_example, dtype)
        yield CatalogueEntry(name, "cuda", functools.partial(_swish_cuda, name), example)
        yield CatalogueEntry(name, "triton", functools.partial(_swish_triton, dtype), example)


CATALOGUE: tuple[CatalogueEntry, ...] = (*_swish(),)


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
        The kernel is compiled for a capability that the machine has not.
    GpuError
        The kernel did something wrong.
    """
    able = [c for c in MACHINE if c >= kernel.capability]
    if not able:
        raise BackendError(f"not run: newer than the PTX machine's sm_{max(MACHINE)}")
    with Device("ptx", MACHINE[min(able)]) as device:
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
