"""The fat binaries that the build made of csrc/cuda: their kernels, and what ptxas said of them."""

from __future__ import annotations

import functools
import re
import struct
from pathlib import Path

from effnet_fast.errors import ArgumentError, BackendError
from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.resources import Resources, parse_resources

FOLDER = Path(__file__).parents[1] / "kernels"
STEMS = (
    "depthwise_conv",
    "expand_depthwise",
    "expand_depthwise_float",
    "fused_mbconv",
    "pointwise_conv",
    "squeeze_excite",
    "stem_conv",
    "swish",
)

# The container: a header, then entries of a header and a payload each, as nvcc 10 to 13 write it.
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, header bytes, bytes of all entries
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, .., header bytes, bytes, .., .., .., .., capability
_MAGIC, _PTX = 0xBA55ED50, 1
_KERNEL = re.compile(r"^\t*(?:\.visible )?\.entry (\w+)", re.MULTILINE)


def path(stem: str) -> Path:
    """Of an operator's fat binary.

    Raises
    ------
    BackendError
        It was not built.
    """
    found = FOLDER / f"{stem}.fatbin"
    if not found.is_file():
        raise BackendError(
            f"{found} is not there: the CUDA kernels were not built; they are by `pip install .` "
            "where nvcc 12.8 or newer is in $CUDA_HOME, the PATH or /usr/local/cuda"
        )
    return found


@functools.cache
def image(stem: str) -> bytes:
    """An operator's fat binary, for :meth:`Device.load`."""
    return path(stem).read_bytes()


@functools.cache
def kernels(stem: str) -> tuple[str, ...]:
    """The names of an operator's kernels."""
    return tuple(_sources(stem))


def archs(stem: str) -> tuple[str, ...]:
    """What there is machine code for: ``"sm_80"`` and so on."""
    _, cubins = _payloads(stem)
    return tuple(f"sm_{capability}" for capability in sorted(cubins))


def compiled(stem: str, name: str, capability: int) -> CompiledKernel:
    """A kernel for a capability, as compilers return it; its PTX is the kernel's alone.

    Raises
    ------
    BackendError
        There is no fat binary, or it has no machine code for that capability.
    ArgumentError
        There is no such kernel.
    """
    if name not in kernels(stem):
        raise ArgumentError(f"name is {name!r}; {stem} has: {', '.join(kernels(stem))}")
    _, cubins = _payloads(stem)
    if capability not in cubins:
        raise BackendError(
            f"{path(stem)} has code for {', '.join(archs(stem))}; not for sm_{capability}"
        )
    return CompiledKernel(
        name=name,
        language="cuda",
        capability=capability,
        ptx=_sources(stem)[name],
        cubin=cubins[capability],
        resources=resources(stem)[capability][name],
    )


@functools.cache
def resources(stem: str) -> dict[int, dict[str, Resources]]:
    """What ptxas gave to each kernel, by capability and name."""
    said: dict[int, list[str]] = {}
    capability = 0
    for line in path(stem).with_suffix(".ptxas").read_text().splitlines():
        if match := re.search(r"Compiling entry function '\w+' for 'sm_(\d+)'", line):
            capability = int(match[1])
        said.setdefault(capability, []).append(line)
    return {c: parse_resources("\n".join(lines)) for c, lines in said.items() if c}


@functools.cache
def _payloads(stem: str) -> tuple[str, dict[int, bytes]]:
    """The PTX, and machine code by capability."""
    data = image(stem)
    magic, _, at, size = _CONTAINER.unpack_from(data)
    if magic != _MAGIC or len(data) < at + size:
        raise BackendError(f"{path(stem)} is not a fat binary, or is cut off")
    ptx, cubins, end = "", {}, at + size
    while at < end:
        kind, _, header, size, *_, capability = _ENTRY.unpack_from(data, at)
        payload = data[at + header : at + header + size]
        if kind == _PTX:
            ptx = payload.partition(b"\0")[0].decode()
        else:
            cubins[capability] = payload
        at += header + size
    return ptx, cubins


@functools.cache
def _sources(stem: str) -> dict[str, str]:
    ptx, _ = _payloads(stem)
    return split(ptx)


def split(ptx: str) -> dict[str, str]:
    """The PTX of each kernel of nvcc's, with what the module declares before them all."""
    found = list(_KERNEL.finditer(ptx))
    ends = [*(match.start() for match in found[1:]), len(ptx)]
    head = ptx[: found[0].start()]
    return {
        match[1]: head + ptx[match.start() : end] for match, end in zip(found, ends, strict=True)
    }
