"""depthwise_conv: a k x k filter per channel, with the sums that squeeze-excitation needs."""

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
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.references import empty_map, rounded_map, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int[2] dilation, "
    "str act)"
)
SCHEMA = f"depthwise_conv{ARGUMENTS} -> Tensor"
SUMS_SCHEMA = f"depthwise_conv_sums{ARGUMENTS} -> (Tensor y, Tensor sums)"


class Args(NamedTuple):
    x: torch.Tensor
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
    check_weight("weight", a.weight, (a.x.shape[1], 1, "kh", "kw"), a.x)
    check_tensor("bias", a.bias, a.weight.shape[:1], a.x)
    check_window(a.x.shape[2:], a.window)
    check_act("act", a.act)


def reference(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    w = widened(a)
    y = references.conv(w.x, w.weight, w.bias, w.act, w.window, groups=w.x.shape[1])
    rounded = rounded_map(y, a.x.dtype)
    return (rounded, y.sum((2, 3))) if sums else rounded


def fake(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    n, c, h, w = a.x.shape
    y = empty_map(a.x, c, *a.window.output_size(h, w))
    return (y, a.x.new_empty((n, c), dtype=wide(a.x.dtype))) if sums else y


def cpu(a: Args, sums: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    outputs, step = fake(a, sums), Step()
    y, total = outputs if sums else (outputs, None)
    depthwise = step.depthwise(a.weight, a.bias, a.window, a.act)
    step.program.depthwise_conv(depthwise, step.map(a.x), step.map(y), step.vector(total))
    step.run(a.x.shape[0])
    return outputs


def gpu(
    a: Args, language: str, sums: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    outputs = fake(a, sums)
    n, c = a.x.shape[:2]
    if n == 0:
        return outputs
    kernels, step = host_side(language, "depthwise_conv"), GpuStep(a.x)
    y, total = outputs if sums else (outputs, None)
    x, constants = step.map(a.x), step.tensor(kernels.pack(a.weight, a.bias))
    arguments = (step.device, x, constants, step.output(y), a.window, ACTS[a.act])
    if total is None:
        step.run(kernels.launch(*arguments))
        return outputs
    tiled = step.scratch((n, kernels.tiles(step.device, x, a.window), c), a.x)
    step.run(
        kernels.launch(*arguments, tiled),
        kernels.total(step.device, tiled, step.output(total)),
    )
    return outputs


DEPTHWISE_CONV = Operator(
    SCHEMA, Args, check=check, fake=fake, reference=reference, cpu=cpu, gpu=gpu
)
DEPTHWISE_CONV_SUMS = Operator(
    SUMS_SCHEMA,
    Args,
    check=check,
    fake=partial(fake, sums=True),
    reference=partial(reference, sums=True),
    cpu=partial(cpu, sums=True),
    gpu=partial(gpu, sums=True),
)


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    act: str = "none",
    sums: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Depthwise convolution, bias and activation; on request also the sum of each output channel.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W). Read in place where its channels are adjacent in memory, copied otherwise.
    weight : Tensor
        (C, 1, kh, kw), any k.
    bias : Tensor, optional
        (C,)
    stride, dilation : int or (vertical, horizontal)
    padding : int or (top, left, bottom, right)
        Pixels of zeros around the map.
    act : str
        As for :func:`stem_conv`.
    sums : bool
        Also return the sums over the pixels: what :func:`squeeze_excite` starts from.
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        (N, C, H', W'), channels last.
    Tensor
        With ``sums``: (N, C), float32 (float64 for float64), summed before the output is rounded.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    operator = DEPTHWISE_CONV_SUMS if sums else DEPTHWISE_CONV
    return operator(x, weight, bias, pair(stride), sides(padding), pair(dilation), act, impl=impl)
