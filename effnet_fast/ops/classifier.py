"""classifier: the linear layer at the end, over the whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from effnet_fast.errors import ShapeError
from effnet_fast.ops.checks import ACTS, check_floating, check_tensor, check_weight
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.references import widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

SCHEMA = "classifier(Tensor x, Tensor weight, Tensor? bias) -> Tensor"


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def check(a: Args) -> None:
    if a.x.dim() < 1 or a.x.shape[-1] < 1:
        raise ShapeError(f"x has shape {tuple(a.x.shape)}; accepted: (..., I) with I at least 1")
    check_floating("x", a.x)
    check_weight("weight", a.weight, ("O", a.x.shape[-1]), a.x)
    check_tensor("bias", a.bias, a.weight.shape[:1], a.x)


def reference(a: Args) -> torch.Tensor:
    return F.linear(*widened(a)).to(a.x.dtype)


def fake(a: Args) -> torch.Tensor:
    return a.x.new_empty((*a.x.shape[:-1], a.weight.shape[0]))


def cpu(a: Args) -> torch.Tensor:
    y, step = fake(a), Step()
    rows = y.numel() // a.weight.shape[0]
    x, flat = a.x.reshape(rows, a.weight.shape[1]), y.view(rows, a.weight.shape[0])
    step.program.classifier(step.conv(a.weight, a.bias, "none"), step.vector(x), step.vector(flat))
    step.run(rows)
    return y


def gpu(a: Args, language: str) -> torch.Tensor:
    y = fake(a)
    if y.numel() == 0:
        return y
    kernels, step = host_side(language, "pointwise_conv"), GpuStep(a.x)
    packed = step.packed(kernels.pack(a.weight, a.bias))
    # Rows are the pixels of one image.
    x, flat = (t.reshape(1, -1, 1, t.shape[-1]).permute(0, 3, 1, 2) for t in (a.x, y))
    arguments = (step.device, step.map(x), packed, step.output(flat), ACTS["none"])
    step.run(kernels.launch(*arguments))
    return y


CLASSIFIER = Operator(
    SCHEMA,
    Args,
    check=check,
    fake=fake,
    reference=reference,
    cpu=cpu,
    gpu=gpu,
)


def classifier(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """The last linear layer: x W^T + bias.

    Parameters
    ----------
    x : Tensor
        (..., I), any strides.
    weight : Tensor
        (O, I)
    bias : Tensor, optional
        (O,)
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        (..., O), contiguous.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    return CLASSIFIER(x, weight, bias, impl=impl)
