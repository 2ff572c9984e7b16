"""What optimize did: what is fused, on which kernels, what not and why, and the error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .network import Network
from .plan import Plan
from .verify import Block, Parity


@dataclass(frozen=True)
class Report:
    """The account of one optimised model; ``print(report)`` is for people, ``to_dict()`` for
    programs.

    Attributes
    ----------
    fused_share : of the model's convolution multiply-adds, those done by fused operators, 0 to 1.
    instruction_set : of the CPU's kernels; of a GPU its name, and the languages of its kernels.
    operators : operator name to the number of its steps; ``aten`` counts the segments left to
        PyTorch.
    fallbacks : what is not fused and why, one line each.
    parity : one entry for each image size that was verified; empty with ``verify=False``.
    blocks : in half precision, errors and ranges of what each block leaves, of one image.
    weight_bytes : of the packed weights.
    peak_bytes : the most that resident memory grew by meanwhile, looked at every 2 ms; None where
        the system does not tell.
    seconds : what capture, recognise, plan and verify took.
    """

    model: str
    backend: str
    instruction_set: str
    dtype: str
    fused_share: float
    operators: Mapping[str, int]
    fallbacks: tuple[str, ...]
    locked: tuple[int, int] | None
    parts: tuple[str, ...] = ()
    parity: tuple[Parity, ...] = ()
    blocks: tuple[Block, ...] = ()
    weight_bytes: int = 0
    peak_bytes: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        kernels = (
            f"{self.backend}, {self.instruction_set}" if self.instruction_set else self.backend
        )
        lines = [
            f"{self.model}: {100 * self.fused_share:.4g} % of convolution multiply-adds in fused "
            f"operators "
            f"({kernels}, {self.dtype})",
            "  " + ", ".join(f"{count} {name}" for name, count in self.operators.items()),
        ]
        if self.parts:
            lines.append(f"  captured in parts: {', '.join(self.parts)}")
        if self.locked:
            lines.append(f"  for {self.locked[0]}x{self.locked[1]} images alone")
        lines += [f"  not fused: {line}" for line in self.fallbacks]
        lines += [f"  verified: {parity}" for parity in self.parity] or ["  not verified"]
        if self.blocks:
            lines.append(f"  {self._blocks()}")
        if self.weight_bytes:
            peak = "" if self.peak_bytes is None else f", {self.peak_bytes / 1e6:,.0f} MB at most"
            lines.append(f"  memory: {self.weight_bytes / 1e6:,.1f} MB of weights{peak}")
        if self.seconds:
            lines.append("  " + ", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items()))
        return "\n".join(lines)

    def _blocks(self) -> str:
        worst = max(self.blocks, key=lambda block: block.error)
        widest = max(self.blocks, key=lambda block: block.largest)
        overflows = sum(block.overflows > 0 for block in self.blocks)
        limit = torch.finfo(getattr(torch, self.dtype)).max
        return (
            f"{len(self.blocks)} blocks: largest error {worst.error:.1e} in {worst}, largest value "
            f"{widest.largest:.3g} in {widest}, {self.dtype} holds {limit:.3g}"
            + f"; {overflows} overflow"
            * bool(overflows)
        )


def count_operators(plans: Iterable[Plan]) -> dict[str, int]:
    """Steps by operator, most frequent first."""
    return dict(Counter(step.operator for plan in plans for step in plan.steps).most_common())


def fused_share(networks: Iterable[Network], unfused_macs: int = 0) -> float:
    """The share over several networks, and convolutions outside of all of them."""
    layers = [layer for network in networks for layer in network.layers if layer.convolution]
    total = sum(layer.macs for layer in layers) + unfused_macs
    return sum(layer.macs for layer in layers if layer.fused) / total if total else 0.0
