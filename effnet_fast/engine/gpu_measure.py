"""Choice of kernels by measurement: every way to do a step, timed on the GPU that it is for."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__, cache
from ..errors import GpuError
from ..gpu.device import Event
from ..plan import Step
from .gpu_tasks import Option, Spec, Weights

if TYPE_CHECKING:
    from .gpu import Home

_log = logging.getLogger(__name__)

# Of a sample: long enough that an event's half a microsecond does not count.
_SAMPLE_SECONDS = 500e-6
_MOST_REPEATS = 64
_SAMPLES = 5


class Measure:
    """What the ways to do a step take, for one batch; measured once, and kept on disk.

    Parameters
    ----------
    home : Home
        The device, where nothing else should run meanwhile.
    batch : int
    """

    def __init__(self, home: Home, batch: int):
        self.home = home
        self.batch = batch

    def __call__(
        self, steps: Sequence[Step], options: Sequence[Option], specs: Mapping[str, Spec]
    ) -> tuple[float, ...] | None:
        """Seconds of each option; None where memory does not suffice to find out.

        ``specs`` are of the values that the steps read.
        """
        known = [{**specs, **option.specs} for option in options]
        key = self._key(steps, options, known)
        seconds = self.home.measured.get(key)
        if seconds is None:
            entry = cache.read(key)
            seconds = entry and tuple(entry["seconds"])
        if seconds is None:
            try:
                seconds = tuple(map(self._seconds, options, known))
            except (torch.OutOfMemoryError, GpuError) as error:
                if isinstance(error, GpuError) and error.result != "CUDA_ERROR_OUT_OF_MEMORY":
                    raise
                what = f"{steps[0].operator} for a batch of {self.batch}"
                _log.warning("%s: chosen by the model, not measured: %s", what, error)
                return None
            cache.write(key, {"seconds": seconds})
        self.home.measured[key] = seconds
        return seconds

    def _key(
        self, steps: Sequence[Step], options: Sequence[Option], known: Sequence[Mapping[str, Spec]]
    ) -> str:
        """Of all that the seconds depend on: networks share layers of the same shape."""
        device = self.home.device
        tasks = [
            [
                [task.operator, task.language, task.cut, task.blocks]
                + [_signature(specs[name]) for name in (*task.reads, *task.writes)]
                for task in option.tasks
            ]
            for option, specs in zip(options, known, strict=True)
        ]
        nodes = [
            [type(node).__name__, str(getattr(node, "act", "")), str(getattr(node, "gate_act", ""))]
            for step in steps
            for node in step.nodes
        ]
        return cache.digest(
            "seconds", __version__, device.name, device.driver_version, self.batch,
            [[step.operator, str(step.window)] for step in steps], nodes, tasks,
        )  # fmt: skip

    def _seconds(self, option: Option, specs: Mapping[str, Spec]) -> float:
        """The median of a few samples, each of several runs in a graph."""
        home, device = self.home, self.home.device
        names = {name for task in option.tasks for name in (*task.reads, *task.writes)}
        values = {name: home.random(specs[name], self.batch) for name in names}
        with home.lock:
            weights = Weights(home.keep)  # not kept for those that are not chosen
            launches = [task.make(device, values, weights) for task in option.tasks]
        stream = home.stream()
        start, end = Event(device), Event(device)

        def timed(repeats: int) -> float:
            graph = device.capture(launches * repeats)
            graph.launch(stream)  # what is done once
            samples = []
            for _ in range(_SAMPLES):
                start.record(stream)
                graph.launch(stream)
                end.record(stream).synchronize()
                samples.append(end.elapsed_since(start) / 1e3 / repeats)
            return statistics.median(samples)

        once = timed(1)
        repeats = min(math.ceil(_SAMPLE_SECONDS / max(once, 1e-7)), _MOST_REPEATS)
        return once if repeats == 1 else timed(repeats)


def _signature(spec: Spec) -> list[Any]:
    return [list(spec.shape), str(spec.dtype), spec.is_ours]
