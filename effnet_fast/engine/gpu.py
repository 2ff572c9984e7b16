"""The GPU engine: a plan's native stages as launches, on a GPU or on the PTX machine."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..arena import lifetimes, place
from ..errors import ArgumentError, BackendError, EffnetFastError, GpuError, OutOfMemoryError
from ..gpu.device import Device, Event, Graph, Launch, Stream
from ..gpu.targets import Target
from ..gpu.tensor import DeviceTensor
from ..graph import Ref
from ..ops.gpu_step import CHECKS, LANGUAGES, aligned_map
from ..plan import Plan, Stage
from .cpu import run_torch
from .gpu_measure import Measure
from .gpu_tasks import Choice, Spec, Task, Weights, lower, spec_of

_log = logging.getLogger(__name__)

_NAMES = {"cuda": "CUDA C++", "triton": "Triton"}
_ALIGN = 256  # bytes: what torch's allocator gives
_BATCHES_KEPT = 8  # of a plan: an arena and a graph each
_BINDINGS_KEPT = 16  # places of a batch's images and outputs: torch's allocator gives few


@dataclass
class Home:
    """Where a network lives: a device and its constants there.

    Attributes
    ----------
    torch_device : where the images are.
    apart : whether each value has an allocation of its own, for the machine to guard.
    target : the GPU that kernels are chosen for.
    missing : why kernels that would be preferred are not.
    measures : whether kernels are chosen by measurement, rather than by the model of the target.
    measured : seconds that were, by :class:`Measure`'s keys.
    """

    device: Device
    torch_device: torch.device
    languages: tuple[str, ...]
    apart: bool
    target: Target
    missing: tuple[str, ...] = ()
    measures: bool = False
    measured: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = Weights(self.keep)
        self.lock = threading.Lock()

    @classmethod
    def on(cls, device: Device, torch_device: torch.device, languages: Sequence[str] = ()) -> Home:
        """With the languages whose kernels are there, if none are named."""
        apart, target = device.backend == "ptx", Target.of(device)
        found, missing = (tuple(languages), ()) if languages else available()
        for reason in missing:
            _log.warning("%s", reason)
        # The machine's clock says nothing of a GPU.
        measures = device.backend == "cuda" and os.environ.get("EFFNET_FAST_TUNE", "1") != "0"
        return cls(device, torch_device, found, apart, target, missing, measures)

    def __str__(self) -> str:
        languages = " and ".join(_NAMES[language] for language in self.languages)
        return "; ".join((f"{self.device.name}, kernels in {languages}", *self.missing))

    @property
    def emulated(self) -> bool:
        return self.device.backend == "ptx"

    def upload(self, x: torch.Tensor) -> DeviceTensor:
        """A copy there, or the tensor itself where it is there already."""
        if self.emulated:
            return DeviceTensor.upload(self.device, x)
        return DeviceTensor.of(x.to(self.torch_device))

    def keep(self, constant: torch.Tensor) -> DeviceTensor:
        """A constant there, complete whatever stream reads it."""
        there = self.upload(constant)
        if not self.emulated:
            torch.cuda.current_stream(self.torch_device).synchronize()
        return there

    def random(self, spec: Spec, batch: int) -> DeviceTensor:
        """A value like those of a network: of zeros a GPU draws less power, and may run faster."""
        count = spec.bytes(batch) // spec.dtype.itemsize
        if self.emulated:
            kept: Any = self.device.empty(spec.bytes(batch))
            self.device.upload(torch.empty(count, dtype=spec.dtype).normal_(), into=kept)
            return _tensor(spec, batch, kept, kept.address)
        kept = torch.empty(count, dtype=spec.dtype, device=self.torch_device).normal_()
        return _tensor(spec, batch, kept, kept.data_ptr())

    def fetch(self, x: DeviceTensor) -> torch.Tensor:
        """What :meth:`random` made, as a tensor of torch's: a copy where torch is elsewhere."""
        if not self.emulated:
            return x.memory.as_strided(x.shape, x.strides)
        result = torch.empty(x.shape, dtype=x.dtype)
        x.download(self.device, result)
        return result

    def stream(self) -> Stream:
        """The caller's."""
        if self.emulated:
            return self.device.stream
        return Stream(self.device, torch.cuda.current_stream(self.torch_device).cuda_stream)


