"""squeeze_excite: both layers of squeeze-excitation, from a map's sums to its channels' gate."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from effnet_fast.errors import ArgumentError
from effnet_fast.ops.checks import (
    ACTS,
    check_act,
    check_floating,
    check_tensor,
    check_weight,
    wide,
)
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.references import ACTIVATIONS, widened
from effnet_fast.ops.registry import Operator
from effnet_fast.ops.step import Step

SCHEMA = (
    "squeeze_excite(Tensor sums, int pixels, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, "
    "str act, str gate_act) -> Tensor"
)


class Args(NamedTuple):
    sums: torch.Tensor
    pixels: int
    w1: torch.Tensor
    b1: torch.Tensor | None
    w2: torch.Tensor
    b2: torch.Tensor | None
    act: str
    gate_act: str


def check(a: Args) -> None:
    check_floating("w1", a.w1)
    check_weight("w1", a.w1, ("R", "C", *_ones(a.w1)), a.w1)
    squeezed, c = a.w1.shape[:2]
    check_tensor("b1", a.b1, (squeezed,), a.w1)
    check_weight("w2", a.w2, (c, squeezed, *_ones(a.w2)), a.w1)
    check_tensor("b2", a.b2, (c,), a.w1)
    check_tensor("sums", a.sums, (*a.sums.shape[:1], c), a.w1, dtype=wide(a.w1.dtype))
    if a.pixels < 1:
        raise ArgumentError(f"pixels is {a.pixels}; accepted: at least 1")
    check_act("act", a.act)
    check_act("gate_act", a.gate_act)


def _ones(weight: torch.Tensor) -> tuple[int, ...]:
    return (1, 1) if weight.dim() == 4 else ()


def reference(a: Args) -> torch.Tensor:
    w = widened(a)
    squeezed = ACTIVATIONS[a.act](F.linear(w.sums / a.pixels, w.w1.flatten(1), w.b1))
    return ACTIVATIONS[a.gate_act](F.linear(squeezed, w.w2.flatten(1), w.b2)).to(a.w1.dtype)


def fake(a: Args) -> torch.Tensor:
    return a.w1.new_empty((a.sums.shape[0], a.w1.shape[1]))


def cpu(a: Args) -> torch.Tensor:
    gate, step = fake(a), Step()
    layers = step.squeeze_excite(a.w1, a.b1, a.w2, a.b2, a.act, a.gate_act)
    step.program.squeeze_excite(layers, step.vector(a.sums), a.pixels, step.vector(gate))
    step.run(a.sums.shape[0])
    return gate


def gpu(a: Args, language: str) -> torch.Tensor:
    gate = fake(a)
    if gate.shape[0] == 0:
        return gate
    kernels, step = host_side(language, "squeeze_excite"), GpuStep(a.w1)
    packed = step.packed(kernels.pack(a.w1, a.b1, a.w2, a.b2))
    sums = step.tensor(a.sums.contiguous()[:, None])
    gates = step.output(gate)
    acts = ACTS[a.act], ACTS[a.gate_act]
    step.run(kernels.launch(step.device, sums, a.pixels, packed, gates, *acts))
    return gate


SQUEEZE_EXCITE = Operator(
    SCHEMA, Args, check=check, fake=fake, reference=reference, cpu=cpu, gpu=gpu
)


def squeeze_excite(
    sums: torch.Tensor,
    pixels: int,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    act: str = "swish",
    gate_act: str = "sigmoid",
    impl: str = "auto",
) -> torch.Tensor:
    """gate_act(w2 act(w1 sums / pixels + b1) + b2): the gate of each channel.

    Parameters
    ----------
    sums : Tensor
        (N, C), float32 (float64 for float64 weights): the second result of :func:`depthwise_conv`.
    pixels : int
        Pixels that were summed.
    w1, w2 : Tensor
        (R, C) and (C, R), or the same with a trailing 1 x 1.
    b1, b2 : Tensor or None
        (R,) and (C,)
    act, gate_act : str
        As for :func:`stem_conv`.
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        (N, C), of the weights' type: the ``gate`` of :func:`pointwise_conv`.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    return SQUEEZE_EXCITE(sums, pixels, w1, b1, w2, b2, act, gate_act, impl=impl)
