"""A plan's steps as stock PyTorch layers do them, in the type of their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..network import (
    Act,
    Classifier,
    DenseConv,
    DepthwiseConv,
    Node,
    PointwiseConv,
    SqueezeExcite,
    StemConv,
    Window,
)
from ..ops.references import ACTIVATIONS
from ..plan import Step

Values = Mapping[str, torch.Tensor]


def stock_steps(steps: Sequence[Step]) -> Callable[[Values], tuple[torch.Tensor, ...]]:
    """What the last step makes, of the values that they read: maps (N, C, H, W), vectors (N, C).

    Sums are float32 in half precision, as the operators' are. Pure functions of tensors: for
    ``torch.compile`` too.
    """

    def run(values: Values) -> tuple[torch.Tensor, ...]:
        known = dict(values)
        for step in steps:
            for node in step.nodes:
                known.update(_node(node, step, known))
        return tuple(known[name] for name in steps[-1].makes())

    return run


def widened(step: Step) -> Step:
    """A step with its weights in float64."""

    def wide(node: Any) -> Any:
        changes = {
            field.name: value.double()
            for field in dataclasses.fields(node)
            if isinstance(value := getattr(node, field.name), torch.Tensor)
        }
        return dataclasses.replace(node, **changes)

    return dataclasses.replace(step, nodes=tuple(map(wide, step.nodes)))


def _node(node: Node, step: Step, values: Values) -> dict[str, torch.Tensor]:
    if isinstance(node, SqueezeExcite):
        mean = (values[node.sums] / step.pixels).to(node.w1.dtype)
        squeezed = _act(F.linear(mean, node.w1.flatten(1), node.b1), node.act)
        return {node.name: _act(F.linear(squeezed, node.w2.flatten(1), node.b2), node.gate_act)}
    x = values[node.x]
    if isinstance(node, Classifier):
        return {node.name: F.linear(x.flatten(1), node.weight, node.bias)}
    if isinstance(node, PointwiseConv):
        if node.gate is not None:
            x = x * values[node.gate][:, :, None, None]
        y = _act(F.conv2d(x, node.weight.flatten(2)[..., None], node.bias), node.act)
        if node.pool:
            y = y.mean((2, 3))
    elif isinstance(node, (StemConv, DenseConv, DepthwiseConv)):
        groups = x.shape[1] if isinstance(node, DepthwiseConv) else 1
        window = step.stem if isinstance(node, StemConv) and step.stem else step.window
        y = _act(_conv(x, node.weight, node.bias, window, groups), node.act)
    else:
        raise TypeError(type(node).__name__)
    if getattr(node, "residual", None) is not None:
        y = y + values[node.residual]
    if getattr(node, "sums", None) is None:
        return {node.name: y}
    return {node.name: y, node.sums: y.sum((2, 3), dtype=torch.promote_types(y.dtype, torch.float))}


def _conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: Window,
    groups: int,
) -> torch.Tensor:
    top, left, bottom, right = window.padding
    padding: tuple[int, int] = (0, 0)
    if (top, left) == (bottom, right):  # which stock layers do without a copy
        padding = (top, left)
    else:
        x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, window.stride, padding, window.dilation, groups)


def _act(x: torch.Tensor, act: Act) -> torch.Tensor:
    return ACTIVATIONS[act.label](x)