def available() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The languages whose kernels can be launched, best first; and why better ones cannot.

    Raises
    ------
    BackendError
        There is none: neither CUDA kernels nor Triton.
    """
    found, missing = [], []
    for language in LANGUAGES:
        try:
            CHECKS[language]()
        except EffnetFastError as error:
            if not found:
                missing.append(f"none in {_NAMES[language]}: {error}")
        else:
            found.append(language)
    if not found:
        raise BackendError("; ".join(missing))
    return tuple(found), tuple(missing)


class GpuEngine:
    """Runs one plan. Safe to call from several threads at once, on any streams.

    Parameters
    ----------
    plan : Plan
    home : Home
    dtype : torch.dtype
    batch : int, optional
        To choose kernels for, whatever the batch that is run.
    """

    def __init__(self, plan: Plan, home: Home, dtype: torch.dtype, batch: int | None = None):
        self.plan = plan
        self.batch = batch
        self.home = home
        self.dtype = dtype
        aliases = plan.network.aliases
        names = (out.name for out in plan.network.outputs if isinstance(out, Ref))
        self._last = tuple(dict.fromkeys(aliases.get(name, name) for name in names))
        self._lock = threading.Lock()
        self._batches: OrderedDict[int, list[_Native | None]] = OrderedDict()

    def run(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values that the stages leave, for images (N, C, H, W) of the engine's type."""
        values: dict[str, torch.Tensor] = {self.plan.network.input: x}
        batch = x.shape[0]
        if batch == 0:
            return self._empty(values)
        stream = self.home.stream()
        natives = self._natives(batch, stream)
        for stage, native in zip(self.plan.stages, natives, strict=True):
            if native is None:
                run_torch(self.plan.network, stage.steps[0], values)
            else:
                native.run(values, stream)
        for name in self._last:
            # Without what lies between the pixels of a map whose channels are no multiple of 16
            # bytes: torch.compile was told of none.
            if values[name].dim() == 4:
                values[name] = values[name].contiguous(memory_format=torch.channels_last)
        return values

    def traced(self, names: Iterable[str]) -> GpuEngine:
        """An engine that leaves these values too, of those that the plan's steps make."""
        wanted = list(dict.fromkeys(names))
        stages = []
        for stage in self.plan.stages:
            made = {name for step in stage.steps for name in step.makes()}
            more = tuple(n for n in wanted if n in made and n not in stage.outputs)
            stages.append(replace(stage, outputs=(*stage.outputs, *more)))
        return GpuEngine(replace(self.plan, stages=tuple(stages)), self.home, self.dtype)

    def choices(self, batch: int) -> list[Choice]:
        """The kernels of every native step, for batches of so many images."""
        return [choice for choices, _ in self.lowered(batch) for choice in choices]

    def lowered(self, batch: int) -> Iterator[tuple[list[Choice], dict[str, Spec]]]:
        """Of each native stage: its steps' kernels, and the values that they read and make."""
        for stage in self.plan.stages:
            if stage.native:
                yield self._lower(stage, batch)

    def planned_arena_bytes(self, batch: int) -> int:
        """What the values of a batch take, at most in one stage."""
        sizes = [0]
        for stage in self.plan.stages:
            if stage.native:
                choices, specs = self._lower(stage, batch)
                sizes.append(_placed(stage, _tasks(choices), specs, batch)[1])
        return max(sizes)

    def _lower(self, stage: Stage, batch: int) -> tuple[list[Choice], dict[str, Spec]]:
        home, batch = self.home, self.batch or batch
        measure = Measure(home, batch) if home.measures else None
        return lower(self.plan, stage, batch, self.dtype, home.target, home.languages, measure)

    def _natives(self, batch: int, stream: Stream | None = None) -> list[_Native | None]:
        """The stages for a batch: kept, but for a caller who is capturing.

        A captured graph has memory of its own, from the pool that torch captures with; the kept
        one may be in use elsewhere when the graph is replayed.

        Raises
        ------
        ArgumentError
            The caller captures the first call with this batch: kernels would be loaded and weights
            packed within the capture.
        """
        if stream is not None and not self.home.emulated and stream.capturing:
            if batch not in self._batches:
                h, w = self.plan.size
                raise ArgumentError(
                    f"a batch of {batch} images of {h}x{w} is captured before it was ever run; "
                    "accepted: a call with such a batch first"
                )
            return self._made(batch, keep=False)
        with self._lock:
            if batch not in self._batches:
                self._batches[batch] = self._made(batch, keep=True)
                if len(self._batches) > _BATCHES_KEPT:
                    self._batches.popitem(last=False)
            self._batches.move_to_end(batch)
            return self._batches[batch]

    def _made(self, batch: int, keep: bool) -> list[_Native | None]:
        return [
            _Native(self, stage, batch, *self._lower(stage, batch), keep) if stage.native else None
            for stage in self.plan.stages
        ]

    def _empty(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch of no images."""
        for stage in self.plan.stages:
            if not stage.native:
                run_torch(self.plan.network, stage.steps[0], values)
                continue
            for name in stage.outputs:
                values[name] = _output(spec_of(self.plan, name, self.dtype), 0, values)
        return values


class _Native:
    """A stage for one batch: its launches, the memory between them, and graphs of them.

    Launches that touch tensors of the caller are made anew for each place that those have; runs of
    the others are captured.
    """

    def __init__(
        self,
        engine: GpuEngine,
        stage: Stage,
        batch: int,
        choices: list[Choice],
        specs: Mapping[str, Spec],
        keep: bool,
    ):
        self.home = engine.home
        self.stage = stage
        self.batch = batch
        self.specs = specs
        self.tasks = _tasks(choices)
        self.any_layout = {
            name
            for name in stage.inputs
            if all(task.operator.startswith("stem") for task in self.tasks if name in task.reads)
        }
        outside = {*stage.inputs, *stage.outputs}
        self.values = self._place(*_placed(stage, self.tasks, specs, batch))
        self.keep = keep
        self._lock = threading.Lock()
        self._free: Event | None = None  # behind the last use of the memory
        self._runs = list(self._cut(outside))
        self._bound: OrderedDict[Any, list[list[Launch]]] = OrderedDict()

    def _place(self, offsets: Mapping[str, int], total: int) -> dict[str, DeviceTensor]:
        """The values between the launches, in an arena or each in an allocation of its own."""
        device = self.home.device
        self._arena: torch.Tensor | None = None  # of torch's allocator
        try:
            if self.home.apart:
                memory = {n: device.empty(self.specs[n].bytes(self.batch)) for n in offsets}
                at = {name: (memory[name], memory[name].address) for name in offsets}
            elif self.home.emulated:
                arena = device.empty(total)
                at = {name: (arena, arena.address + offsets[name]) for name in offsets}
            else:
                arena = torch.empty(total, dtype=torch.uint8, device=self.home.torch_device)
                self._arena = arena
                at = {name: (arena, arena.data_ptr() + offsets[name]) for name in offsets}
        except (torch.OutOfMemoryError, GpuError) as error:
            if isinstance(error, GpuError) and error.result != "CUDA_ERROR_OUT_OF_MEMORY":
                raise
            raise OutOfMemoryError(
                f"a batch of {self.batch} needs an arena of {total:,} bytes on "
                f"{device.name}, which has {device.memory[0]:,} free: {error}"
            ) from error
        return {name: _tensor(self.specs[name], self.batch, *at[name]) for name in offsets}

    def _cut(self, outside: set[str]) -> Iterator[_Run]:
        """Runs of tasks that touch the caller's tensors, and of those that do not."""
        run: list[Task] = []
        run_is_bound = False
        for task in self.tasks:
            bound = not outside.isdisjoint((*task.reads, *task.writes))
            if run and bound != run_is_bound:
                yield self._run_of(run, run_is_bound)
                run = []
            run_is_bound = bound
            run.append(task)
        if run:
            yield self._run_of(run, run_is_bound)

    def _run_of(self, tasks: list[Task], bound: bool) -> _Run:
        return _Run(tasks, None if bound else self._launches(tasks, self.values))

    def _launches(self, tasks: Sequence[Task], values: Mapping[str, DeviceTensor]) -> list[Launch]:
        with self.home.lock:
            return [task.make(self.home.device, values, self.home.weights) for task in tasks]

    def run(self, values: dict[str, torch.Tensor], stream: Stream) -> None:
        """Read the stage's inputs from ``values`` and add its outputs."""
        home = self.home
        outside: dict[str, DeviceTensor] = {}
        for name in self.stage.inputs:
            x = values[name]
            if x.dim() != 4:
                x = x.reshape(self.batch, *self.specs[name].shape)
            if name not in self.any_layout:
                x = aligned_map(x)
            values[name] = x  # alive until the work is in the stream
            outside[name] = home.upload(x)
        made = {}
        for name in self.stage.outputs:
            made[name] = _output(self.specs[name], self.batch, values)
            spec = self.specs[name]
            outside[name] = (
                _tensor(spec, self.batch, *_allocate(home.device, spec.bytes(self.batch)))
                if home.emulated
                else _tensor(spec, self.batch, None, made[name].data_ptr())
            )
        with self._lock:
            if self._free is not None:
                stream.wait(self._free)
            bound = self._bind(outside)
            for run in self._runs:
                if run.launches is None:
                    home.device.launch(next(bound), stream)
                elif not self.keep:
                    home.device.launch(run.launches, stream)
                else:
                    run.replay(home.device, stream)
            if not home.emulated and self._arena is not None:
                # The allocator gives it to others when this batch is forgotten: not before here.
                self._arena.record_stream(torch.cuda.current_stream(home.torch_device))
            if self.keep:
                self._free = (self._free or Event(home.device, timing=False)).record(stream)
        if home.emulated:
            for name in self.stage.outputs:
                y = made[name]
                outside[name].download(home.device, y.reshape(outside[name].shape))
        values.update(made)

    def _bind(self, outside: Mapping[str, DeviceTensor]) -> Iterator[list[Launch]]:
        """The launches that touch the caller's tensors."""
        key = tuple((t.address, t.shape, t.strides) for t in outside.values())
        if key not in self._bound:
            # Without the memory: these are kept, and must not keep the caller's tensors.
            there = {name: replace(t, memory=None) for name, t in outside.items()}
            self._bound[key] = [
                self._launches(run.tasks, {**self.values, **there})
                for run in self._runs
                if run.launches is None
            ]
            if len(self._bound) > _BINDINGS_KEPT:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return iter(self._bound[key])


class _Run:
    """Tasks in a row; launches and a graph of them where their places never change."""

    def __init__(self, tasks: list[Task], launches: list[Launch] | None):
        self.tasks = tasks
        self.launches = launches
        self._graph: Graph | None = None

    def replay(self, device: Device, stream: Stream) -> None:
        if self._graph is None:
            self._graph = device.capture(self.launches)
        self._graph.launch(stream)


def _tasks(choices: Sequence[Choice]) -> list[Task]:
    return [task for choice in choices for task in choice.options[0].tasks]


def _placed(
    stage: Stage, tasks: Sequence[Task], specs: Mapping[str, Spec], batch: int
) -> tuple[dict[str, int], int]:
    """Offsets in bytes for the values between the launches, and what they take."""
    outside = {*stage.inputs, *stage.outputs}
    lives = lifetimes([t.writes for t in tasks], [t.reads for t in tasks])
    lives = {name: life for name, life in lives.items() if name not in outside}
    spans = {name: -(-specs[name].bytes(batch) // _ALIGN) * _ALIGN for name in lives}
    return place(spans, lives)


def _tensor(spec: Spec, batch: int, memory: Any, address: int) -> DeviceTensor:
    return DeviceTensor(memory, address, spec.dtype, (batch, *spec.shape), spec.strides())


def _allocate(device: Device, bytes: int) -> tuple[Any, int]:
    buffer = device.empty(bytes)
    return buffer, buffer.address


def _output(spec: Spec, batch: int, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A tensor that torch sees: channels last, as the spec has it; a map of one pixel as (N, C)."""
    device = next(iter(values.values())).device
    if len(spec.shape) == 3 and spec.shape[1:] != (1, 1):
        strides = spec.strides()
        storage = torch.empty(batch * strides[0], dtype=spec.dtype, device=device)
        return storage.as_strided((batch, *spec.shape), strides)
    return torch.empty((batch, spec.shape[0]), dtype=spec.dtype, device=device)
