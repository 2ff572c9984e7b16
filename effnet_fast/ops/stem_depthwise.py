"""stem_depthwise: stem_conv and depthwise_conv; the map between is never in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from effnet_fast.network import Window
from effnet_fast.ops import references
from effnet_fast.ops.checks import (
    check_act,
    check_map,
    check_tensor,
    check_weight,
    check_window,
    pair,
    sides,
    wide,
    window_of,
)
from effnet_fast.ops.depthwise_conv import DEPTHWISE_CONV, DEPTHWISE_CONV_SUMS
from effnet_fast.ops.references import empty_map, rounded_map, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.stem_conv import STEM_CONV
from effnet_fast.ops.step import Step

ARGUMENTS = (
    "(Tensor x, Tensor stem_weight, Tensor? stem_bias, int[2] stem_stride, int[4] stem_padding, "
    "str stem_act, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int[2] dilation, "
    "str act)"
)
SCHEMA = f"stem_depthwise{ARGUMENTS} -> Tensor"
SUMS_SCHEMA = f"stem_depthwise_sums{ARGUMENTS} -> (Tensor y, Tensor sums)"


class Args(NamedTuple):
    x: torch.Tensor
    stem_weight: torch.Tensor
    stem_bias: torch.Tensor | None
    stem_stride: Sequence[int]
    stem_padding: Sequence[int]
    stem_act: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    act: str

    @property
    def stem_window(self) -> Window:
        return window_of(self.stem_weight, self.stem_stride, self.stem_padding)

    @property
    def stem_size(self) -> tuple[int, int]:
        """The (h, w) of the map between."""
        return self.stem_window.output_size(*self.x.shape[2:])

    @property
    def window(self) -> Window:
        return window_of(self.weight, self.stride, self.padding, self.dilation)


def check(a: Args) -> None:
    check_map("x", a.x)
    check_weight("stem_weight", a.stem_weight, ("M", a.x.shape[1], "kh", "kw"), a.x)
    mid = a.stem_weight.shape[0]
    check_tensor("stem_bias", a.stem_bias, (mid,), a.x)
    check_weight("weight", a.weight, (mid, 1, "kh", "kw"), a.x)
    check_tensor("bias", a.bias, (mid,), a.x)
    check_window(a.x.shape[2:], a.stem_window, prefix="stem_")
    check_window(a.stem_size, a.window, of="the stem")
    check_act("stem_act", a.stem_act)
    check_act("act", a.act)


def reference(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    w = widened(a)
    mid = references.conv(w.x, w.stem_weight, w.stem_bias, w.stem_act, w.stem_window)
    y = references.conv(mid, w.weight, w.bias, w.act, w.window, groups=mid.shape[1])
    rounded = rounded_map(y, a.x.dtype)
    return (rounded, y.sum((2, 3))) if sums else rounded


def fake(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    mid = a.weight.shape[0]
    y = empty_map(a.x, mid, *a.window.output_size(*a.stem_size))
    return (y, a.x.new_empty((a.x.shape[0], mid), dtype=wide(a.x.dtype))) if sums else y


def cpu(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    outputs, step = fake(a, sums), Step()
    y, total = outputs if sums else (outputs, None)
    step.program.stem_depthwise(
        step.conv(a.stem_weight, a.stem_bias, a.stem_act),
        step.window(a.stem_window),
        step.depthwise(a.weight, a.bias, a.window, a.act),
        step.image(a.x),
        step.map(y),
        step.vector(total),
    )
    step.run(a.x.shape[0])
    return outputs


def gpu(
    a: Args, language: str, sums: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The two operators' kernels; the GPU engine has one for both."""
    stem = a.stem_weight, a.stem_bias, a.stem_stride, a.stem_padding, a.stem_act
    mid = STEM_CONV(a.x, *stem, impl=language)
    depthwise = DEPTHWISE_CONV_SUMS if sums else DEPTHWISE_CONV
    return depthwise(mid, a.weight, a.bias, a.stride, a.padding, a.dilation, a.act, impl=language)


STEM_DEPTHWISE = Operator(
    SCHEMA, Args, check=check, fake=fake, reference=reference, cpu=cpu, gpu=gpu
)
STEM_DEPTHWISE_SUMS = Operator(
    SUMS_SCHEMA,
    Args,
    check=check,
    fake=partial(fake, sums=True),
    reference=partial(reference, sums=True),
    cpu=partial(cpu, sums=True),
    gpu=partial(gpu, sums=True),
)


def stem_depthwise(
    x: torch.Tensor,
    stem_weight: torch.Tensor,
    stem_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stem_stride: int | Sequence[int] = 1,
    stem_padding: int | Sequence[int] = 0,
    stem_act: str = "none",
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    act: str = "none",
    sums: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The first convolution, then a depthwise convolution, each with bias and activation.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W), any strides, read as they are.
    stem_weight : Tensor
        (M, C, kh, kw), any k.
    stem_bias : Tensor or None
        (M,)
    weight : Tensor
        (M, 1, kh, kw), any k.
    bias : Tensor, optional
        (M,)
    stem_stride, stem_padding : int or integers
        As ``stride`` and ``padding``, of the first convolution.
    stem_act, act : str
        As for :func:`stem_conv`.
    stride, dilation : int or (vertical, horizontal)
        Of the depthwise convolution.
    padding : int or (top, left, bottom, right)
        Pixels of zeros around the map between.
    sums : bool
        Also return the sums over the pixels: what :func:`squeeze_excite` starts from.
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        (N, M, H', W'), channels last.
    Tensor
        With ``sums``: (N, M), float32 (float64 for float64), summed before the output is rounded.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    operator = STEM_DEPTHWISE_SUMS if sums else STEM_DEPTHWISE
    return operator(
        x,
        stem_weight,
        stem_bias,
        pair(stem_stride),
        sides(stem_padding),
        stem_act,
        weight,
        bias,
        pair(stride),
        sides(padding),
        pair(dilation),
        act,
        impl=impl,
    )
