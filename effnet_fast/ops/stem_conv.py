"""stem_conv: the first convolution, from an image of any strides to a channels-last map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from effnet_fast.network import Window
from effnet_fast.ops import references
from effnet_fast.ops.checks import (
    ACTS,
    check_act,
    check_map,
    check_tensor,
    check_weight,
    check_window,
    pair,
    sides,
    window_of,
)
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.references import empty_map, rounded_map, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

SCHEMA = (
    "stem_conv(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, str act) "
    "-> Tensor"
)


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    act: str

    @property
    def window(self) -> Window:
        return window_of(self.weight, self.stride, self.padding)


def check(a: Args) -> None:
    check_map("x", a.x)
    check_weight("weight", a.weight, ("O", a.x.shape[1], "kh", "kw"), a.x)
    check_tensor("bias", a.bias, a.weight.shape[:1], a.x)
    check_window(a.x.shape[2:], a.window)
    check_act("act", a.act)


def reference(a: Args) -> torch.Tensor:
    w = widened(a)
    return rounded_map(references.conv(w.x, w.weight, w.bias, w.act, w.window), a.x.dtype)


def fake(a: Args) -> torch.Tensor:
    return empty_map(a.x, a.weight.shape[0], *a.window.output_size(*a.x.shape[2:]))


def cpu(a: Args) -> torch.Tensor:
    y, step = fake(a), Step()
    conv = step.conv(a.weight, a.bias, a.act)
    step.program.stem_conv(conv, step.window(a.window), step.image(a.x), step.map(y))
    step.run(a.x.shape[0])
    return y


def gpu(a: Args, language: str) -> torch.Tensor:
    y = fake(a)
    if a.x.shape[0] == 0:
        return y
    kernels, step = host_side(language, "stem_conv"), GpuStep(a.x)
    x, packed = step.tensor(a.x), step.packed(kernels.pack(a.weight, a.bias))
    step.run(kernels.launch(step.device, x, packed, step.output(y), a.window, ACTS[a.act]))
    return y


STEM_CONV = Operator(
    SCHEMA,
    Args,
    check=check,
    fake=fake,
    reference=reference,
    cpu=cpu,
    gpu=gpu,
)


def stem_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    act: str = "none",
    impl: str = "auto",
) -> torch.Tensor:
    """Dense k x k convolution, bias and activation, from an image to a channels-last map.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W), any strides, read as they are: NCHW, NHWC, or a slice of either.
    weight : Tensor
        (O, C, kh, kw), any k.
    bias : Tensor, optional
        (O,)
    stride : int or (vertical, horizontal)
    padding : int or (top, left, bottom, right)
        Pixels of zeros around the map.
    act : str
        "none", "swish", "relu", "relu6", "hard_swish", "hard_sigmoid", "sigmoid", "gelu" or
        "gelu_tanh".
    impl : str
        "auto" (on the CPU: "cpu" for float32, "reference" for the other types), "reference",
        "cpu", "cuda" or "triton".

    Returns
    -------
    Tensor
        (N, O, H', W'), channels last, of the type of ``x``.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError
        An argument does not fit.
    BackendError
        ``impl`` is not built.
    InferenceOnlyError
        A tensor requires a gradient, and grad mode is on.
    """
    return STEM_CONV(x, weight, bias, pair(stride), sides(padding), act, impl=impl)
