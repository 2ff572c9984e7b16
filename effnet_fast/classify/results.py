"""What becomes of an image, and of a batch's outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import ArgumentError
from .labels import labels_for
from .load import Decoded

_log = logging.getLogger(__name__)

DEFAULT_TOPK = 5


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes
    ----------
    filename : the image's key.
    indices, labels, probs : the best classes, most probable first; empty when there is an error.
    note : what was done to the image that is not plain; empty when nothing was.
    error : why there is no answer; empty when there is.
    mode : how its pixels were made, one of `MODES`.
    logits : of all classes, where they were asked for.
    embedding : what the model's last layer sees, where it was asked for.
    """

    filename: str
    indices: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probs: tuple[float, ...] = ()
    note: str = ""
    error: str = ""
    mode: str = "default"
    logits: tuple[float, ...] | None = None
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Answers:
    """Groups of decoded images to results, through a model.

    Attributes
    ----------
    feed : from crops, uint8 (height, width, 3), to a model's outputs on the CPU: logits (N,
        classes), an output with ``.logits``, or, for embeddings, a pair of logits and embeddings
        (N, features). When it raises on a batch, the batch's images are tried one by one, so that
        an image that the model cannot take fails alone.
    labels, topk, mode, logits, embeddings : as of `Classifier`.
    """

    feed: Callable[[Sequence[np.ndarray]], Any]
    labels: Sequence[str] | None
    topk: int | None
    mode: str
    logits: bool = False
    embeddings: bool = False

    def __call__(self, group: Sequence[Decoded]) -> list[Result]:
        """A result for each image.

        Raises
        ------
        ArgumentError
            ``labels`` or ``topk`` do not fit the model's outputs.
        """
        rows = iter(self._rows([d.pixels for d in group if d.pixels is not None]))
        return [
            Result(d.key, error=d.error, mode=self.mode)
            if d.pixels is None
            else self._result(d, next(rows))
            for d in group
        ]

    def _rows(self, batch: list[np.ndarray]) -> list[tuple[torch.Tensor, ...] | str]:
        """Per image its probabilities, logits and embedding, or why there are none."""
        if not batch:
            return []
        try:
            outputs = self._outputs(batch)
        except Exception as error:
            if len(batch) > 1:
                _log.warning(
                    "the model failed on a batch of %d (%s): trying its images one by one",
                    len(batch), error,
                )  # fmt: skip
                return [row for pixels in batch for row in self._rows([pixels])]
            return [f"the model failed: {type(error).__name__}: {' '.join(str(error).split())}"]
        self._check_classes(outputs[0].shape[1])
        finite = outputs[0].isfinite().all(dim=1).tolist()
        return [
            row if fine else "the model's output is not finite"
            for *row, fine in zip(*outputs, finite, strict=True)
        ]

    def _outputs(self, batch: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            output = self.feed(batch)
            output, *rest = output if self.embeddings else (output,)
            logits = getattr(output, "logits", output)
            if (
                not isinstance(logits, torch.Tensor)
                or logits.dim() != 2
                or len(logits) != len(batch)
            ):
                kind = f"{type(logits).__name__} {tuple(getattr(logits, 'shape', ()))}"
                raise TypeError(f"its output is a {kind}; accepted: logits ({len(batch)}, classes)")
            logits = logits.float().cpu()  # of a callable they may be anywhere
            return (logits.softmax(dim=1), logits, *(x.float().cpu() for x in rest))

    def _check_classes(self, classes: int) -> None:
        if self.labels is not None and len(self.labels) != classes:
            raise ArgumentError(
                f"labels has {len(self.labels)} names; accepted: {classes}, one per output of the "
                "model"
            )
        if self.topk is not None and self.topk > classes:
            raise ArgumentError(
                f"topk is {self.topk}; accepted: at most the model's {classes} classes"
            )

    def _result(self, image: Decoded, row: Sequence[torch.Tensor] | str) -> Result:
        if isinstance(row, str):
            return Result(image.key, note=image.note, error=row, mode=self.mode)
        probabilities, logits, *embedding = row
        classes = len(probabilities)
        names = labels_for(classes) if self.labels is None else self.labels
        topk = min(DEFAULT_TOPK, classes) if self.topk is None else self.topk
        probs, indices = probabilities.topk(topk)
        indices = indices.tolist()
        return Result(
            image.key,
            tuple(indices),
            tuple(names[index] for index in indices),
            tuple(probs.tolist()),
            image.note,
            mode=self.mode,
            logits=tuple(logits.tolist()) if self.logits else None,
            embedding=tuple(embedding[0].tolist()) if embedding else None,
        )
