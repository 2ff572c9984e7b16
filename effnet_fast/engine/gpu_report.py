"""What the GPU engine does with a model on a GPU that need not be there, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ..capture import image_channels, native_size
from ..errors import ArgumentError, GpuError
from ..gpu import cost
from ..gpu.counts import Counts, table
from ..gpu.device import Device
from ..gpu.targets import Target
from ..optimize import optimize
from ..plan import make_plan
from .gpu import GpuEngine, Home
from .gpu_tasks import Task


@dataclass(frozen=True)
class LaunchRow:
    """A launch of the plan.

    Attributes
    ----------
    kernel : as the operator and language that it is of; ``cut`` how its outputs are cut.
    node : the value of the network that it makes.
    blocks : of the grid, for the batch.
    planned_bytes : of DRAM for an image: every operand once, weights shared by the batch.
    modelled_us : microseconds for the batch, by the model that chose the kernel.
    others : what else could have done the step, with its modelled microseconds.
    dram_bytes, l2_bytes : for an image, counted; weights shared by the batch in the first.
    instructions : of warps, for an image, counted; without moves between registers.
    counted_us : microseconds for the batch, from the counts.
    limit : what these are of: ``"dram"``, ``"l2"``, ``"issue"``, ``"special"``, ...
    """

    kernel: str
    node: str
    cut: str
    blocks: int
    planned_bytes: float
    modelled_us: float
    others: dict[str, float] = field(default_factory=dict)
    dram_bytes: float | None = None
    l2_bytes: float | None = None
    instructions: int | None = None
    counted_us: float | None = None
    limit: str | None = None


@dataclass(frozen=True)
class PlanReport:
    """A model's launches for one batch, and their totals.

    Attributes
    ----------
    stages_in_torch : steps that run in PyTorch, between the launches.
    arena_bytes : of the values between launches, for the batch.
    weight_bytes : of the packed weights.
    """

    model: str
    target: Target
    dtype: str
    batch: int
    size: tuple[int, int]
    rows: tuple[LaunchRow, ...]
    stages_in_torch: int
    arena_bytes: int
    weight_bytes: int

    @property
    def launches(self) -> int:
        return len(self.rows)

    def total(self, name: str) -> float | None:
        """Of a column; None if it was not counted."""
        values = [getattr(row, name) for row in self.rows]
        return None if None in values else sum(values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        result = asdict(self)
        modelled, counted = self.total("modelled_us"), self.total("counted_us")
        result["totals"] = {
            "launches": self.launches,
            "planned_bytes_per_image": self.total("planned_bytes"),
            "bytes_per_image": self.total("dram_bytes"),
            "l2_bytes_per_image": self.total("l2_bytes"),
            "instructions_per_image": self.total("instructions"),
            "modelled_seconds": modelled / 1e6,
            "modelled_images_per_second": self.batch / modelled * 1e6,
            "modelled_from_counts_seconds": counted and counted / 1e6,
            "modelled_from_counts_images_per_second": counted and self.batch / counted * 1e6,
        }
        return result

    def __str__(self) -> str:
        head = (
            "kernel", "makes", "cut", "blocks", "kB planned", "us", "kB DRAM", "kB L2",
            "k instr.", "us counted", "limit",
        )  # fmt: skip
        lines = [head, *(_cells(row) for row in self.rows)]
        wanted = [i for i in range(len(head)) if i < 4 or any(line[i] for line in lines[1:])]
        rows = [[line[i] for i in wanted] for line in lines]
        texts = ("kernel", "makes", "cut", "limit")
        body = table(rows, left=[i for i, w in enumerate(wanted) if head[w] in texts])
        return "\n".join([*body, "", *self._totals()])

    def _totals(self) -> list[str]:
        h, w = self.size
        modelled, counted = self.total("modelled_us"), self.total("counted_us")
        in_torch = f" and {self.stages_in_torch} steps in PyTorch" if self.stages_in_torch else ""
        planned = self.total("planned_bytes") / 1e6
        lines = [
            f"{self.model}, {self.dtype}, batch {self.batch}, {h}x{w}, for an sm_"
            f"{self.target.capability} ({self.target.name})",
            f"{self.launches} launches{in_torch}; arena {self.arena_bytes / 1e6:,.1f} MB, weights "
            f"{self.weight_bytes / 1e6:,.1f} MB",
            f"planned {planned:,.2f} MB an image; modelled, not measured: "
            f"{modelled:,.0f} us, {self.batch / modelled * 1e6:,.0f} images/s",
        ]
        if counted is not None:
            lines.append(
                f"counted {self.total('dram_bytes') / 1e6:,.2f} MB of DRAM and "
                f"{self.total('l2_bytes') / 1e6:,.2f} MB of L2 an image, "
                f"{self.total('instructions') / 1e6:,.2f} M instructions of warps; at the rates of "
                f"that GPU (not measured): {counted:,.0f} us, "
                f"{self.batch / counted * 1e6:,.0f} images/s"
            )
        return lines


def _cells(row: LaunchRow) -> tuple[str, ...]:
    def number(value: float | None, scale: float = 1.0, digits: int = 0) -> str:
        return "" if value is None else f"{value * scale:,.{digits}f}"

    return (
        row.kernel, row.node, row.cut, f"{row.blocks:,}", number(row.planned_bytes, 1e-3),
        number(row.modelled_us, 1, 1), number(row.dram_bytes, 1e-3), number(row.l2_bytes, 1e-3),
        number(row.instructions, 1e-3), number(row.counted_us, 1, 1), row.limit or "",
    )  # fmt: skip


def report(
    model: nn.Module,
    name: str,
    *,
    arch: str = "sm_90",
    dtype: torch.dtype = torch.float16,
    batch: int = 64,
    size: tuple[int, int] | None = None,
    languages: Sequence[str] = (),
    count: bool = True,
    images: int | None = None,
) -> PlanReport:
    """The plan of a model for a GPU that need not be there.

    Parameters
    ----------
    model : nn.Module
    name : str
        For the report.
    arch : str
        As in ``"sm_90"``.
    dtype : torch.dtype
    batch : int
    size : (int, int), optional
        Of the images; by default the model's own.
    languages : sequence of str
        Of the kernels to choose from; all by default.
    count : bool
        Whether to run images on the PTX machine and count.
    images : int, optional
        How many, at most ``batch``; by default those that a block does. More of them fill the last
        tile of a small map's pixels, as a batch does: its counts are scaled by blocks.

    Raises
    ------
    ArgumentError, CaptureError, ShapeError
        As of :func:`effnet_fast.optimize`.
    """
    if batch < 1:
        raise ArgumentError(f"batch is {batch}; accepted: 1 or more")
    if images is not None and images < 1:
        raise ArgumentError(f"images is {images}; accepted: 1 or more")
    target = Target.named(arch)
    fused = optimize(model, dtype=dtype, backend="reference", verify=False).parts()
    if len(fused) != 1:
        raise ArgumentError(f"{name} is captured in {len(fused)} parts; accepted: one")
    plan = make_plan(fused[0].network, tuple(size or native_size(model)))
    with Device("ptx") as device:
        home = Home.on(device, torch.device("cpu"), languages)
        home.target = target
        engine = GpuEngine(plan, home, dtype, batch)
        choices = engine.choices(batch)
        counts: list[Counts] = []
        if images is None:
            images = max(t.images for c in choices for t in c.options[0].tasks)
        images = min(batch, images)
        if count:
            shape = (images, image_channels(model), *plan.size)
            x = torch.randn(shape, dtype=torch.float32).to(dtype)
            device.take_counts()
            engine.run(x)
            device.synchronize()
            counts = [Counts.parse(c) for c in device.take_counts()]
            launches = sum(len(choice.options[0].tasks) for choice in choices)
            if len(counts) != launches:
                raise GpuError(f"{launches} launches are planned, {len(counts)} were counted")
        constants = home.weights.addresses()
        weight_bytes = home.weights.bytes
        arena = engine.planned_arena_bytes(batch)
    rows = []
    for choice in choices:
        others = {o.name: 1e6 * o.seconds for o in reversed(choice.options[1:])}  # the fastest
        for task in choice.options[0].tasks:
            counted = counts[len(rows)] if counts else None
            rows.append(_row(task, others, counted, images, batch, target, constants))
    in_torch = sum(not stage.native for stage in plan.stages)
    return PlanReport(
        name, target, str(dtype).removeprefix("torch."), batch, plan.size, tuple(rows), in_torch,
        arena, weight_bytes,
    )  # fmt: skip


def _row(
    task: Task,
    others: dict[str, float],
    counts: Counts | None,
    images: int,
    batch: int,
    target: Target,
    constants: set[int],
) -> LaunchRow:
    row: dict[str, Any] = {}
    if counts is not None:
        shared = sum(t.all.dram_bytes for t in counts.tensors if t.base in constants)
        dram = (counts.traffic.dram_bytes - shared) / images + shared / batch
        seconds, limit = cost.roofline(counts, target, dram * batch, task.blocks)
        moves = counts.classes["move"].warp
        row = {
            "dram_bytes": dram,
            "l2_bytes": counts.traffic.l2_bytes / images,
            "instructions": (counts.warp_instructions - moves) // images,
            "counted_us": 1e6 * seconds,
            "limit": limit,
        }
    kernel = f"{task.operator} ({task.language})"
    return LaunchRow(
        kernel, task.node, task.cut, task.blocks, task.bytes / batch, 1e6 * task.seconds, others,
        **row,
    )  # fmt: skip
