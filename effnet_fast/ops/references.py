"""What references are made of: plain torch, in float32 or wider, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from effnet_fast.network import Window
from effnet_fast.ops.checks import wide

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "swish": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

Args = TypeVar("Args", bound=NamedTuple)


def widened(args: Args) -> Args:
    """``args`` with every tensor in the type that sums are kept in."""
    return type(args)(*(a.to(wide(a.dtype)) if isinstance(a, torch.Tensor) else a for a in args))


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    act: str,
    window: Window | None = None,
    groups: int = 1,
) -> torch.Tensor:
    """act(conv(x)); without ``window`` the convolution is pointwise."""
    if window is None:
        window = Window((1, 1))
    top, left, bottom, right = window.padding
    padded = F.pad(x, (left, right, top, bottom))
    y = F.conv2d(padded, weight, bias, window.stride, 0, window.dilation, groups)
    return ACTIVATIONS[act](y)


def empty_map(x: torch.Tensor, channels: int, h: int, w: int) -> torch.Tensor:
    """An output map for ``x``: its batch, type and device, channels last."""
    return torch.empty(
        (x.shape[0], channels, h, w),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def rounded_map(y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``y`` in ``dtype``, in channels-last strides even where a size is 1, and aliasing nothing."""
    return torch.empty_like(y, dtype=dtype, memory_format=torch.channels_last).copy_(y)
