"""Images to results: decoding in threads, batches filled across files, one row for every image."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import ArgumentError, ImageError
from .decode import decode
from .labels import labels_for
from .preprocess import Preprocess
from .sources import Image

_log = logging.getLogger(__name__)

Model = Callable[[torch.Tensor], Any]
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
    """

    filename: str
    indices: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probs: tuple[float, ...] = ()
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Decoded:
    key: str
    pixels: np.ndarray | None  # None with an error
    note: str = ""
    error: str = ""


def classify(
    images: Iterable[Image],
    model: Model,
    preprocess: Preprocess,
    *,
    labels: Sequence[str] | None = None,
    topk: int | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    apply_exif: bool = False,
) -> Iterator[Result]:
    """One `Result` for every image, in order, while the images that come are decoded ahead.

    Parameters
    ----------
    images : from `find_images`.
    model : takes float32 (N, 3, H, W), gives logits (N, classes) or an output with ``.logits``.
        When it raises on a batch, the batch's images are tried one by one, so that an image that
        it cannot take fails alone.
    preprocess : the model's own.
    labels : one per class; by default ImageNet's names for 1,000 classes, else numbers.
    topk : how many classes; by default 5, or all when there are fewer.
    batch_size : images per call of the model; the last call has what is left.
    workers : decoding threads; by default one per core that this process may use, at most 8. At
        most ``2 * (batch_size + workers)`` decoded images are held.
    apply_exif : turn images upright, which timm and torchvision do not.

    Raises
    ------
    ArgumentError
        An option is out of range; ``topk`` or ``labels`` do not fit the model's outputs, which is
        known with the first batch.
    """
    workers = default_workers() if workers is None else workers
    for name, value in (("batch_size", batch_size), ("workers", workers), ("topk", topk)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} is {value}; accepted: 1 and up")
    return _classify(iter(images), model, preprocess, labels, topk, batch_size, workers, apply_exif)


def default_workers() -> int:
    """Decoding threads: one per core that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def _classify(
    images: Iterator[Image],
    model: Model,
    preprocess: Preprocess,
    labels: Sequence[str] | None,
    topk: int | None,
    batch_size: int,
    workers: int,
    apply_exif: bool,
) -> Iterator[Result]:
    def load(image: Image) -> _Decoded:
        return _load(image, preprocess, apply_exif)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[_Decoded]] = deque()
    try:
        group: list[_Decoded] = []  # in order; errors between good images take no place in a batch
        good = 0
        while True:
            room = batch_size + 2 * workers - len(ahead)
            ahead.extend(pool.submit(load, image) for image in islice(images, room))
            if not ahead:
                break
            decoded = ahead.popleft().result()
            group.append(decoded)
            good += decoded.pixels is not None
            if good in (0, batch_size):
                yield from _answer(group, model, labels, topk)
                group, good = [], 0
        yield from _answer(group, model, labels, topk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(image: Image, preprocess: Preprocess, apply_exif: bool) -> _Decoded:
    if image.error:
        return _Decoded(image.key, None, error=image.error)
    try:
        picture, notes = decode(image.path, apply_exif=apply_exif)
        return _Decoded(image.key, preprocess(picture), note="; ".join(notes))
    except ImageError as error:
        return _Decoded(image.key, None, error=str(error))
    except MemoryError:
        return _Decoded(image.key, None, error="not enough memory to decode it")


def _answer(
    group: list[_Decoded], model: Model, labels: Sequence[str] | None, topk: int | None
) -> Iterator[Result]:
    batch = [image.pixels for image in group if image.pixels is not None]
    rows = iter(_rows(batch, model, labels, topk))
    for image in group:
        if image.pixels is None:
            yield Result(image.key, error=image.error)
        else:
            yield _result(image, next(rows), labels, topk)


def _rows(
    batch: list[np.ndarray], model: Model, labels: Sequence[str] | None, topk: int | None
) -> list[torch.Tensor | str]:
    """Per image its probabilities, or why there are none."""
    if not batch:
        return []
    try:
        probabilities = _probabilities(model, batch)
    except Exception as error:
        if len(batch) > 1:
            _log.warning(
                "the model failed on a batch of %d (%s): trying its images one by one",
                len(batch), error,
            )  # fmt: skip
            return [row for pixels in batch for row in _rows([pixels], model, labels, topk)]
        return [f"the model failed: {type(error).__name__}: {' '.join(str(error).split())}"]
    _check_classes(probabilities.shape[1], labels, topk)
    finite = probabilities.isfinite().all(dim=1).tolist()
    return [
        row if fine else "the model's output is not finite"
        for row, fine in zip(probabilities, finite, strict=True)
    ]


def _probabilities(model: Model, batch: list[np.ndarray]) -> torch.Tensor:
    with torch.inference_mode():
        output = model(torch.from_numpy(np.stack(batch)))
        logits = getattr(output, "logits", output)
        if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(batch):
            kind = f"{type(logits).__name__} {tuple(getattr(logits, 'shape', ()))}"
            raise TypeError(f"its output is a {kind}; accepted: logits ({len(batch)}, classes)")
        return logits.float().softmax(dim=1)


def _check_classes(classes: int, labels: Sequence[str] | None, topk: int | None) -> None:
    if labels is not None and len(labels) != classes:
        raise ArgumentError(
            f"labels has {len(labels)} names; accepted: {classes}, one per output of the model"
        )
    if topk is not None and topk > classes:
        raise ArgumentError(f"topk is {topk}; accepted: at most the model's {classes} classes")


def _result(
    image: _Decoded, row: torch.Tensor | str, labels: Sequence[str] | None, topk: int | None
) -> Result:
    if isinstance(row, str):
        return Result(image.key, note=image.note, error=row)
    names = labels_for(len(row)) if labels is None else labels
    probs, indices = row.topk(min(DEFAULT_TOPK, len(row)) if topk is None else topk)
    indices = indices.tolist()
    return Result(
        image.key,
        tuple(indices),
        tuple(names[index] for index in indices),
        tuple(probs.tolist()),
        image.note,
    )
