"""What the PTX machine counted in a launch: instructions, memory traffic, bank conflicts."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from effnet_fast.errors import ArgumentError

SECTOR = 32  # bytes, the unit of all traffic


@dataclass(frozen=True)
class Traffic:
    """The accesses of one kind to one tensor.

    Three numbers of sectors are kept apart: those that warps requested, which is what L1 sees; the
    distinct ones of each block, summed, which is what L2 sees; and the distinct ones of the launch,
    which is what memory sees when caches are cold.

    Attributes
    ----------
    requests : instructions of warps.
    bytes : of all threads; what several threads access counts several times.
    used_bytes : the distinct bytes of each request, summed.
    sectors, l2_sectors, dram_sectors : as above.
    """

    requests: int = 0
    bytes: int = 0
    used_bytes: int = 0
    sectors: int = 0
    l2_sectors: int = 0
    dram_sectors: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    @property
    def l2_bytes(self) -> int:
        """Of the sectors that L2 sees."""
        return SECTOR * self.l2_sectors

    @property
    def dram_bytes(self) -> int:
        """Of the sectors that memory sees."""
        return SECTOR * self.dram_sectors

    @property
    def used_share(self) -> float:
        """Of the requested sectors' bytes those that a thread asked for; NaN without any."""
        return _ratio(self.used_bytes, SECTOR * self.sectors)


@dataclass(frozen=True)
class TensorCounts:
    """The traffic of one tensor of a launch.

    Attributes
    ----------
    name : of the launch's region, or the address of an allocation that was not declared.
    base, bytes : where it lies.
    """

    name: str
    base: int
    bytes: int
    read: Traffic = Traffic()
    write: Traffic = Traffic()
    atomic: Traffic = Traffic()

    @property
    def all(self) -> Traffic:
        """Reads, writes and atomics together."""
        return self.read + self.write + self.atomic

    @property
    def l2_ratio(self) -> float:
        """How often L2 sees the tensor: 1 when every byte passes once; NaN when it is empty."""
        return _ratio(self.all.l2_bytes, self.bytes)


@dataclass(frozen=True)
class InstructionCounts:
    """How often warps issued instructions of a kind, and with how many active threads in all."""

    warp: int = 0
    thread: int = 0

    @property
    def average_lanes(self) -> float:
        """Active threads of an instruction, at most 32; NaN without any."""
        return _ratio(self.thread, self.warp)


@dataclass(frozen=True)
class SharedCounts:
    """Accesses to shared memory.

    Attributes
    ----------
    wavefronts : passes that they took, bank conflicts included.
    ideal_wavefronts : what they would take without conflicts.
    """

    requests: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    bytes: int = 0

    @property
    def conflict_ratio(self) -> float:
        """Wavefronts for each that there had to be: 1 without conflicts; NaN without accesses."""
        return _ratio(self.wavefronts, self.ideal_wavefronts)


