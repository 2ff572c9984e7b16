"""The CPU engine: a plan's native stages as C++ programs, everything else in torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..graph import run_calls
from ..network import Network
from ..ops import swish
from ..ops.extension import extension
from ..ops.step import nhwc
from ..plan import Plan, Stage, Step
from .cpu_weights import PackedWeights

# Of the operators that only some engines have, those that this one does in a pass.
JOINS = frozenset({"stem_depthwise"})

_STEMS = ("stem_conv", "stem_depthwise")


class CpuEngine:
    """Runs one plan. Safe to call from several threads at once."""

    def __init__(self, plan: Plan, weights: PackedWeights):
        self.plan = plan
        self.weights = weights
        self._stages = [
            NativeStage(plan, stage, weights) if stage.native else _TorchStage(plan.network, stage)
            for stage in plan.stages
        ]

    def run(self, x: torch.Tensor, threads: int) -> dict[str, torch.Tensor]:
        """The values that the stages leave, for images (N, C, H, W), float32."""
        values: dict[str, torch.Tensor] = {self.plan.network.input: x}
        for stage in self._stages:
            stage.run(values, x.shape[0], threads)
        return values

    def profile(self, x: torch.Tensor, threads: int) -> list[tuple[Step, float]]:
        """The native steps with their seconds, for one batch."""
        values: dict[str, torch.Tensor] = {self.plan.network.input: x}
        times: list[tuple[Step, float]] = []
        for stage in self._stages:
            if isinstance(stage, NativeStage):
                seconds = stage.profile(values, x.shape[0], threads)
                times += zip(stage.order, seconds, strict=True)
            else:
                stage.run(values, x.shape[0], threads)
        return times

    def workspace_bytes(self, threads: int) -> int:
        """What the programs keep between runs: arenas and scratch."""
        return sum(
            stage.program.workspace_bytes(threads)
            for stage in self._stages
            if isinstance(stage, NativeStage)
        )


class NativeStage:
    """One C++ program and the tensors that it exchanges with the other stages."""

    def __init__(self, plan: Plan, stage: Stage, weights: PackedWeights):
        native = extension()
        self.stage = stage
        self.sizes = {
            name: plan.sizes[name] for name in (*stage.inputs, *stage.internal, *stage.outputs)
        }
        self.made = (*stage.internal, *stage.outputs)
        # The stem reads the image in any layout; whoever else reads a tensor wants its channels
        # adjacent.
        self.any_layout = {
            name
            for name in stage.inputs
            if all(step.operator in _STEMS for step in stage.steps if name in step.reads())
        }
        self.order = sorted(stage.steps, key=lambda step: step.operator == "classifier")
        self.program = native.Program(stage.arena)
        index = {name: i for i, name in enumerate((*stage.inputs, *self.made))}

        def operand(name: str | None) -> Any:
            if name is None:
                return native.Operand.none()
            name = plan.network.aliases.get(name, name)
            size = plan.sizes[name]
            if name in index:
                return native.Operand.tensor(index[name], *size)
            return native.Operand.arena(stage.offsets[name], *size)

        for step in self.order:
            append(weights, self.program, step, operand)

    def run(self, values: dict[str, torch.Tensor], batch: int, threads: int) -> None:
        tensors, made, _alive = self.bind(values, batch)
        self.program.run(tensors, batch, threads)
        values.update(made)

    def profile(self, values: dict[str, torch.Tensor], batch: int, threads: int) -> list[float]:
        tensors, made, _alive = self.bind(values, batch)
        seconds = self.program.profile(tensors, batch, threads)
        values.update(made)
        return seconds

    def bind(
        self, values: Mapping[str, torch.Tensor], batch: int
    ) -> tuple[list[tuple[int, ...]], dict[str, torch.Tensor], list[torch.Tensor]]:
        """The call's tensors as the program takes them, and the tensors that it makes."""
        tensors, alive = [], []
        for name in self.stage.inputs:
            x = values[name]
            size = self.sizes[name]
            x = x.reshape(batch, *size) if x.dim() != 4 else x
            if name in self.any_layout:
                strides = x.stride()
            else:
                x, strides = nhwc(x)
            alive.append(x)
            tensors.append((x.data_ptr(), batch, *size, *strides))
        made = {}
        for name in self.made:
            c, h, w = self.sizes[name]
            is_vector = (h, w) == (1, 1)
            y = torch.empty((batch, c) if is_vector else (batch, h, w, c))
            made[name] = y if is_vector else y.permute(0, 3, 1, 2)
            tensors.append((y.data_ptr(), batch, c, h, w, h * w * c, 1, w * c, c))
        return tensors, made, alive


