"""Steps of a plan as launches: which kernel does each, how it is cut, what it should take.

A task is a launch without addresses. What is chosen depends on the batch and on the GPU that it is
for, which need not be there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..cuda import depthwise_conv as cuda_depthwise
from ..cuda import expand_depthwise as cuda_expand
from ..cuda import pointwise_conv as cuda_pointwise
from ..cuda import squeeze_excite as cuda_squeeze
from ..gpu import cost
from ..gpu.device import Device, Launch
from ..gpu.targets import Target
from ..gpu.tensor import DeviceTensor
from ..network import Act, DepthwiseConv, PointwiseConv, SqueezeExcite
from ..ops.gpu_step import host_side
from ..plan import Plan, Stage, Step

Tensors = Mapping[str, DeviceTensor]
_TILINGS = 4  # of a kernel that are measured at most: each is five samples of half a millisecond
# Packed constants: of (the node's weight, what packs it), made once.
Pack = Callable[[], Sequence[torch.Tensor | None]]


@dataclass(frozen=True)
class Spec:
    """A value on the device, of one image: a map (C, H, W), a vector (C,) or sums (tiles, C)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_ours: bool = True  # not the caller's image, which lies as it does

    def bytes(self, batch: int = 1) -> int:
        """Of a batch."""
        return batch * self.strides()[0] * self.dtype.itemsize

    def strides(self) -> tuple[int, ...]:
        """Of a batch: a map's channels are adjacent, its pixels begin at multiples of 16 bytes."""
        if len(self.shape) == 3:
            c, h, w = self.shape
            pixel = c + -c % (16 // self.dtype.itemsize) if h * w > 1 and self.is_ours else c
            return pixel * h * w, 1, w * pixel, pixel
        return tuple(math.prod(self.shape[i:]) for i in range(len(self.shape) + 1))


@dataclass(frozen=True, eq=False)
class Task:
    """A launch without addresses.

    Attributes
    ----------
    operator : what it does: ``"pointwise_conv"``; of a step that two kernels do, its own part.
    language : ``"cuda"`` or ``"triton"``.
    node : the value that it makes.
    cut : how its outputs are cut, for people.
    reads, writes : names of values.
    make : the launch, of a device, the values there, and the packed constants.
    blocks : of the grid.
    bytes : of DRAM, for the batch: every operand once.
    seconds : modelled.
    images : of a block: a launch for fewer has blocks that are not full.
    """

    operator: str
    language: str
    node: str
    cut: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    make: Callable[[Device, Tensors, Weights], Launch]
    blocks: int
    bytes: int
    seconds: float
    images: int = 1


@dataclass(frozen=True, eq=False)
class Option:
    """One way to do a step: tasks, and what they make besides the step's values."""

    name: str
    tasks: tuple[Task, ...]
    specs: Mapping[str, Spec]

    @property
    def seconds(self) -> float:
        return sum(task.seconds for task in self.tasks)


@dataclass(frozen=True, eq=False)
class Choice:
    """Steps, mostly one, with what they could be done by, the fastest first.

    Attributes
    ----------
    measured : the options' seconds on the device; None where the model's are what was chosen by.
    """

    steps: tuple[Step, ...]
    options: tuple[Option, ...]
    measured: tuple[float, ...] | None = None


# Seconds of each way to do steps, which read values of these specs; or None.
Measurement = Callable[
    [Sequence[Step], Sequence[Option], Mapping[str, Spec]], tuple[float, ...] | None
]


class Weights:
    """A network's constants on one device, packed once for all sizes and batches."""

    def __init__(self, upload: Callable[[torch.Tensor], DeviceTensor]):
        self._upload = upload
        self._packed: dict[tuple[Any, ...], tuple[DeviceTensor | None, ...]] = {}

    def get(self, key: tuple[Any, ...], pack: Pack) -> tuple[DeviceTensor | None, ...]:
        """What ``pack`` returns, there."""
        if key not in self._packed:
            self._packed[key] = tuple(None if t is None else self._upload(t) for t in pack())
        return self._packed[key]

    def addresses(self) -> set[int]:
        """Where they are."""
        packed = self._packed.values()
        return {t.address for tensors in packed for t in tensors if t is not None}

    @property
    def bytes(self) -> int:
        return sum(t.bytes for packed in self._packed.values() for t in packed if t is not None)


def lower(
    plan: Plan,
    stage: Stage,
    batch: int,
    dtype: torch.dtype,
    target: Target,
    languages: tuple[str, ...],
    measure: Measurement | None = None,
) -> tuple[list[Choice], dict[str, Spec]]:
    """A native stage as tasks for batches of ``batch`` images, chosen by the model, or by
    ``measure``.

    Returns
    -------
    list of Choice
    dict of str to Spec
        Of every value that a chosen task reads or writes.
    """
    return _Lowering(plan, stage, batch, dtype, target, languages).run(measure)


def spec_of(plan: Plan, name: str, dtype: torch.dtype) -> Spec:
    """Of a value of the network: a vector is a map of one pixel, sums are of whole images."""
    name = plan.network.aliases.get(name, name)
    if any(name == getattr(node, "sums", None) for node in _depthwise(plan)):
        return Spec(plan.sizes[name][:1], torch.float32)
    return Spec(plan.sizes[name], dtype, name != plan.network.input)


def _depthwise(plan: Plan) -> Iterator[DepthwiseConv]:
    return (node for node in plan.network.nodes if isinstance(node, DepthwiseConv))


class _Lowering:
    def __init__(
        self,
        plan: Plan,
        stage: Stage,
        batch: int,
        dtype: torch.dtype,
        target: Target,
        languages: tuple[str, ...],
    ):
        self.plan = plan
        self.stage = stage
        self.batch = batch
        self.dtype = dtype
        self.size = dtype.itemsize
        self.target = target
        self.languages = languages
        self.specs: dict[str, Spec] = {name: self.spec_of(name) for name in stage.inputs}
        self.outside = {*stage.inputs, *stage.outputs}
        self.measures = False

    def run(self, measure: Measurement | None) -> tuple[list[Choice], dict[str, Spec]]:
        self.measures = measure is not None
        choices = []
        steps = list(self.stage.steps)
        while steps:
            step, *following = steps[:2]
            options, done = list(self.ways(step)), (step,)
            joined = list(self.joined(step, *following)) if following else []
            if joined:
                done = (step, *following)
                name = ", ".join(s.operator for s in done)
                after = functools.partial(self.ways, *following)
                options = [*joined, *self.both(name, options, after)]
            choices.append(self.choose(done, options, measure))
            self.specs.update(choices[-1].options[0].specs)
            steps = steps[len(done) :]
        return choices, self.specs

    def ways(self, step: Step) -> Iterator[Option]:
        """To do a step by itself."""
        return {
            "stem_conv": self.stem,
            "pointwise_conv": self.pointwise,
            "depthwise_conv": self.depthwise,
            "expand_depthwise": self.expand_depthwise,
            "squeeze_excite": self.squeeze_excite,
            "fused_mbconv": self.fused_mbconv,
            "classifier": self.classifier,
        }[step.operator](step)

    def choose(
        self, steps: tuple[Step, ...], options: list[Option], measure: Measurement | None
    ) -> Choice:
        options.sort(key=lambda option: option.seconds)
        reads = {
            name: self.specs.get(name) or self.spec_of(name)
            for option in options
            for task in option.tasks
            for name in task.reads
            if name not in option.specs
        }
        seconds = None if measure is None else measure(steps, options, reads)
        if seconds is None:
            return Choice(steps, tuple(options))
        order = sorted(range(len(options)), key=seconds.__getitem__)
        return Choice(steps, tuple(options[i] for i in order), tuple(seconds[i] for i in order))

    # ---- values ----------------------------------------------------------------------------------

    def name(self, name: str) -> str:
        return self.plan.network.aliases.get(name, name)

    def map_size(self, name: str) -> tuple[int, int, int]:
        return self.plan.sizes[self.name(name)]

    def spec_of(self, name: str) -> Spec:
        return spec_of(self.plan, name, self.dtype)

    def sums_of(self, name: str | None, tiles: int) -> tuple[str | None, dict[str, Spec]]:
        """Where a depthwise convolution leaves its tiles' sums: who needs totals adds them."""
        if name is None:
            return None, {}
        c = self.map_size(name)[0]
        partial = f"{name}:tiles" if name in self.outside else name
        return partial, {partial: Spec((tiles, c), torch.float32)}

    # ---- costs -----------------------------------------------------------------------------------

    def task(
        self,
        operator: str,
        language: str,
        node: str,
        make: Callable[[Device, Tensors, Weights], Launch],
        reads: Iterable[str | None],
        specs: Mapping[str, Spec],
        weights: int,
        cycles: float,
        blocks: int,
        cut: str = "",
        images: int = 1,
    ) -> Task:
        """``specs`` are of what it writes, ``weights`` its bytes of constants."""
        names = tuple(self.name(name) for name in reads if name is not None)
        known = {**self.specs, **specs}
        total = weights + sum(
            (known.get(name) or self.spec_of(name)).bytes(self.batch) for name in (*names, *specs)
        )
        seconds = max(cycles / self.target.clock, total / self.target.dram)
        seconds += cost.LAUNCH_SECONDS
        writes = tuple(specs)
        return Task(
            operator, language, node, cut, names, writes, make, blocks, total, seconds, images
        )

    def element_cycles(self, elements: float, each: float) -> float:
        """Of a kernel that spreads over the GPU."""
        return elements * each / self.target.multiprocessors

    # ---- steps -----------------------------------------------------------------------------------

    def stem(self, step: Step) -> Iterator[Option]:
        (node,) = step.nodes
        spec = self.spec_of(node.name)
        taps = math.prod(node.weight.shape[1:])
        for language in self.languages:
            kernels = host_side(language, "stem_conv")

            def make(device: Device, t: Tensors, w: Weights, kernels=kernels) -> Launch:
                packed = w.get((node.name, kernels), lambda: kernels.pack(node.weight, node.bias))
                x, y = t[self.name(node.x)], t[node.name]
                return kernels.launch(device, x, packed, y, step.window, node.act)

            outputs = self.batch * math.prod(spec.shape)
            cycles = self.element_cycles(outputs, (taps + 40) / 32 / cost.ISSUE)
            task = self.task(
                "stem_conv", language, node.name, make, (node.x,), {node.name: spec},
                node.weight.nbytes, cycles, -(-outputs // 2048),
            )  # fmt: skip
            yield Option(f"stem_conv ({language})", (task,), {node.name: spec})

    def joined(self, step: Step, following: Step) -> Iterator[Option]:
        """One kernel for what makes a value and for what alone reads it, where there is one."""
        node, then = step.nodes[-1], following.nodes[-1]
        if "cuda" not in self.languages or node.name in self.outside:
            return
        if self.readers(node.name) != 1:
            return
        pair = step.operator, following.operator
        if pair == ("stem_conv", "depthwise_conv") and then.x == node.name:
            yield from self.ring(then, following.window, node, step.window)
        if pair == ("squeeze_excite", "pointwise_conv") and then.gate == node.name:
            excited = self.excited_pointwise(node, step.pixels, then)
            if excited is not None:
                yield excited

    def both(
        self, name: str, before: Iterable[Option], after: Callable[[], Iterable[Option]]
    ) -> Iterator[Option]:
        """Every way of the first, and every way of what reads it."""
        for first in before:
            known, self.specs = self.specs, {**self.specs, **first.specs}
            for second in after():
                tasks, specs = (*first.tasks, *second.tasks), {**first.specs, **second.specs}
                yield Option(name, tasks, specs)
            self.specs = known

    def readers(self, name: str) -> int:
        return sum(self.name(n) == name for step in self.plan.steps for n in step.reads())

    def ring(
        self, node: DepthwiseConv, window: Any, first: Any, stem: Any = None
    ) -> Iterator[Option]:
        """expand_depthwise.cu, where it can: as the model would have it, or several to measure."""
        spec = self.spec_of(node.name)
        cin, h, w = self.map_size(first.x)
        x = DeviceTensor(None, 0, self.dtype, (1, cin, h, w), (h * w * cin, 1, w * cin, cin))
        y = DeviceTensor(None, 0, self.dtype, (1, *spec.shape), spec.strides())
        if not cuda_expand.can(x, y, window, first.act, node.act, stem):
            return
        problem = cuda_expand.Problem.of(x, y, window, stem)
        operator = "expand_depthwise" if stem is None else "stem_depthwise"
        candidates = cuda_expand.best_tilings(
            self.batch, problem, self.target.multiprocessors, _TILINGS if self.measures else 1
        )
        for cycles, cut in candidates:
            # The plain name is of the model's choice.
            name = operator if cut is candidates[0][1] else f"{operator}, {cut}"
            yield self.ring_of(name, operator, node, window, first, stem, cycles, cut)

    def ring_of(
        self,
        name: str,
        operator: str,
        node: DepthwiseConv,
        window: Any,
        first: Any,
        stem: Any,
        cycles: float,
        cut: Any,
    ) -> Option:
        """expand_depthwise.cu, cut in one way."""
        spec = self.spec_of(node.name)
        channels, *out = spec.shape
        tiles = cuda_expand.tile_count(cut, tuple(out))
        sums, specs = self.sums_of(node.sums, tiles)
        specs = {node.name: spec, **specs}

        def make(device: Device, t: Tensors, w: Weights) -> Launch:
            packed = w.get(
                (node.name, operator, cuda_expand.skips_first(stem)),
                lambda: cuda_expand.pack(first.weight, first.bias, node.weight, node.bias, stem),
            )
            return cuda_expand.launch(
                device, t[self.name(first.x)], packed, t[node.name], window, first.act, node.act,
                None if sums is None else t[sums], stem, cut,
            )  # fmt: skip

        task = self.task(
            operator, "cuda", node.name, make, (first.x,), specs,
            first.weight.nbytes + 4 * (window.kernel[0] ** 2 + 1) * channels, cycles,
            cuda_expand.blocks(cut, self.batch, channels, tuple(out)), str(cut),
            cut.images,
        )  # fmt: skip
        return self.with_totals(name, node, (task,), specs, sums)

    def with_totals(
        self,
        name: str,
        node: DepthwiseConv,
        tasks: tuple[Task, ...],
        specs: dict[str, Spec],
        partial: str | None,
    ) -> Option:
        """With one more task where the sums of tiles have to be added up for others."""
        if partial is None or partial == node.sums:
            return Option(name, tasks, specs)
        language = tasks[-1].language
        side = host_side(language, "depthwise_conv")
        sums, totals = node.sums, Spec((self.map_size(node.sums)[0],), torch.float32)

        def make(device: Device, t: Tensors, w: Weights) -> Launch:
            return side.total(device, t[partial], t[sums])

        known, self.specs = self.specs, {**self.specs, **specs}
        total = self.task(
            "depthwise_conv_total", language, sums, make, (partial,), {sums: totals}, 0, 0.0,
            -(-self.batch * totals.shape[0] // 256),
        )  # fmt: skip
        self.specs = known
        return Option(name, (*tasks, total), {**specs, sums: totals})

    def depthwise(self, step: Step) -> Iterator[Option]:
        yield from self.depthwise_of(step.nodes[-1], step.window, self.spec_of(step.nodes[-1].x))

    def depthwise_of(self, node: DepthwiseConv, window: Any, x: Spec) -> Iterator[Option]:
        spec = self.spec_of(node.name)
        c, h, w = x.shape
        k = window.kernel[0]
        elements = self.batch * math.prod(spec.shape)
        for language in self.languages:
            side = host_side(language, "depthwise_conv")
            options: dict[str, Any] = {}
            if language == "cuda":
                whole = c * self.size % 32 != 0
                cut = cuda_depthwise.tiling(
                    self.batch, c, h, w, window, self.size, self.target.multiprocessors, whole
                )
                options["cut"] = cut
                tiles = cuda_depthwise.tile_count(cut, spec.shape[1:])
                text = "" if cut is None else f"{cut.rows}x{cut.columns} outputs a thread"
                cycles = cuda_depthwise.cycles(
                    cut, self.batch, c, spec.shape[1:], window, self.size,
                    self.target.multiprocessors,
                )  # fmt: skip
            else:
                tiles = side.tile_count(spec.shape[1:])
                text = ""
                # A warp's instructions for each output, by the machine's counts.
                each = (1.5 * k * k + 30) / 32 / cost.ISSUE
                cycles = self.element_cycles(elements, each)
            sums, sum_specs = self.sums_of(node.sums, tiles)
            specs = {node.name: spec, **sum_specs}

            def make(
                device: Device, t: Tensors, w: Weights, side=side, sums=sums, options=options
            ) -> Launch:
                (constants,) = w.get(
                    (node.name, "depthwise_conv"), lambda: (side.pack(node.weight, node.bias),)
                )
                there = None if sums is None else t[sums]
                return side.launch(
                    device, t[self.name(node.x)], constants, t[node.name], window, node.act,
                    there, **options,
                )  # fmt: skip

            task = self.task(
                "depthwise_conv", language, node.name, make, (node.x,), specs,
                4 * (k * k + 1) * c, cycles,
                self.batch * tiles * -(-c // 64), text,
            )  # fmt: skip
            yield self.with_totals(f"depthwise_conv ({language})", node, (task,), specs, sums)

    def expand_depthwise(self, step: Step) -> Iterator[Option]:
        first, node = step.nodes
        if "cuda" in self.languages:
            yield from self.ring(node, step.window, first)
        # Two kernels, with the wide map in memory.
        _, h, w = self.map_size(first.x)
        wide = Spec((first.weight.shape[0], h, w), self.dtype)
        yield from self.both(
            "pointwise_conv, depthwise_conv",
            self.pointwise_of(first, wide),
            lambda: self.depthwise_of(node, step.window, wide),
        )

    def pointwise(self, step: Step) -> Iterator[Option]:
        (node,) = step.nodes
        yield from self.pointwise_of(node, self.spec_of(node.name))

    def pointwise_of(self, node: PointwiseConv, y: Spec) -> Iterator[Option]:
        cin, h, w = self.map_size(node.x)
        cout, pixels = node.weight.shape[0], h * w
        for language in self.languages:
            side = host_side(language, "pointwise_conv")
            multiprocessors = self.target.multiprocessors
            images, own = self.batch, pixels
            if side.joins(self.dtype, node.pool):
                images, own = 1, self.batch * pixels
            arguments = (images, own, cin, cout, self.dtype, multiprocessors)
            kind = {"gated": node.gate is not None, "pooled": node.pool}
            cut = side.tiling(*arguments, **(kind if language == "cuda" else {}))
            cycles = cuda_pointwise.cycles(cut.m, cut.n, *arguments, **kind)
            of_tile = 1
            if node.pool and language == "cuda":
                of_tile = side.images_of_tile(cut.m, images, own, self.dtype, kind["gated"])
            tiles = -(-pixels // cut.m)
            blocks = -(-images // of_tile) * -(-own // cut.m) * -(-cout // cut.n)
            partial = f"{node.name}:tiles"
            specs = {node.name: y}
            if node.pool:
                specs = {partial: Spec((tiles, cout), torch.float32)}

            def make(
                device: Device, t: Tensors, w: Weights, side=side, cut=cut, partial=partial
            ) -> Launch:
                packed = w.get((node.name, side), lambda: side.pack(node.weight, node.bias))
                gate, residual = (
                    None if name is None else t[self.name(name)]
                    for name in (node.gate, node.residual)
                )
                y, sums = (None, t[partial]) if node.pool else (t[node.name], None)
                if gate is not None:
                    gate = flat(gate)
                x = t[self.name(node.x)]
                return side.launch(device, x, packed, y, node.act, gate, residual, sums, cut)

            task = self.task(
                "pointwise_conv", language, node.name, make, (node.x, node.gate, node.residual),
                specs, node.weight.nbytes, cycles, blocks, f"{cut.m}x{cut.n}", of_tile,
            )  # fmt: skip
            tasks = [task]
            if node.pool:

                def mean(
                    device: Device, t: Tensors, w: Weights, side=side, partial=partial
                ) -> Launch:
                    return side.mean(device, t[partial], flat(t[node.name]), pixels)

                known, self.specs = self.specs, {**self.specs, **specs}
                tasks.append(
                    self.task(
                        "pointwise_conv_mean",
                        language,
                        node.name,
                        mean,
                        (partial,),
                        {node.name: y},
                        0,
                        0.0,
                        -(-self.batch * cout // 128),
                    )
                )
                self.specs = known
                specs = {**specs, node.name: y}
            yield Option(f"pointwise_conv ({language})", tuple(tasks), specs)

    def squeeze_excite(self, step: Step) -> Iterator[Option]:
        (node,) = step.nodes
        spec = self.spec_of(node.name)
        for language in self.languages:
            side = host_side(language, "squeeze_excite")
            squeezed, c = node.w1.shape[:2]
            options = {}
            if language == "cuda":
                options["images"] = side.images_of_block(
                    self.batch, c, squeezed, self.target.multiprocessors
                )
            images = options.get("images", 1)

            def make(device: Device, t: Tensors, w: Weights, side=side, options=options) -> Launch:
                packed = w.get(
                    (node.name, side), lambda: side.pack(node.w1, node.b1, node.w2, node.b2)
                )
                sums = by_tile(t[self.name(node.sums)])
                return side.launch(
                    device, sums, step.pixels, packed, flat(t[node.name]), node.act, node.gate_act,
                    **options,
                )  # fmt: skip

            # Every block reads all weights.
            blocks = -(-self.batch // images)
            waves = -(-blocks // (4 * self.target.multiprocessors))
            cycles = waves * cuda_squeeze.latency(c, squeezed, self.dtype)
            task = self.task(
                "squeeze_excite", language, node.name, make, (node.sums,), {node.name: spec},
                2 * node.w1.nbytes, cycles, blocks, images=images,
            )  # fmt: skip
            yield Option(f"squeeze_excite ({language})", (task,), {node.name: spec})

    def excited_pointwise(
        self, node: SqueezeExcite, over: int, project: PointwiseConv
    ) -> Option | None:
        """A pointwise convolution whose blocks make the gate, of sums over so many pixels."""
        if project.pool:
            return None
        cin, h, w = self.map_size(project.x)
        y, cut = self.spec_of(project.name), cuda_pointwise.EXCITED
        cout, squeezed = project.weight.shape[0], node.w1.shape[0]
        cycles = cuda_pointwise.cycles(
            cut.m, cut.n, self.batch, h * w, cin, cout, self.dtype, self.target.multiprocessors,
            gated=True, squeezed=squeezed,
        )  # fmt: skip

        def make(device: Device, t: Tensors, w: Weights) -> Launch:
            layers = w.get(
                (node.name, cuda_squeeze),
                lambda: cuda_squeeze.pack(node.w1, node.b1, node.w2, node.b2),
            )
            packed = w.get(
                (project.name, cuda_pointwise),
                lambda: cuda_pointwise.pack(project.weight, project.bias),
            )
            sums = by_tile(t[self.name(node.sums)])
            gate = cuda_squeeze.Excitation(sums, over, layers, node.act, node.gate_act)
            residual = None if project.residual is None else t[self.name(project.residual)]
            return cuda_pointwise.launch(
                device, t[self.name(project.x)], packed, t[project.name], project.act, gate,
                residual, None, cut,
            )  # fmt: skip

        specs = {project.name: y}
        task = self.task(
            "excited_pointwise_conv", "cuda", project.name, make,
            (project.x, node.sums, project.residual), specs,
            2 * node.w1.nbytes + project.weight.nbytes, cycles,
            self.batch * -(-h * w // cut.m) * -(-cout // cut.n), f"{cut.m}x{cut.n}",
        )  # fmt: skip
        return Option("excited_pointwise_conv (cuda)", (task,), specs)

    def fused_mbconv(self, step: Step) -> Iterator[Option]:
        first, node = step.nodes[0], step.nodes[-1]
        project = None if node is first else node
        y = self.spec_of(node.name)
        cout, out_h, out_w = y.shape
        mid, taps = first.weight.shape[0], math.prod(first.weight.shape[2:])
        depth = taps * (first.weight.shape[1] + -first.weight.shape[1] % (16 // self.size))
        arguments = (self.batch, out_h * out_w, depth, mid)
        for language in self.languages:
            side = host_side(language, "fused_mbconv")
            if project is not None and not side.projects(cout):
                continue
            projected = None if project is None else cout
            cycles = side.modelled(*arguments, projected, self.dtype, self.target.multiprocessors)

            def make(device: Device, t: Tensors, w: Weights, side=side) -> Launch:
                return self.convolve(device, t, w, side, step, first, project, node.residual)

            weights = first.weight.nbytes + (0 if project is None else project.weight.nbytes)
            task = self.task(
                "fused_mbconv", language, node.name, make, (first.x, node.residual),
                {node.name: y}, weights, cycles, -(-self.batch * out_h * out_w // 128),
            )  # fmt: skip
            yield Option(f"fused_mbconv ({language})", (task,), {node.name: y})
        if project is None:
            return
        # Two kernels, with the wide map in memory.
        wide = Spec((mid, out_h, out_w), self.dtype)
        for language in self.languages:
            side = host_side(language, "fused_mbconv")
            cycles = side.modelled(*arguments, None, self.dtype, self.target.multiprocessors)

            def make_first(device: Device, t: Tensors, w: Weights, side=side) -> Launch:
                return self.convolve(device, t, w, side, step, first, None, None)

            task = self.task(
                "fused_mbconv", language, first.name, make_first, (first.x,),
                {first.name: wide}, first.weight.nbytes, cycles,
                -(-self.batch * out_h * out_w // 128) * -(-mid // 64),
            )  # fmt: skip
            before = Option("fused_mbconv", (task,), {first.name: wide})
            yield from self.both(
                "fused_mbconv, pointwise_conv", [before], lambda: self.pointwise_of(project, y)
            )

    def convolve(
        self,
        device: Device,
        t: Tensors,
        weights: Weights,
        side: Any,
        step: Step,
        first: Any,
        project: PointwiseConv | None,
        residual: str | None,
    ) -> Launch:
        """The launch of a fused_mbconv kernel."""
        last = first if project is None else project
        pair = (None, None) if project is None else (project.weight, project.bias)
        packed = weights.get((last.name, side), lambda: side.pack(first.weight, first.bias, *pair))
        return side.launch(
            device, t[self.name(first.x)], packed, t[last.name], step.window, first.act,
            Act.NONE if project is None else project.act,
            None if residual is None else t[self.name(residual)],
        )  # fmt: skip

    def classifier(self, step: Step) -> Iterator[Option]:
        (node,) = step.nodes
        spec = self.spec_of(node.name)
        cout, cin = node.weight.shape
        for language in self.languages:
            side = host_side(language, "pointwise_conv")
            multiprocessors = self.target.multiprocessors
            # Rows are the pixels of one image.
            arguments = (1, self.batch, cin, cout, self.dtype, multiprocessors)
            cut = side.tiling(*arguments)

            def make(device: Device, t: Tensors, w: Weights, side=side, cut=cut) -> Launch:
                packed = w.get((node.name, side), lambda: side.pack(node.weight, node.bias))
                x, y = (rows(t[self.name(name)]) for name in (node.x, node.name))
                return side.launch(device, x, packed, y, Act.NONE, cut=cut)

            task = self.task(
                "classifier", language, node.name, make, (node.x,), {node.name: spec},
                node.weight.nbytes, cuda_pointwise.cycles(cut.m, cut.n, *arguments),
                -(-self.batch // cut.m) * -(-cout // cut.n), f"{cut.m}x{cut.n}",
            )  # fmt: skip
            yield Option(f"classifier ({language})", (task,), {node.name: spec})


def flat(x: DeviceTensor) -> DeviceTensor:
    """A map of one pixel as (N, C)."""
    n, c = x.shape[:2]
    return replace(x, shape=(n, c), strides=(x.strides[0], 1))


def by_tile(sums: DeviceTensor) -> DeviceTensor:
    """Sums as (N, tiles, C): those of whole images have one."""
    if len(sums.shape) == 3:
        return sums
    n, c = sums.shape
    return replace(sums, shape=(n, 1, c), strides=(c, c, 1))


def rows(x: DeviceTensor) -> DeviceTensor:
    """Vectors as the pixels of one map."""
    n, c = x.shape[:2]
    return replace(x, shape=(1, c, n, 1), strides=(n * x.strides[0], 1, x.strides[0], x.strides[0]))
