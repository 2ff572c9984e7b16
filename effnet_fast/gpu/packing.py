"""Weights in the layouts that GPU kernels read."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pack_depthwise(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A depthwise convolution's constants.

    Parameters
    ----------
    weight : Tensor
        (C, 1, kh, kw)
    bias : Tensor, optional
        (C,)

    Returns
    -------
    Tensor
        (kh kw + 1, C rounded up to 32), float32, contiguous: the taps in order, then the bias;
        zeros where there is nothing.
    """
    c = weight.shape[0]
    taps = weight.detach().float().reshape(c, -1).t()
    last = taps.new_zeros(1, c) if bias is None else bias.detach().float().reshape(1, c)
    return F.pad(torch.cat([taps, last]), (0, -c % 32)).contiguous()


def pack_rows(
    weight: torch.Tensor, bias: torch.Tensor | None, multiple: int = 1
) -> tuple[torch.Tensor | None, ...]:
    """A dense convolution's constants.

    Parameters
    ----------
    weight : Tensor
        (O, C), (O, C, 1, 1) or (O, C, kh, kw)
    bias : Tensor, optional
        (O,)
    multiple : int
        Of which a row's length is to be.

    Returns
    -------
    Tensor
        (O, C kh kw rounded up), contiguous, of the weight's type, filled up with zeros.
    Tensor or None
        (O,), float32.
    """
    rows = weight.detach().flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % multiple)).contiguous()
    return rows, None if bias is None else bias.detach().float().contiguous()


def pack_windows(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    project_weight: torch.Tensor | None = None,
    project_bias: torch.Tensor | None = None,
    multiple: int = 1,
) -> tuple[torch.Tensor | None, ...]:
    """The constants of a k x k convolution, and of a pointwise one after it.

    Parameters
    ----------
    weight : Tensor
        (M, C, kh, kw)
    project_weight : Tensor, optional
        (P, M, 1, 1)
    bias, project_bias : Tensor, optional
        (M,) and (P,)
    multiple : int
        Of which the length of a tap, and of a row of the projection, is to be.

    Returns
    -------
    Tensor, Tensor or None, Tensor or None, Tensor or None
        (M, kh kw (C rounded up)), channels innermost; the bias in float32; what
        :func:`pack_rows` makes of the projection.
    """
    mid, cin, kh, kw = weight.shape
    taps = weight.detach().permute(0, 2, 3, 1).reshape(mid, kh * kw, cin)
    taps = F.pad(taps, (0, -cin % multiple)).reshape(mid, -1).contiguous()
    first = taps, None if bias is None else bias.detach().float().contiguous()
    if project_weight is None:
        return (*first, None, None)
    return (*first, *pack_rows(project_weight, project_bias, multiple))


def pack_squeeze_excite(
    w1: torch.Tensor, b1: torch.Tensor | None, w2: torch.Tensor, b2: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """The constants of both layers of squeeze-excitation, in their own type.

    Parameters
    ----------
    w1, w2 : Tensor
        (R, C) and (C, R), or the same with a trailing 1 x 1.
    b1, b2 : Tensor or None
        (R,) and (C,)

    Returns
    -------
    tuple of Tensor or None
        w1 and b1, and w2 transposed, (R, C), and b2; all contiguous.
    """

    def contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else x.detach().contiguous()

    second = w2.detach().flatten(1).t().contiguous()
    return contiguous(w1.flatten(1)), contiguous(b1), second, contiguous(b2)