def append(weights: PackedWeights, program: Any, step: Step, operand: Any) -> None:
    """Append a step to a program; ``operand`` gives the program's own of a value's name."""
    node = step.nodes[-1]
    if step.operator == "stem_conv":
        program.stem_conv(
            weights.conv(node), weights.window(step.window), operand(node.x), operand(node.name)
        )
    elif step.operator == "pointwise_conv":
        y, pool = (None, node.name) if node.pool else (node.name, None)
        program.pointwise_conv(
            weights.conv(node),
            operand(node.x),
            operand(node.gate),
            operand(node.residual),
            operand(y),
            operand(pool),
        )
    elif step.operator == "depthwise_conv":
        program.depthwise_conv(
            weights.depthwise(node, step.window),
            operand(node.x),
            operand(node.name),
            operand(node.sums),
        )
    elif step.operator == "stem_depthwise":
        stem = step.nodes[0]
        program.stem_depthwise(
            weights.conv(stem),
            weights.window(step.stem),
            weights.depthwise(node, step.window),
            operand(stem.x),
            operand(node.name),
            operand(node.sums),
        )
    elif step.operator == "expand_depthwise":
        expand = step.nodes[0]
        program.expand_depthwise(
            weights.conv(expand),
            weights.depthwise(node, step.window),
            operand(expand.x),
            operand(node.name),
            operand(node.sums),
        )
    elif step.operator == "squeeze_excite":
        program.squeeze_excite(
            weights.squeeze_excite(node), operand(node.sums), step.pixels, operand(node.name)
        )
    elif step.operator == "fused_mbconv":
        first = step.nodes[0]
        project = None if node is first else weights.conv(node)
        program.fused_mbconv(
            weights.conv(first),
            weights.window(step.window),
            project,
            operand(first.x),
            operand(node.residual),
            operand(node.name),
            weights.is_winograd(first),
        )
    else:
        program.classifier(weights.conv(node), operand(node.x), operand(node.name))


class _TorchStage:
    """A segment of ATen calls, or an activation that stands alone."""

    def __init__(self, network: Network, stage: Stage):
        self.network = network
        self.step = stage.steps[0]
        self.node = self.step.nodes[0]
        self.outputs = stage.outputs

    def run(self, values: dict[str, torch.Tensor], batch: int, threads: int) -> None:
        run_torch(self.network, self.step, values)


def run_torch(
    network: Network, step: Step, values: dict[str, torch.Tensor], impl: str = "auto"
) -> None:
    """Run a step that is no native one, reading from and adding to ``values``."""
    (node,) = step.nodes
    if step.operator == "swish":
        values[node.name] = swish(values[node.x], act=node.act.label, impl=impl)
        return
    scope: dict[str, Any] = dict(node.tensors)
    for name in node.inputs:
        scope[name] = as_rank(values[network.aliases.get(name, name)], network.ranks.get(name))
    device = next(x.device for x in values.values() if isinstance(x, torch.Tensor))
    run_calls(node.calls, scope, device)
    values.update((name, scope[name]) for name in node.outputs)


def as_rank(x: Any, rank: int | None) -> Any:
    """A vector as (N, C) or (N, C, 1, 1), whichever the original has; anything else as it is."""
    if not isinstance(x, torch.Tensor) or rank is None or x.dim() == rank:
        return x
    return x.reshape((*x.shape, 1, 1)[:rank]) if rank > x.dim() else x.flatten(1)
