"""swish: an activation on its own, for what stays outside a fusion."""

from __future__ import annotations

from typing import NamedTuple

import torch

from effnet_fast.ops.checks import ACTS, check_act, check_floating
from effnet_fast.ops.extension import extension
from effnet_fast.ops.gpu_step import GpuStep, host_side
from effnet_fast.ops.references import ACTIVATIONS, widened
from effnet_fast.ops.registry import Operator

SCHEMA = "swish(Tensor x, str act='swish') -> Tensor"


class Args(NamedTuple):
    x: torch.Tensor
    act: str = "swish"


def check(a: Args) -> None:
    check_floating("x", a.x)
    check_act("act", a.act)


def reference(a: Args) -> torch.Tensor:
    return torch.empty_like(a.x).copy_(ACTIVATIONS[a.act](widened(a).x))


def fake(a: Args) -> torch.Tensor:
    return torch.empty_like(a.x)


def dense(a: Args, y: torch.Tensor) -> torch.Tensor:
    """``x`` in the order in memory that ``y`` has: itself, or a copy in ``y``."""
    # Equal strides: x is as dense as y, so a kernel may run straight through memory. The stride of
    # a size of 1 is never used.
    same = all(
        size == 1 or ours == theirs
        for size, ours, theirs in zip(a.x.shape, a.x.stride(), y.stride(), strict=True)
    )
    return a.x if same else y.copy_(a.x)


def cpu(a: Args) -> torch.Tensor:
    y = fake(a)
    x = dense(a, y)
    extension().activation(
        int(ACTS[a.act]), x.data_ptr(), y.data_ptr(), y.numel(), torch.get_num_threads()
    )
    return y


def gpu(a: Args, language: str) -> torch.Tensor:
    y = fake(a)
    if y.numel() == 0:
        return y
    kernels, step = host_side(language, "swish"), GpuStep(a.x)
    x = step.tensor(dense(a, y))
    step.run(kernels.launch(step.device, x, step.output(y), ACTS[a.act]))
    return y


SWISH = Operator(SCHEMA, Args, check=check, fake=fake, reference=reference, cpu=cpu, gpu=gpu)


def swish(x: torch.Tensor, act: str = "swish", *, impl: str = "auto") -> torch.Tensor:
    """act(x), elementwise.

    Parameters
    ----------
    x : Tensor
        Any shape, any strides.
    act : str
        As for :func:`stem_conv`.
    impl : str
        As for :func:`stem_conv`.

    Returns
    -------
    Tensor
        Like ``x``, with its strides where they are dense.

    Raises
    ------
    DtypeError, DeviceError, ArgumentError, BackendError, InferenceOnlyError
        As for :func:`stem_conv`.
    """
    return SWISH(x, act, impl=impl)
