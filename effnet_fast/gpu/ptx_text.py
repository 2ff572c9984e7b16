"""What PTX says of its kernels: parameters, block sizes, shared memory."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from effnet_fast.errors import ArgumentError

MAX_THREADS = 1024  # of a block, on every GPU

TYPE_BYTES = {
    f"{kind}{bits}": bits // 8
    for kinds, widths in (("bus", (8, 16, 32, 64)), ("f", (16, 32, 64)), ("b", (128,)))
    for kind in kinds
    for bits in widths
} | {"bf16": 2, "f16x2": 4, "bf16x2": 4}

_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$%]+)\s*(?:\(([^)]*)\))?([^{]*)\{")
_PARAMETER = re.compile(
    r"\.param(?:\s+\.align\s+(?P<align>\d+))?\s+\.(?P<type>\w+)"
    r"(?P<pointer>\s+\.ptr(?:\s+\.(?:global|const|shared|local))?(?:\s+\.align\s+\d+)?)?"
    r"\s+(?P<name>[\w$%]+)\s*(?P<size>(?:\[\s*\d+\s*\])*)"
)
_SHARED = re.compile(
    r"(?P<extern>\.extern\s+)?\.shared(?:\s+\.align\s+(?P<align>\d+))?\s+\.(?P<type>\w+)\s+"
    r"(?P<name>[\w$%]+)\s*(?P<size>(?:\[\s*\d*\s*\])*)"
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes
    ----------
    name : what the compiler called it: ``swish_param_0``.
    offset, bytes, align : where it lies among the packed parameters.
    type : of its elements: ``u64``, ``f32``; ``b8`` for a struct or a half.
    pointer : whether the PTX marks it as one. Triton does, nvcc does not.
    """

    name: str
    offset: int
    bytes: int
    align: int
    type: str
    pointer: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.type}, {self.bytes} bytes)"


@dataclass(frozen=True)
class Entry:
    """One kernel of a PTX module.

    Attributes
    ----------
    required_block : ``.reqntid``, three sizes, or None: the only block it can be launched with.
    max_threads : of a block: what ``.reqntid`` or ``.maxntid`` allow, or 1024.
    min_blocks : ``.minnctapersm``, 0 without.
    static_shared : bytes of the variables that it declares, or names, in shared memory.
    dynamic_shared : whether it names shared memory whose size comes with the launch.
    """

    name: str
    parameters: tuple[Parameter, ...]
    required_block: tuple[int, int, int] | None = None
    max_threads: int = MAX_THREADS
    min_blocks: int = 0
    static_shared: int = 0
    dynamic_shared: bool = False

    @property
    def parameter_bytes(self) -> int:
        """Of all of them, with the padding between."""
        return self.parameters[-1].offset + self.parameters[-1].bytes if self.parameters else 0


@dataclass(frozen=True)
class Ptx:
    """A PTX module: what it is for, as in ``"sm_90a"``, and its kernels by name."""

    version: str
    target: str
    entries: dict[str, Entry]


@functools.lru_cache(maxsize=32)  # every kernel of a module asks for it
def read_ptx(text: str) -> Ptx:
    """Read the directives of a PTX module; its instructions are skipped.

    Raises
    ------
    ArgumentError
        The text is not PTX, or a parameter has a type that cannot be passed.
    """
    text = _COMMENT.sub(lambda m: m[0] if m[0][0] == '"' else " ", text)
    version = re.search(r"\.version\s+(\d+\.\d+)", text)
    target = re.search(r"\.target\s+(\w+)", text)
    if not version or not target:
        raise ArgumentError("the text is not PTX: it has no .version and .target")
    found, outside, position = [], [], 0
    for match in _ENTRY.finditer(text):
        end = _end_of_body(text, match.end() - 1)
        found.append((match, text[match.end() : end]))
        outside.append(text[position : match.start()])
        position = end
    # Shared variables of the module count for the kernels that name them.
    variables = list(_SHARED.finditer("".join([*outside, text[position:]])))
    entries = {}
    for match, body in found:
        name, parameters, directives = match.groups()
        words = set(re.findall(r"[\w$%]+", body)) if variables else ()
        shared = [v for v in variables if v["name"] in words] + list(_SHARED.finditer(body))
        entries[name] = _entry(name, parameters or "", directives, shared)
    return Ptx(version[1], target[1], entries)


def _entry(name: str, parameters: str, directives: str, shared: list[re.Match]) -> Entry:
    required, most = (_dims(directives, key) for key in ("reqntid", "maxntid"))
    limit = required or most
    blocks = re.search(r"\.minnctapersm\s+(\d+)", directives)
    size = 0
    for variable in shared:
        if not variable["extern"]:
            bytes_, align = _extent(variable, name)
            size = _round_up(size, align) + bytes_
    return Entry(
        name,
        tuple(_parameters(name, parameters)),
        required,
        math.prod(limit) if limit else MAX_THREADS,
        int(blocks[1]) if blocks else 0,
        size,
        any(variable["extern"] for variable in shared),
    )


def _parameters(kernel: str, text: str) -> Iterator[Parameter]:
    offset = 0
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = _PARAMETER.fullmatch(declaration)
        if not match:
            raise ArgumentError(f"{kernel} has a parameter that cannot be read: {declaration!r}")
        size, align = _extent(match, kernel)
        offset = _round_up(offset, align)
        yield Parameter(match["name"], offset, size, align, match["type"], bool(match["pointer"]))
        offset += size


def _extent(declaration: re.Match, kernel: str) -> tuple[int, int]:
    """Bytes and alignment of a declared variable or parameter."""
    element = TYPE_BYTES.get(declaration["type"])
    if element is None:
        raise ArgumentError(
            f"{declaration['name']} of {kernel} is a .{declaration['type']}, which has no size"
        )
    count = math.prod(int(n) for n in re.findall(r"\d+", declaration["size"]))
    return element * count, int(declaration["align"] or element)


def _dims(directives: str, key: str) -> tuple[int, int, int] | None:
    match = re.search(rf"\.{key}\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
    return tuple(int(n or 1) for n in match.groups()) if match else None


def _end_of_body(text: str, start: int) -> int:
    """Behind the brace that closes the one at `start`."""
    depth = 0
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise ArgumentError("the PTX is not whole: a kernel's closing brace is missing")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
