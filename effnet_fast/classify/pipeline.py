"""Images to results: decoded by threads, batches filled across files, one row for every image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

import torch

from ..errors import ArgumentError
from .feed import LANES, Calls, Model, calls_of, device_for, dtype_for, feed_for
from .load import Loader, LoaderProcess
from .preprocess import Preprocess
from .results import Answers, Result
from .sources import Columns, Image, find_images
from .workers import Times, Workers
from .zoo import load_model

DECODERS = ("threads", "processes")
# Images that are decoded while the model is still being made: as many, of so many pixels in all.
AHEAD, AHEAD_PIXELS = 512, 512 * 224 * 224


class Classifier:
    """A model with all that it takes to label images, for use inside programs.

    Parameters
    ----------
    model : takes (N, 3, H, W), gives logits (N, classes) or an output with ``.logits``. One from
        `effnet_fast.optimize` on the CPU is called by several threads at a time; one on a GPU by
        two, of which one's batch is copied while the other's is computed; any other by one. None
        to bring it later, to `run`.
    preprocess : the model's own.
    labels : one per class; by default ImageNet's names for 1,000 classes, else numbers.
    topk : how many classes; by default 5, or all when there are fewer.
    batch_size : images per call of the model; the last call has what is left.
    workers : decoding threads; by default one per core that this process may use.
    mode : how pixels are made. "default": all of a JPEG decoded, by libjpeg-turbo, and resized to
        Pillow's pixels; "exact": the same, but by Pillow where its decoder has other pixels: timm's
        and torchvision's, bit for bit; "fast-decode": JPEGs scaled while they are decoded.
    apply_exif : turn images upright, which timm and torchvision do not.
    logits, embeddings : whether results have them. For embeddings ``model`` gives a pair, as one
        from `with_embeddings` does.
    decoders : "threads", for all decoders here release the GIL; "processes", each thread with one,
        where files may crash a decoder.
    threads : batches that may be with the model at a time; by default as many as there are workers,
        and two on a GPU. Of a model that only one thread may call, the threads of torch's that it
        has; by default as many as torch is set to.

    Attributes
    ----------
    model, preprocess, batch_size : as given.
    workers : decoding threads.
    times : what threads spent their time on, in the last run that was begun.
    """

    def __init__(
        self,
        model: Model | None,
        preprocess: Preprocess,
        *,
        labels: Sequence[str] | None = None,
        topk: int | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        mode: str = "default",
        apply_exif: bool = False,
        logits: bool = False,
        embeddings: bool = False,
        decoders: str = "threads",
        threads: int | None = None,
    ):
        workers = default_workers() if workers is None else workers
        numbers = (
            ("batch_size", batch_size), ("workers", workers), ("topk", topk), ("threads", threads),
        )  # fmt: skip
        for name, value in numbers:
            if value is not None and value < 1:
                raise ArgumentError(f"{name} is {value}; accepted: 1 and up")
        if decoders not in DECODERS:
            raise ArgumentError(f"decoders is {decoders!r}; accepted: {', '.join(DECODERS)}")
        self.model = model
        self.times = Times()
        self.preprocess = preprocess
        self._loader = Loader(preprocess, mode, apply_exif)
        self._labels, self._topk = labels, topk
        self._logits, self._embeddings = logits, embeddings
        self.batch_size, self.workers, self._threads = batch_size, workers, threads
        self._decoders = decoders

    @classmethod
    def load(
        cls,
        name: str,
        *,
        checkpoint: str | None = None,
        pretrained: bool = False,
        num_classes: int | None = None,
        backend: str = "auto",
        dtype: str | None = None,
        **options: Any,
    ) -> Classifier:
        """A model by name, optimised; ``options`` are the constructor's.

        Parameters
        ----------
        name, checkpoint, pretrained, num_classes : as of `load_model`.
        backend : of `effnet_fast.optimize`. "auto" is the GPU, where there is one.
        dtype : "float16" or "bfloat16" on a GPU; by default the model's.

        Raises
        ------
        EffnetFastError
            As of `load_model` and `effnet_fast.optimize`.
        """
        from ..optimize import optimize

        loaded = load_model(
            name, checkpoint=checkpoint, pretrained=pretrained, num_classes=num_classes
        )
        model = loaded.model.to(device_for(backend))
        if options.get("embeddings"):
            from .embeddings import with_embeddings

            model = with_embeddings(model)
        model = optimize(model, dtype=dtype_for(dtype), backend=backend)
        return cls(model, loaded.preprocess, **options)

    def __call__(
        self,
        source: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Image],
        columns: Columns | None = None,
    ) -> Iterator[Result]:
        """One `Result` for every image, in order, while the images that come are decoded ahead.

        Parameters
        ----------
        source : a path or paths, as of `find_images`, or images.
        columns : of tables, as of `find_images`.

        Raises
        ------
        ArgumentError
            ``topk`` or ``labels`` do not fit the model's outputs, which is known with the first
            batch; a table has no such column.
        """
        run = self.run(images_of(source, columns), calls_of(self.model))
        with closing(run):
            run.start(self.model)
            yield from run

    def run(self, images: Iterator[Image], calls: Calls) -> Run:
        """Begin to decode. Results come once the run has a model; it must be closed.

        Parameters
        ----------
        images : from `find_images`, or of your own.
        calls : who may call the model.
        """
        most = {Calls.ALL: self.workers, Calls.GPU: LANES, Calls.ONE: 1}[calls]
        slots = most if calls is Calls.ONE else self._threads or most
        if self._decoders == "processes":
            loads = [LoaderProcess(self._loader) for _ in range(self.workers)]
        else:
            loads = [self._loader] * self.workers
        workers = Workers(
            images,
            loads,
            batch_size=self.batch_size,
            slots=slots,
            apart=calls is not Calls.ALL,
            model_threads=1 if calls is Calls.GPU else self._threads or torch.get_num_threads(),
            ahead=0 if self.model else min(AHEAD, AHEAD_PIXELS // math.prod(self.preprocess.size)),
        )
        self.times = workers.times
        return Run(self, workers, loads)

    def answers(self, model: Model) -> Answers:
        """From decoded images to results."""
        return Answers(
            feed_for(model, self.preprocess, self.batch_size), self._labels, self._topk,
            self._loader.mode, self._logits, self._embeddings,
        )  # fmt: skip


class Run:
    """Images on their way to results; `Classifier.run` makes one."""

    def __init__(self, classifier: Classifier, workers: Workers, loads: Sequence[Any]):
        self._classifier, self._workers, self._loads = classifier, workers, loads

    @property
    def times(self) -> Times:
        """What its threads have spent their time on."""
        return self._workers.times

    def start(self, model: Model) -> None:
        """Bring the model."""
        self._workers.start(self._classifier.answers(model))

    def __iter__(self) -> Iterator[Result]:
        return iter(self._workers)

    def close(self) -> None:
        """End its threads and processes."""
        self._workers.close()
        for load in self._loads:
            if isinstance(load, LoaderProcess):
                load.close()


def classify(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Image],
    model: Model,
    preprocess: Preprocess,
    **options: Any,
) -> Iterator[Result]:
    """One `Result` for every image of ``source``, in order: ``Classifier(...)(source)``.

    ``options`` are those of `Classifier`.
    """
    return Classifier(model, preprocess, **options)(source)


def default_workers() -> int:
    """Decoding threads: one per core that this process may use."""
    return len(os.sched_getaffinity(0))


def images_of(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Image],
    columns: Columns | None = None,
) -> Iterator[Image]:
    """The images of whatever `classify` takes."""
    if isinstance(source, (str, os.PathLike)):
        source = (source,)
    for are_images, some in groupby(source, lambda one: isinstance(one, Image)):
        yield from some if are_images else find_images(some, columns)  # noqa: B031
