"""How far a result may be from the exact one, and why: every tolerance of the tests.

Parity of an operator, per element:

    |y - exact| <= ulp(exact) + (K + 4) 2^-24 sum|x w| max|act'| + 2^-21 (|x| + 1) |act(x)|

- ulp(exact): the one rounding, at the store, in the output's type.
- (K + 4) 2^-24 sum|x w|: the worst case of K products summed in float32 in any order, with 4 more
  roundings for bias, gate, residual and a folded scale; it passes the activation by its steepest
  slope.
- 2^-21 (|x| + 1) |act(x)|: the activation itself: 8 units in the last place, and an exponential
  whose argument was rounded is off by as much as that argument is large.

For operators that chain several, the bound of one is what the next one's inputs are off by.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from effnet_fast.network import Window

UNIT = 2.0**-24  # the unit roundoff of float32, in which every sum is kept
ACT_UNIT = 2.0**-21

# Over a whole tensor errors average out, far below the worst case: these hold from this many
# elements on. Below it one cancelled sum can be most of the tensor.
RELATIVE_L2 = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
L2_ELEMENTS = 256

# Each activation in float64, from its definition, and the largest |slope| (rounded up).
ACTIVATIONS = {
    "none": (lambda x: x, 1.0),
    "swish": (lambda x: x * torch.sigmoid(x), 1.1),
    "relu": (lambda x: x.clamp(min=0), 1.0),
    "relu6": (lambda x: x.clamp(0, 6), 1.0),
    "hard_swish": (lambda x: x * (x + 3).clamp(0, 6) / 6, 1.5),
    "hard_sigmoid": (lambda x: (x + 3).clamp(0, 6) / 6, 1 / 6),
    "sigmoid": (lambda x: torch.sigmoid(x), 0.25),
    "gelu": (lambda x: x * torch.special.erfc(-x / math.sqrt(2)) / 2, 1.13),
    "gelu_tanh": (
        # 0.5 (1 + tanh u) = sigmoid(2 u)
        lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
        1.13,
    ),
}


class Exact(NamedTuple):
    """A float64 result, and per element what a computation in float32 may be off by."""

    value: torch.Tensor
    error: torch.Tensor


def exact(x: torch.Tensor | Exact) -> Exact:
    """A tensor as it is, without error."""
    return (
        x if isinstance(x, Exact) else Exact(x.double(), torch.zeros_like(x, dtype=torch.float64))
    )


def activation(pre: Exact, act: str) -> Exact:
    """act(pre)"""
    function, slope = ACTIVATIONS[act]
    y = function(pre.value)
    return Exact(y, pre.error * slope + ACT_UNIT * (pre.value.abs() + 1) * y.abs())


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, window: Window
) -> torch.Tensor:
    """Convolution from its definition, tap by tap; depthwise for ``weight`` (C, 1, kh, kw)."""
    top, left, bottom, right = window.padding
    h, w = window.output_size(*x.shape[2:])
    (sh, sw), (dh, dw) = window.stride, window.dilation
    x = F.pad(x, (left, right, top, bottom))
    y = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(*map(range, window.kernel)):
        seen = x[:, :, i * dh :: sh, j * dw :: sw][:, :, :h, :w]
        tap = weight[:, :, i, j]
        if tap.shape[1] == x.shape[1]:
            y = y + torch.einsum("oi,nihw->nohw", tap, seen)
        else:
            y = y + tap[:, :, None] * seen
    return y if bias is None else y + bias[:, None, None]


def conv(
    x: torch.Tensor | Exact,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    act: str,
    window: Window | None = None,
    gate: torch.Tensor | Exact | None = None,
) -> Exact:
    """act(conv(x * gate) + bias), ``weight`` (O, I, kh, kw) or depthwise (C, 1, kh, kw)."""
    x, window = exact(x), window or Window((1, 1))
    if gate is not None:
        value, error = (part[:, :, None, None] for part in exact(gate))
        x = Exact(x.value * value, x.error * (value.abs() + error) + x.value.abs() * error)
    weight = weight.double()
    bias = None if bias is None else bias.double()
    magnitude = convolve(x.value.abs(), weight.abs(), None if bias is None else bias.abs(), window)
    error = (weight[0].numel() + 4) * UNIT * magnitude
    if x.error.any():
        error = error + convolve(x.error, weight.abs(), None, window)
    return activation(Exact(convolve(x.value, weight, bias, window), error), act)


def linear(
    x: torch.Tensor | Exact, weight: torch.Tensor, bias: torch.Tensor | None, act: str = "none"
) -> Exact:
    """act(x W^T + bias) for x (N, I)."""
    x = exact(x)
    y = conv(
        Exact(x.value[:, :, None, None], x.error[:, :, None, None]),
        weight.reshape(*weight.shape[:2], 1, 1),
        bias,
        act,
    )
    return Exact(y.value.flatten(1), y.error.flatten(1))


def add(x: Exact, residual: torch.Tensor) -> Exact:
    """x + residual, rounded once more."""
    total = x.value + residual.double()
    return Exact(total, x.error + UNIT * total.abs())


def rounded(x: Exact, dtype: torch.dtype) -> Exact:
    """x, kept in ``dtype`` between two operators: half a unit in the last place."""
    return Exact(x.value, x.error + ulp(x.value.abs() + x.error, dtype) / 2)


def sums(x: Exact) -> Exact:
    """Sums over the pixels: (N, C) from (N, C, H, W)."""
    pixels = x.value.shape[2:].numel()
    magnitude = x.value.abs().sum((2, 3))
    return Exact(x.value.sum((2, 3)), x.error.sum((2, 3)) + pixels * UNIT * magnitude)


def mean(x: Exact) -> Exact:
    """Means over the pixels: (N, C) from (N, C, H, W)."""
    return divided(sums(x), x.value.shape[2:].numel())


def divided(x: torch.Tensor | Exact, count: int) -> Exact:
    """x / count, as a division or as a product with the rounded reciprocal."""
    x = exact(x)
    return Exact(x.value / count, x.error / count + 2 * UNIT * (x.value / count).abs())


def ulp(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of neighbouring ``dtype`` numbers at the float64 values ``x``."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(min=info.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(x, info.eps), exponent - 1)


def assert_parity(y: torch.Tensor, expected: Exact, between: torch.dtype | None = None) -> None:
    """``y`` is within the bound of ``expected``, per element and, where large, over all of it.

    ``between`` is the type of a map that it was made of and that was rounded, if not y's.
    """
    assert y.shape == expected.value.shape
    difference = (y.double() - expected.value).abs()
    bound = ulp(expected.value, y.dtype) + expected.error
    # not <=: a NaN must fail
    wrong = ~(difference <= bound)
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {y.numel()} elements are off, the worst by "
        f"{float((difference / bound)[wrong].max())} of its bound; the first at "
        f"{wrong.nonzero()[0].tolist()}: {y[wrong][0]} for {expected.value[wrong][0]}"
    )
    if y.numel() >= L2_ELEMENTS:
        relative = float(difference.norm() / expected.value.norm())
        limit = RELATIVE_L2[between or y.dtype]
        assert relative <= limit, f"relative L2 error {relative:.3g}; accepted: {limit}"
