"""Parity: the optimised model's error against float64, beside the stock model's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import ParityError

# An optimised model may be at most this much further from float64 than the stock model in the same
# type ...
ERROR_RATIO = 1.5
# ... or within the type's floor: about 30 roundings of the type, in relative L2, where the stock
# error is tiny by luck.
FLOORS = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
# A stock model that is further than this many floors from float64 amplifies roundings, or does
# something else than its captured graph. The graph in the model's own type tells: the same
# operators on the same numbers round alike, so the two must be closer than that distance is long.
CAPTURE_FACTOR = 10


@dataclass(frozen=True)
class Parity:
    """Relative L2 errors against float64, the largest over the outputs.

    Of several batches they are the means of :class:`Tally`.
    """

    shape: tuple[int, ...]
    error: float
    stock_error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        beside = f"stock {self.stock_error:.1e}, bound {self.bound:.1e}"
        return f"error {self.error:.1e} ({beside}) on {shape}"


@dataclass(frozen=True)
class Block:
    """What a block of the network leaves, in half precision: its error and its range.

    Attributes
    ----------
    name : of the value.
    shape : (C, H, W).
    error : relative L2, against float64.
    largest : magnitude of an element, in float64.
    overflows : elements that are finite in float64 and not here.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    largest: float
    overflows: int

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], y: torch.Tensor, exact: torch.Tensor) -> Block:
        """Of the same values, computed and exact."""
        y = y.reshape(exact.shape)
        overflows = int((exact.isfinite() & ~y.isfinite()).sum())
        return cls(
            name, tuple(shape), relative_error(y, exact), exact.abs().max().item(), overflows
        )

    def overflow(self, dtype: torch.dtype) -> str:
        """What a person is told where it does."""
        name = str(dtype).removeprefix("torch.")
        return (
            f"{self} overflows {name}, which holds {torch.finfo(dtype).max:.3g}: {self.overflows} "
            f"elements, the largest {self.largest:.3g}"
        )

    def __str__(self) -> str:
        return f"{self.name} ({'x'.join(map(str, self.shape))})"


def relative_error(y: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2: ||y - exact|| / ||exact||, summed in float64."""
    exact = exact.double()
    return ((y.double() - exact).norm() / exact.norm()).item()


def check_capture(stock: Sequence[Any], graph: Sequence[Any], parity: Parity) -> None:
    """Raise `ParityError` unless the captured graph computes what the model does.

    Parameters
    ----------
    stock, graph : flat outputs of the model and of its graph in plain PyTorch, in the same type.
    parity : of the stock model; half its error is what the two may differ by.
    """
    for theirs, captured in zip(stock, graph, strict=True):
        if not isinstance(theirs, torch.Tensor):
            continue
        difference = relative_error(captured, theirs)
        if not difference <= 0.5 * parity.stock_error:
            raise ParityError(
                "the captured graph is not what the model computes (they differ by "
                f"{difference:.1e}): the model is random, depends on values or sizes in Python "
                "code, or produces infinities"
            )


class Tally:
    """Errors of batches, and the verdict on them.

    One draw of rounding errors can be twice another's where a network amplifies a few directions,
    in the stock model as in ours. So a batch that passes the bound settles it, and one that does
    not is followed by more, which decide together: each with its error as a multiple of its own
    bound, in a root mean square. Sums of squared errors would not do. Of 20 images through
    tf_efficientnetv2_xl one has 50 times the others' error in either model, and its draw alone
    would decide (ratio 1.49, where the mean over images is 0.88).
    """

    def __init__(self, dtype: torch.dtype):
        """``dtype``: what both models compute in."""
        self.dtype = dtype
        self._batches: list[Parity] = []

    def add(
        self,
        fast: Sequence[Any],
        stock: Sequence[Any],
        exact: Sequence[Any],
        shape: tuple[int, ...],
    ) -> Parity:
        """Add one batch's flat outputs; the parity of all batches so far.

        Parameters
        ----------
        fast, stock : outputs of the optimised and the original model.
        exact : outputs of the captured graph in float64.
        shape : of the images, for the report.

        Raises
        ------
        ParityError : outputs of other shapes or dtypes.
        """
        if len(fast) != len(stock):
            raise ParityError(
                f"the optimised model returns {len(fast)} values, the original {len(stock)}"
            )
        error = stock_error = 0.0
        for ours, theirs, reference in zip(fast, stock, exact, strict=True):
            if not isinstance(theirs, torch.Tensor):
                continue
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                raise ParityError(
                    f"an output is {tuple(ours.shape)} {ours.dtype}, the original's "
                    f"{tuple(theirs.shape)} {theirs.dtype}"
                )
            error = max(error, _error(ours, reference))
            stock_error = max(stock_error, _error(theirs, reference))
        bound = max(ERROR_RATIO * stock_error, FLOORS[self.dtype])
        self._batches.append(Parity(shape, error, stock_error, bound))
        return self._mean()

    def _mean(self) -> Parity:
        """Root mean squares, each batch weighing 1 / bound^2.

        So the error is at most the bound where the mean square of error / bound is at most 1.
        """
        batches = [batch for batch in self._batches if math.isfinite(batch.bound)]
        if not batches:  # the stock model's outputs are infinite
            return self._batches[-1]
        weights = [batch.bound**-2 for batch in batches]

        def mean(values: Iterable[float]) -> float:
            squares = sum(w * value**2 for w, value in zip(weights, values, strict=True))
            return math.sqrt(squares / sum(weights))

        return Parity(
            self._batches[-1].shape,
            mean(batch.error for batch in batches),
            mean(batch.stock_error for batch in batches),
            mean(batch.bound for batch in batches),
        )


def _error(y: torch.Tensor, exact: torch.Tensor) -> float:
    """:func:`relative_error`, but absolute where all is zero and infinite where a value is NaN."""
    exact = exact.double()
    difference, norm = (y.double() - exact).norm().item(), exact.norm().item()
    error = difference / norm if norm > 0 else difference
    return math.inf if math.isnan(error) else error
