"""fused_mbconv: the k x k convolution of V2 and EdgeTPU blocks, with the projection after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from effnet_fast.errors import ArgumentError
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
from effnet_fast.ops.packing import pack_conv, pack_winograd, takes_winograd
from effnet_fast.ops.pointwise_conv import POINTWISE_CONV
from effnet_fast.ops.references import empty_map, rounded_map, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

SCHEMA = (
    "fused_mbconv(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, "
    "int[2] dilation, str act, Tensor? project_weight=None, Tensor? project_bias=None, "
    "str project_act='none', Tensor? residual=None) -> Tensor"
)


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    act: str
    project_weight: torch.Tensor | None = None
    project_bias: torch.Tensor | None = None
    project_act: str = "none"
    residual: torch.Tensor | None = None

    @property
    def window(self) -> Window:
        return window_of(self.weight, self.stride, self.padding, self.dilation)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        last = self.weight if self.project_weight is None else self.project_weight
        return (
            self.x.shape[0],
            last.shape[0],
            *self.window.output_size(*self.x.shape[2:]),
        )


def check(a: Args) -> None:
    check_map("x", a.x)
    check_weight("weight", a.weight, ("O", a.x.shape[1], "kh", "kw"), a.x)
    check_tensor("bias", a.bias, a.weight.shape[:1], a.x)
    check_window(a.x.shape[2:], a.window)
    check_act("act", a.act)
    check_act("project_act", a.project_act)
    if a.project_weight is not None:
        check_weight("project_weight", a.project_weight, ("P", a.weight.shape[0], 1, 1), a.x)
        check_tensor("project_bias", a.project_bias, a.project_weight.shape[:1], a.x)
    elif a.project_bias is not None:
        raise ArgumentError("project_bias is a tensor; accepted without project_weight: None")
    elif a.project_act != "none":
        raise ArgumentError(
            f"project_act is {a.project_act!r}; accepted without project_weight: 'none'"
        )
    check_tensor("residual", a.residual, a.output_shape, a.x)


def reference(a: Args) -> torch.Tensor:
    w = widened(a)
    y = references.conv(w.x, w.weight, w.bias, w.act, w.window)
    if w.project_weight is not None:
        y = references.conv(y, w.project_weight, w.project_bias, w.project_act)
    return rounded_map(y if w.residual is None else y + w.residual, a.x.dtype)


def fake(a: Args) -> torch.Tensor:
    return empty_map(a.x, *a.output_shape[1:])


def cpu(a: Args) -> torch.Tensor:
    y, step = fake(a), Step()
    project = None
    if a.project_weight is not None:
        project = step.conv(a.project_weight, a.project_bias, a.project_act)
    winograd = takes_winograd(a.weight, a.window)
    step.program.fused_mbconv(
        step.conv(a.weight, a.bias, a.act, pack_winograd if winograd else pack_conv),
        step.window(a.window),
        project,
        step.map(a.x),
        step.map(a.residual),
        step.map(y),
        winograd,
    )
    step.run(a.x.shape[0])
    return y


def gpu(a: Args, language: str) -> torch.Tensor:
    """One kernel; two for a projection to more channels than one has."""
    y = fake(a)
    n, cout = y.shape[:2]
    if n == 0:
        return y
    kernels = host_side(language, "fused_mbconv")
    if a.project_weight is not None and not kernels.projects(cout):
        window = a.stride, a.padding, a.dilation
        wide = FUSED_MBCONV(a.x, a.weight, a.bias, *window, a.act, impl=language)
        return POINTWISE_CONV(
            wide, a.project_weight, a.project_bias, a.project_act, None, a.residual, impl=language
        )
    step = GpuStep(a.x)
    x = step.aligned_map(a.x) if language == "cuda" else step.map(a.x)
    packed = step.packed(kernels.pack(a.weight, a.bias, a.project_weight, a.project_bias))
    residual = None if a.residual is None else step.map(a.residual)
    acts = ACTS[a.act], ACTS[a.project_act]
    step.run(kernels.launch(step.device, x, packed, step.output(y), a.window, *acts, residual))
    return y


FUSED_MBCONV = Operator(SCHEMA, Args, check=check, fake=fake, reference=reference, cpu=cpu, gpu=gpu)


def fused_mbconv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    act: str = "none",
    project_weight: torch.Tensor | None = None,
    project_bias: torch.Tensor | None = None,
    project_act: str = "none",
    residual: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Dense k x k convolution, then optionally a pointwise one and a residual.

    On the CPU a 3 x 3 one of stride and dilation 1 with 16 channels and more is made by Winograd's
    F(2 x 2, 3 x 3): errors up to twice those of a sum, and NaN where an input is infinite.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W). Read in place where its channels are adjacent in memory, copied otherwise.
    weight : Tensor
        (O, C, kh, kw), any k.
    bias : Tensor, optional
        (O,)
    stride, dilation : int or (vertical, horizontal)
    padding : int or (top, left, bottom, right)
        Pixels of zeros around the map.
    act, project_act : str
        As for :func:`stem_conv`.
    project_weight : Tensor, optional
        (P, O, 1, 1). Without it the result is that of the first convolution.
    project_bias : Tensor, optional
        (P,)
    residual : Tensor, optional
        Of the result's shape, added last.
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        (N, P, H', W'), or (N, O, H', W') without a projection; channels last.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    return FUSED_MBCONV(
        x,
        weight,
        bias,
        pair(stride),
        sides(padding),
        pair(dilation),
        act,
        project_weight,
        project_bias,
        project_act,
        residual,
        impl=impl,
    )
