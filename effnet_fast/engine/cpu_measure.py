"""Choice by measurement: what an operator does in its own pass, and what has a step of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from .. import __version__, cache
from ..info import cpu_model
from ..ops.extension import extension
from ..plan import Plan, Step, alone
from .cpu import NativeStage
from .cpu_weights import PackedWeights

_SAMPLES = 7
_SAMPLE_SECONDS = 200e-6  # at least: a clock and a call are about a microsecond
# Apart only where it clearly pays: in one pass the wide map takes no memory.
_GAIN = 0.95

_known: dict[str, tuple[float, float]] = {}


def is_on() -> bool:
    """Unless ``EFFNET_FAST_TUNE=0``: plans are then the same everywhere."""
    return os.environ.get("EFFNET_FAST_TUNE", "1") != "0"


def apart(plan: Plan, weights: PackedWeights) -> frozenset[str]:
    """What :func:`~effnet_fast.plan.make_plan` is to make by steps of their own, on this processor.

    Measured once for a shape, on one thread, and kept on disk: a batch has an image on each. The
    numbers that a network computes do not depend on it.

    Parameters
    ----------
    plan : that has them joined.
    weights : of its network.
    """
    return frozenset(step.nodes[0].name for step in _pairs(plan) if _is_slower(plan, step, weights))


def _pairs(plan: Plan) -> Iterator[Step]:
    for stage in plan.stages:
        yield from (step for step in stage.steps if stage.native and len(step.nodes) == 2)


def _is_slower(plan: Plan, step: Step, weights: PackedWeights) -> bool:
    key = cache.digest(
        "cpu seconds", __version__, cpu_model(), extension().isa(),
        _signature(plan, step),
    )  # fmt: skip
    if key not in _known:
        entry = cache.read(key)
        if entry is None:
            entry = {"seconds": _measured(plan, step, weights)}
            cache.write(key, entry)
        _known[key] = tuple(entry["seconds"])
    joined, separate = _known[key]
    return separate < _GAIN * joined


def _signature(plan: Plan, step: Step) -> list[Any]:
    """Of all that its seconds depend on."""
    resolve = plan.network.aliases.get
    names = (resolve(name, name) for name in (*step.reads(), *step.makes()))
    nodes = [[type(node).__name__, list(node.weight.shape), int(node.act)] for node in step.nodes]
    windows = [str(step.window), str(step.stem)]
    return [step.operator, windows, [list(plan.sizes[name]) for name in names], nodes]


def _measured(plan: Plan, step: Step, weights: PackedWeights) -> tuple[float, float]:
    """Seconds in one pass, and apart: the least, taken in turns. What else the machine does only
    adds.
    """
    runs = []
    for names in ((), {step.nodes[0].name}):
        own = alone(plan, step, names)
        (stage,) = own.stages
        native = NativeStage(own, stage, weights)
        inputs = {
            name: torch.zeros((1, *own.sizes[name])).contiguous(memory_format=torch.channels_last)
            for name in stage.inputs
        }
        tensors, made, alive = native.bind(inputs, 1)
        runs.append((native.program, tensors, made, alive))

    def timed(run: Any, repeats: int) -> float:
        program, tensors, *_ = run
        start = time.perf_counter()
        for _ in range(repeats):
            program.run(tensors, 1, 1)
        return (time.perf_counter() - start) / repeats

    once = max(timed(run, 1) for run in runs)  # and what is done once is done
    repeats = max(1, round(_SAMPLE_SECONDS / once))
    samples = [[timed(run, repeats) for run in runs] for _ in range(_SAMPLES)]
    joined, separate = map(min, zip(*samples, strict=True))
    return joined, separate