@dataclass(frozen=True)
class Counts:
    """The account of one launch; ``print(counts)`` is for people, ``to_json()`` for programs.

    Attributes
    ----------
    kernel, grid, block, shared_bytes : what was launched; shared memory is of a block.
    classes : instructions by class: ``"float"``, ``"global_load"``, ``"barrier"``.
    opcodes : instructions by opcode: ``"fma.rn.f32"``, most frequent first.
    lines : instructions by the line of the PTX that they are on.
    branches, divergent_branches : of warps.
    tensors : the traffic of each.
    seconds : that the machine took, which says nothing of a GPU.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0
    classes: Mapping[str, InstructionCounts] = field(default_factory=dict)
    opcodes: Mapping[str, InstructionCounts] = field(default_factory=dict)
    lines: Mapping[int, InstructionCounts] = field(default_factory=dict)
    branches: int = 0
    divergent_branches: int = 0
    shared_load: SharedCounts = SharedCounts()
    shared_store: SharedCounts = SharedCounts()
    tensors: tuple[TensorCounts, ...] = ()
    seconds: float = 0.0

    @classmethod
    def parse(cls, data: str | Mapping[str, Any]) -> Counts:
        """From what :meth:`Device.take_counts` returns for a launch, as an object or as JSON.

        Raises
        ------
        ArgumentError
            It is not such an object.
        """
        try:
            return _parse(json.loads(data) if isinstance(data, str) else data)
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"the counts cannot be read ({type(error).__name__}: {error}); accepted: what the "
                "PTX machine returns for a launch"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As the machine returned it."""
        result = asdict(self)
        result["grid"], result["block"] = list(self.grid), list(self.block)
        result["opcodes"] = [{"name": name} | counts for name, counts in result["opcodes"].items()]
        result["lines"] = [[line, *c.values()] for line, c in result["lines"].items()]
        result["tensors"] = list(result["tensors"])
        return result

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @property
    def instructions(self) -> InstructionCounts:
        """Of all classes."""
        warp, thread = (sum(getattr(c, k) for c in self.classes.values()) for k in _WARP_THREAD)
        return InstructionCounts(warp, thread)

    @property
    def warp_instructions(self) -> int:
        """Instructions that warps issued."""
        return self.instructions.warp

    @property
    def thread_instructions(self) -> int:
        """Instructions that threads executed."""
        return self.instructions.thread

    @property
    def average_lanes(self) -> float:
        """Active threads of an instruction, at most 32."""
        return self.instructions.average_lanes

    @property
    def shared(self) -> SharedCounts:
        """Loads and stores of shared memory together."""
        pairs = zip(_values(self.shared_load), _values(self.shared_store), strict=True)
        return SharedCounts(*map(sum, pairs))

    @property
    def traffic(self) -> Traffic:
        """Of all tensors together."""
        return sum((tensor.all for tensor in self.tensors), Traffic())

    def tensor(self, name: str) -> TensorCounts:
        """The traffic of a tensor, by its region's name."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise ArgumentError(
            f"name is {name!r}; accepted: {', '.join(t.name for t in self.tensors) or 'none'}"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.kernel}: grid {_by(self.grid)}, block {_by(self.block)}, "
            f"{self.shared_bytes:,} bytes of shared memory",
            f"  {self.warp_instructions:,} warp instructions with {self.average_lanes:.1f} of 32 "
            f"lanes active, {self.branches:,} branches, {self.divergent_branches:,} divergent",
        ]
        if self.tensors:
            lines += ["", *_traffic_table(self.tensors)]
        counted = [(n, c) for n, c in self.classes.items() if c.warp]
        if counted:
            rows = [(n, f"{c.warp:,}", f"{c.average_lanes:.1f}") for n, c in counted]
            lines += ["", *table([("instructions", "of warps", "lanes"), *rows], indent=2)]
        for name, shared in (("loads", self.shared_load), ("stores", self.shared_store)):
            if shared.requests:
                lines += [
                    f"  shared memory {name}: {shared.bytes:,} bytes in {shared.requests:,} "
                    f"requests, {shared.wavefronts:,} wavefronts, {shared.conflict_ratio:.2f} of "
                    "the least"
                ]
        return "\n".join(lines)


_WARP_THREAD = ("warp", "thread")


def _parse(data: Mapping[str, Any]) -> Counts:
    known = {f.name for f in fields(Counts)}
    if known != set(data):
        raise ValueError(f"its names are {sorted(data)}")
    return Counts(
        **{
            **data,
            "grid": tuple(data["grid"]),
            "block": tuple(data["block"]),
            "classes": {n: InstructionCounts(**c) for n, c in data["classes"].items()},
            "opcodes": {
                o["name"]: InstructionCounts(**{k: o[k] for k in _WARP_THREAD})
                for o in data["opcodes"]
            },
            "lines": {line: InstructionCounts(*counts) for line, *counts in data["lines"]},
            "shared_load": SharedCounts(**data["shared_load"]),
            "shared_store": SharedCounts(**data["shared_store"]),
            "tensors": tuple(
                TensorCounts(
                    **t | {kind: Traffic(**t[kind]) for kind in ("read", "write", "atomic")}
                )
                for t in data["tensors"]
            ),
        }
    )


def _traffic_table(tensors: Iterable[TensorCounts]) -> list[str]:
    rows = [("tensor", "", "bytes", "requests", "used", "L1 bytes", "L2 bytes", "of size", "DRAM")]
    for tensor in tensors:
        for kind in ("read", "write", "atomic"):
            traffic = getattr(tensor, kind)
            if traffic.requests:
                rows.append((
                    tensor.name, kind, f"{tensor.bytes:,}", f"{traffic.requests:,}",
                    f"{100 * traffic.used_share:.1f} %", f"{SECTOR * traffic.sectors:,}",
                    f"{traffic.l2_bytes:,}", f"{_ratio(traffic.l2_bytes, tensor.bytes):.2f}",
                    f"{traffic.dram_bytes:,}",
                ))  # fmt: skip
    return table(rows, indent=2, left=(0, 1))


def table(rows: Sequence[Sequence[str]], indent: int = 0, left: Container[int] = (0,)) -> list[str]:
    """Lines with aligned columns, those of `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent
        + "  ".join(
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _values(counts: Any) -> list[int]:
    return [getattr(counts, f.name) for f in fields(counts)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _by(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
