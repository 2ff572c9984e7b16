"""The reference engine: a plan's steps as operator calls, one by one.

With ``impl="reference"`` it is plain PyTorch in any dtype and on any device. With ``impl="auto"``
it is what torch.export and torch.compile trace: a graph of ``effnet_fast::`` operators, the same
kernels as the CPU engine's.
"""

from __future__ import annotations

import torch

from .. import ops
from ..network import PointwiseConv
from ..plan import Plan, Step
from .cpu import run_torch


def run(plan: Plan, x: torch.Tensor, impl: str = "reference") -> dict[str, torch.Tensor]:
    """Every value of the network for images (N, C, H, W)."""
    network = plan.network
    values: dict[str, torch.Tensor] = {network.input: x}
    for step in plan.steps:
        if step.operator in ("aten", "swish"):
            run_torch(network, step, values, impl)
        else:
            run_step(step, values, impl)
    return values


def run_step(step: Step, values: dict[str, torch.Tensor], impl: str) -> None:
    """Add what one step makes to the values."""
    first, node = step.nodes[0], step.nodes[-1]
    if step.operator == "squeeze_excite":
        values[node.name] = ops.squeeze_excite(
            values[node.sums],
            step.pixels,
            node.w1,
            node.b1,
            node.w2,
            node.b2,
            act=node.act.label,
            gate_act=node.gate_act.label,
            impl=impl,
        )
        return
    if step.operator == "classifier":
        values[node.name] = ops.classifier(
            values[node.x].flatten(1), node.weight, node.bias, impl=impl
        )
        return
    x = values[first.x]
    if x.dim() == 2:
        x = x[:, :, None, None]
    window, stem = {}, {}
    if step.window is not None:
        window = {"stride": step.window.stride, "padding": step.window.padding}
        if step.operator != "stem_conv":
            window["dilation"] = step.window.dilation
    if step.stem is not None:
        stem = {"stem_stride": step.stem.stride, "stem_padding": step.stem.padding}
    residual = values[node.residual] if getattr(node, "residual", None) else None
    if step.operator == "stem_conv":
        y = ops.stem_conv(x, node.weight, node.bias, act=node.act.label, impl=impl, **window)
    elif step.operator == "pointwise_conv":
        gate = values[node.gate] if node.gate else None
        y = ops.pointwise_conv(
            x,
            node.weight,
            node.bias,
            act=node.act.label,
            gate=gate,
            residual=residual,
            pool=node.pool,
            impl=impl,
        )
    elif step.operator == "depthwise_conv":
        y = ops.depthwise_conv(
            x,
            node.weight,
            node.bias,
            act=node.act.label,
            sums=node.sums is not None,
            impl=impl,
            **window,
        )
    elif step.operator == "stem_depthwise":
        y = ops.stem_depthwise(
            x,
            first.weight,
            first.bias,
            node.weight,
            node.bias,
            stem_act=first.act.label,
            act=node.act.label,
            sums=node.sums is not None,
            impl=impl,
            **stem,
            **window,
        )
    elif step.operator == "expand_depthwise":
        y = ops.expand_depthwise(
            x,
            first.weight,
            first.bias,
            node.weight,
            node.bias,
            expand_act=first.act.label,
            act=node.act.label,
            sums=node.sums is not None,
            impl=impl,
            **window,
        )
    else:
        project = node if isinstance(node, PointwiseConv) else None
        y = ops.fused_mbconv(
            x,
            first.weight,
            first.bias,
            act=first.act.label,
            project_weight=project and project.weight,
            project_bias=project and project.bias,
            project_act=project.act.label if project else "none",
            residual=residual,
            impl=impl,
            **window,
        )
    if getattr(node, "sums", None):
        values[node.name], values[node.sums] = y
    else:
        values[node.name] = y
