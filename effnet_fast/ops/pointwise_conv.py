"""pointwise_conv: 1 x 1 convolution; SE gate before it; activation, residual or pool after it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from effnet_fast.errors import ArgumentError
from effnet_fast.ops import references
from effnet_fast.ops.checks import ACTS, check_act, check_map, check_tensor, check_weight
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.references import empty_map, rounded_map, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

SCHEMA = (
    "pointwise_conv(Tensor x, Tensor weight, Tensor? bias, str act, Tensor? gate=None, "
    "Tensor? residual=None) -> Tensor"
)
POOL_SCHEMA = (
    "pointwise_conv_pool(Tensor x, Tensor weight, Tensor? bias, str act, Tensor? gate=None) "
    "-> Tensor"
)


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    act: str
    gate: torch.Tensor | None = None
    residual: torch.Tensor | None = None


def check(a: Args) -> None:
    check_map("x", a.x)
    n, c, h, w = a.x.shape
    check_weight("weight", a.weight, ("O", c, 1, 1), a.x)
    check_tensor("bias", a.bias, a.weight.shape[:1], a.x)
    check_tensor("gate", a.gate, (n, c), a.x)
    check_tensor("residual", a.residual, (n, a.weight.shape[0], h, w), a.x)
    check_act("act", a.act)


def reference(a: Args, pool: bool = False) -> torch.Tensor:
    w = widened(a)
    x = w.x if w.gate is None else w.x * w.gate[:, :, None, None]
    y = references.conv(x, w.weight, w.bias, w.act)
    if pool:
        return y.mean((2, 3)).to(a.x.dtype)
    return rounded_map(y if w.residual is None else y + w.residual, a.x.dtype)


def fake(a: Args, pool: bool = False) -> torch.Tensor:
    cout = a.weight.shape[0]
    if pool:
        return a.x.new_empty((a.x.shape[0], cout))
    return empty_map(a.x, cout, *a.x.shape[2:])


def cpu(a: Args, pool: bool = False) -> torch.Tensor:
    y, step = fake(a, pool), Step()
    step.program.pointwise_conv(
        step.conv(a.weight, a.bias, a.act),
        step.map(a.x),
        step.vector(a.gate),
        step.map(a.residual),
        step.map(None if pool else y),
        step.vector(y if pool else None),
    )
    step.run(a.x.shape[0])
    return y


def gpu(a: Args, language: str, pool: bool = False) -> torch.Tensor:
    outputs = fake(a, pool)
    n, _, h, w = a.x.shape
    if n == 0:
        return outputs
    kernels, step = host_side(language, "pointwise_conv"), GpuStep(a.x)
    x, cout = step.map(a.x), a.weight.shape[0]
    gate = None if a.gate is None else step.tensor(a.gate.contiguous())
    operands, act = (step.device, x, step.packed(kernels.pack(a.weight, a.bias))), ACTS[a.act]
    if not pool:
        residual = None if a.residual is None else step.map(a.residual)
        step.run(kernels.launch(*operands, step.output(outputs), act, gate, residual))
        return outputs
    sums = step.scratch((n, kernels.tiles(step.device, x, cout), cout), a.x)
    step.run(
        kernels.launch(*operands, None, act, gate, None, sums),
        kernels.mean(step.device, sums, step.output(outputs), h * w),
    )
    return outputs


POINTWISE_CONV = Operator(
    SCHEMA,
    Args,
    check=check,
    fake=fake,
    reference=reference,
    cpu=cpu,
    gpu=gpu,
)
POINTWISE_CONV_POOL = Operator(
    POOL_SCHEMA,
    Args,
    check=check,
    fake=partial(fake, pool=True),
    reference=partial(reference, pool=True),
    cpu=partial(cpu, pool=True),
    gpu=partial(gpu, pool=True),
)


def pointwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    act: str = "none",
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    pool: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """act(W (x * gate) + bias) + residual at each pixel, or the mean of it over the pixels.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W). Read in place where its channels are adjacent in memory, copied otherwise.
    weight : Tensor
        (O, C, 1, 1)
    bias : Tensor, optional
        (O,)
    act : str
        As for :func:`stem_conv`.
    gate : Tensor, optional
        (N, C): what :func:`squeeze_excite` returns.
    residual : Tensor, optional
        (N, O, H, W), added after the activation. Not together with ``pool``.
    pool : bool
        Return the mean over the pixels.
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        (N, O, H, W), channels last; with ``pool`` (N, O).

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    if not pool:
        return POINTWISE_CONV(x, weight, bias, act, gate, residual, impl=impl)
    if residual is not None:
        raise ArgumentError("residual is a tensor and pool is True; accepted: one of them")
    return POINTWISE_CONV_POOL(x, weight, bias, act, gate, impl=impl)
