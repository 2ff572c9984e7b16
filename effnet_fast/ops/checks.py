"""Argument checks that the operators share.

They run on real and on fake tensors, and never guard on the batch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from effnet_fast.errors import ArgumentError, DeviceError, DtypeError, ShapeError
from effnet_fast.network import Act, Window

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ACTS = {act.label: act for act in Act}


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of ``dtype`` are kept in: float64 for float64, float32 for the rest."""
    return torch.promote_types(dtype, torch.float32)


def check_tensor(
    name: str,
    tensor: torch.Tensor | None,
    shape: Sequence[int],
    like: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """``tensor``, where given, has ``shape``, the device of ``like``, and ``dtype`` or its own."""
    if tensor is None:
        return
    # Compared size by size: a batch that is the same symbol on both sides needs no guard.
    if tensor.dim() != len(shape) or any(map(operator.ne, tensor.shape, shape)):
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; accepted: {tuple(shape)}")
    _check_dtype(name, tensor, (dtype or like.dtype,))
    if tensor.device != like.device:
        raise DeviceError(f"{name} is on {tensor.device}; accepted: {like.device}, as the others")


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """``tensor`` is of one of the floating point types that operators take."""
    _check_dtype(name, tensor, FLOATS)


def check_map(name: str, x: torch.Tensor) -> None:
    """``x`` is a floating point map (N, C, H, W) with at least one channel and one pixel."""
    if x.dim() != 4 or any(size < 1 for size in x.shape[1:]):
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}; accepted: (N, C, H, W) with C, H and W at least 1"
        )
    check_floating(name, x)


def check_weight(
    name: str, weight: torch.Tensor, shape: Sequence[int | str], x: torch.Tensor
) -> None:
    """``weight`` is like ``x`` and has ``shape``, where a string is a free size of at least 1."""
    if weight.dim() != len(shape) or any(
        got < 1 if isinstance(want, str) else got != want
        for got, want in zip(weight.shape, shape, strict=True)
    ):
        raise ShapeError(
            f"{name} has shape {tuple(weight.shape)}; accepted: ({', '.join(map(str, shape))})"
        )
    check_tensor(name, weight, weight.shape, x)


def check_act(name: str, act: str) -> None:
    """``act`` is the label of an activation."""
    if act not in ACTS:
        raise ArgumentError(f"{name} is {act!r}; accepted: {', '.join(map(repr, ACTS))}")


def check_window(size: Sequence[int], window: Window, of: str = "x", prefix: str = "") -> None:
    """``window`` is well formed and lies on a map of ``size`` (h, w) at least once.

    ``prefix`` is what the names of its arguments start with.
    """
    for name, values, length, least in (
        ("stride", window.stride, 2, 1),
        ("padding", window.padding, 4, 0),
        ("dilation", window.dilation, 2, 1),
    ):
        if len(values) != length or any(value < least for value in values):
            raise ArgumentError(
                f"{prefix}{name} is {values}; accepted: {length} integers, each at least {least}"
            )
    h, w = size
    if any(size < 1 for size in window.output_size(h, w)):
        raise ShapeError(
            f"{of} has a map of {h} x {w} pixels; accepted: with its padding {window.padding}, at "
            f"least the window of kernel {window.kernel} and dilation {window.dilation}"
        )


def window_of(
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> Window:
    """The window of a convolution with ``weight`` (O, I, kh, kw)."""
    return Window(tuple(weight.shape[2:]), tuple(stride), tuple(dilation), tuple(padding))


def pair(value: int | Sequence[int]) -> Sequence[int]:
    """A stride or a dilation as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else value


def sides(value: int | Sequence[int]) -> Sequence[int]:
    """A padding as (top, left, bottom, right)."""
    return (value,) * 4 if isinstance(value, int) else value


def _check_dtype(name: str, tensor: torch.Tensor, accepted: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in accepted:
        raise DtypeError(f"{name} is {tensor.dtype}; accepted: {', '.join(map(str, accepted))}")
