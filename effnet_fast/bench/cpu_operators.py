"""Single operators on a CPU: ours, its parts apart, and PyTorch's, in turns in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..engine.cpu import NativeStage
from ..engine.cpu_weights import PackedWeights
from ..gpu.counts import table
from ..plan import Plan, make_plan
from ..verify import relative_error
from .harness import Budget, compare, interleaved, outcome_rows, wall_clock
from .peers import SGEMM, sgemm
from .shapes import Shape
from .stock import stock_steps, widened

OURS = "effnet_fast"
BOUND = 3e-6  # relative L2, from float64: ten times what a sum of a thousand products is off by


class OperatorBench:
    """An operator's operands, random, and its contenders.

    Weights and operands stay where the last run left them: in cache where they fit.
    """

    def __init__(self, shape: Shape, batch: int, threads: int):
        self.batch, self.threads = batch, threads
        self.plan = shape.plan()
        generator = torch.Generator().manual_seed(1)
        (stage,) = self.plan.stages
        self.inputs = {
            name: _random(self.plan.sizes[name], batch, generator) for name in stage.inputs
        }

    def contenders(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """By name, what makes them ready."""
        found: dict[str, Any] = {OURS: lambda: self.native(self.plan)}
        (step,) = self.plan.steps
        if len(step.nodes) == 2:
            apart = {step.nodes[0].name}
            network, size = self.plan.network, self.plan.size
            plan = make_plan(network, size, apart, self.plan.sizes)
            found[f"{OURS}, apart"] = lambda: self.native(plan)
        if PackedWeights().is_winograd(step.nodes[0]):
            found[f"{OURS}, direct"] = lambda: self.native(self.plan, winograd=False)
        for layout in (torch.contiguous_format, torch.channels_last):
            name = "eager" if layout == torch.contiguous_format else "channels_last"
            found[name] = lambda layout=layout: self.stock(layout)
        return found

    def native(self, plan: Plan, winograd: bool = True) -> Callable[[], torch.Tensor]:
        """A plan of one stage, bound to its operands."""
        weights = PackedWeights(winograd)
        for node in plan.network.nodes:
            weights.take(node)
        (stage,) = plan.stages
        program = NativeStage(plan, stage, weights)
        tensors, made, alive = program.bind(self.inputs, self.batch)

        def run() -> torch.Tensor:
            program.program.run(tensors, self.batch, self.threads)
            return made["y"]

        run.alive = (weights, alive)  # as long as it's run
        return run

    def stock(self, layout: torch.memory_format) -> Callable[[], torch.Tensor]:
        """PyTorch's layers."""
        function = stock_steps(tuple(self.plan.steps))
        values = {
            n: x.contiguous(memory_format=layout) if x.dim() == 4 else x
            for n, x in self.inputs.items()
        }

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return function(values)[0]

        return run

    def exact(self) -> torch.Tensor:
        """Its first output, in float64."""
        wide = [widened(step) for step in self.plan.steps]
        return stock_steps(wide)({n: x.double() for n, x in self.inputs.items()})[0]


def _random(size: Sequence[int], batch: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn((batch, *size), generator=generator)
    if tuple(size[1:]) == (1, 1):
        return x.flatten(1)
    return x.contiguous(memory_format=torch.channels_last)


def measure(shape: Shape, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """One operator; a row of results."""
    from .cpu import costs

    bench = OperatorBench(shape, batch, threads)
    exact = bench.exact()

    def error(y: torch.Tensor) -> float:
        return relative_error(y.reshape(exact.shape), exact)

    with torch.no_grad():
        outcomes = compare(
            bench.contenders(), error, BOUND, wall_clock, seconds, Budget(math.inf)
        )  # fmt: skip
    (step,) = bench.plan.steps
    return {
        "shape": str(shape), "times": shape.times, "batch": batch, "threads": threads,
        "outcomes": outcome_rows(outcomes), **costs(bench.plan, step),
    }  # fmt: skip


def sgemm_gflops(seconds: float = 1.0) -> float:
    """The rate of the library's matrix product, now."""
    run = sgemm(None)
    found = interleaved({"sgemm": wall_clock(run)}, seconds)
    return 2 * SGEMM**3 / found["sgemm"].median / 1e9


def describe(rows: Sequence[Mapping[str, Any]], sgemm_gflops: float) -> list[str]:
    """Lines of a table: an operator each, then the sums of a network's."""
    names = list(dict.fromkeys(name for row in rows for name in row["outcomes"]))
    head = ("", "us", "x", "share", "GFLOP/s", "of sgemm", "GB/s", *names[1:])
    lines = [head]

    def seconds(row: Mapping[str, Any], name: str) -> float:
        times = row["outcomes"].get(name, {}).get("times")
        return times["median"] if times else math.nan

    total = sum(row["times"] * seconds(row, OURS) for row in rows)
    for row in rows:
        ours, batch = seconds(row, OURS), row["batch"]
        rate = 2 * row["macs"] * batch / ours / 1e9
        others = (seconds(row, name) / ours for name in names[1:])
        lines.append((
            row["shape"], f"{1e6 * ours:,.1f}", str(row["times"]),
            f"{100 * row['times'] * ours / total:.1f} %", f"{rate:.1f}",
            f"{100 * rate / sgemm_gflops:.0f} %", f"{row['bytes'] * batch / ours / 1e9:.1f}",
            *("" if math.isnan(other) else f"{other:.2f}x" for other in others),
        ))  # fmt: skip
    macs = sum(row["times"] * row["macs"] * row["batch"] for row in rows)
    rate = 2 * macs / total / 1e9
    lines.append((
        "all", f"{1e6 * total:,.1f}", "", "", f"{rate:.1f}",
        f"{100 * rate / sgemm_gflops:.0f} %", "", *("" for _ in names[1:]),
    ))  # fmt: skip
    return table(lines, left=(0,))
