"""expand_depthwise: pointwise_conv and depthwise_conv; the wide map between is never in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
    wide,
    window_of,
)
from effnet_fast.ops.depthwise_conv import DEPTHWISE_CONV, DEPTHWISE_CONV_SUMS
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.pointwise_conv import POINTWISE_CONV
from effnet_fast.ops.references import empty_map, rounded_map, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

ARGUMENTS = (
    "(Tensor x, Tensor expand_weight, Tensor? expand_bias, str expand_act, Tensor weight, "
    "Tensor? bias, int[2] stride, int[4] padding, int[2] dilation, str act)"
)
SCHEMA = f"expand_depthwise{ARGUMENTS} -> Tensor"
SUMS_SCHEMA = f"expand_depthwise_sums{ARGUMENTS} -> (Tensor y, Tensor sums)"


class Args(NamedTuple):
    x: torch.Tensor
    expand_weight: torch.Tensor
    expand_bias: torch.Tensor | None
    expand_act: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    act: str

    @property
    def window(self) -> Window:
        return window_of(self.weight, self.stride, self.padding, self.dilation)


def check(a: Args) -> None:
    check_map("x", a.x)
    check_weight("expand_weight", a.expand_weight, ("M", a.x.shape[1], 1, 1), a.x)
    mid = a.expand_weight.shape[0]
    check_tensor("expand_bias", a.expand_bias, (mid,), a.x)
    check_weight("weight", a.weight, (mid, 1, "kh", "kw"), a.x)
    check_tensor("bias", a.bias, (mid,), a.x)
    check_window(a.x.shape[2:], a.window)
    check_act("expand_act", a.expand_act)
    check_act("act", a.act)


def reference(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    w = widened(a)
    expanded = references.conv(w.x, w.expand_weight, w.expand_bias, w.expand_act)
    y = references.conv(expanded, w.weight, w.bias, w.act, w.window, groups=expanded.shape[1])
    rounded = rounded_map(y, a.x.dtype)
    return (rounded, y.sum((2, 3))) if sums else rounded


def fake(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    mid = a.weight.shape[0]
    y = empty_map(a.x, mid, *a.window.output_size(*a.x.shape[2:]))
    return (y, a.x.new_empty((a.x.shape[0], mid), dtype=wide(a.x.dtype))) if sums else y


def cpu(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    outputs, step = fake(a, sums), Step()
    y, total = outputs if sums else (outputs, None)
    step.program.expand_depthwise(
        step.conv(a.expand_weight, a.expand_bias, a.expand_act),
        step.depthwise(a.weight, a.bias, a.window, a.act),
        step.map(a.x),
        step.map(y),
        step.vector(total),
    )
    step.run(a.x.shape[0])
    return outputs


def gpu(
    a: Args, language: str, sums: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One kernel where there is one for the call; the two operators' otherwise."""
    outputs = fake(a, sums)
    y, total = outputs if sums else (outputs, None)
    n, mid = y.shape[:2]
    if n == 0:
        return outputs
    step = GpuStep(a.x)
    x, there = step.map(a.x), step.output(y)
    acts = ACTS[a.expand_act], ACTS[a.act]
    if language == "cuda":
        kernels = host_side(language, "expand_depthwise")
        if kernels.can(x, there, a.window, *acts):
            packed = step.packed(kernels.pack(a.expand_weight, a.expand_bias, a.weight, a.bias))
            partial = None
            multiprocessors = step.device.attributes["multiprocessor_count"]
            cut = kernels.tiling(n, kernels.Problem.of(x, there, a.window, None), multiprocessors)
            if sums:
                partial = step.scratch((n, kernels.tile_count(cut, y.shape[2:]), mid), a.x)
            launches = [kernels.launch(step.device, x, packed, there, a.window, *acts, partial)]
            if sums:
                total_of = host_side(language, "depthwise_conv").total
                launches.append(total_of(step.device, partial, step.output(total)))
            step.run(*launches)
            return outputs
    wide = POINTWISE_CONV(a.x, a.expand_weight, a.expand_bias, a.expand_act, impl=language)
    depthwise = DEPTHWISE_CONV_SUMS if sums else DEPTHWISE_CONV
    return depthwise(wide, a.weight, a.bias, a.stride, a.padding, a.dilation, a.act, impl=language)


EXPAND_DEPTHWISE = Operator(
    SCHEMA, Args, check=check, fake=fake, reference=reference, cpu=cpu, gpu=gpu
)
EXPAND_DEPTHWISE_SUMS = Operator(
    SUMS_SCHEMA,
    Args,
    check=check,
    fake=partial(fake, sums=True),
    reference=partial(reference, sums=True),
    cpu=partial(cpu, sums=True),
    gpu=partial(gpu, sums=True),
)


def expand_depthwise(
    x: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    expand_act: str = "none",
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    act: str = "none",
    sums: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pointwise expansion, then a depthwise convolution, each with bias and activation.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W). Read in place where its channels are adjacent in memory, copied otherwise.
    expand_weight : Tensor
        (M, C, 1, 1)
    expand_bias : Tensor or None
        (M,)
    weight : Tensor
        (M, 1, kh, kw), any k.
    bias : Tensor, optional
        (M,)
    expand_act, act : str
        As for :func:`stem_conv`.
    stride, dilation : int or (vertical, horizontal)
        Of the depthwise convolution.
    padding : int or (top, left, bottom, right)
        Pixels of zeros around the expanded map.
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
    operator = EXPAND_DEPTHWISE_SUMS if sums else EXPAND_DEPTHWISE
    return operator(
        x,
        expand_weight,
        expand_bias,
        expand_act,
        weight,
        bias,
        pair(stride),
        sides(padding),
        pair(dilation),
        act,
        impl=impl,
    )
