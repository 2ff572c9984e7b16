"""Threads that decode and infer: each core does what is next.

A fixed split of the cores between decoding and inference leaves some idle whenever images get
larger or smaller. Here every thread takes a full batch to the model when there is one, and else
decodes the next image, so that the split follows what both take at the moment.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .load import Decoded
from .sources import Image

_PATIENCE = 1.0  # seconds that the source has to give the image that it was asked for

Load = Callable[[Image], Decoded]
Infer = Callable[[Sequence[Decoded]], Sequence[Any]]


@dataclass
class Times:
    """Seconds of threads, summed over them.

    Attributes
    ----------
    source : asking for images: walking folders, reading archives.
    decode : reading, decoding, resizing.
    model : the model, and what is made of its outputs.
    wait : with nothing to do.
    """

    source: float = 0.0
    decode: float = 0.0
    model: float = 0.0
    wait: float = 0.0

    def shares(self) -> dict[str, float]:
        """Of the sum, by name."""
        total = self.source + self.decode + self.model + self.wait
        return {name: seconds / total if total else 0.0 for name, seconds in vars(self).items()}


@dataclass
class _Group:
    """Images whose results come together: a batch, and those without pixels between its images."""

    images: list[Decoded] = field(default_factory=list)
    good: int = 0
    answers: Sequence[Any] | None = None


class Workers:
    """Images to answers, in order, by threads, in bounded memory.

    Parameters
    ----------
    images : the source. One thread at a time asks it.
    loads : how images are decoded, one for every thread that may decode at a time.
    infer : answers for a group: one for each of its images. Without it images are decoded only,
        until `start` brings it.
    ahead : images that may be decoded until then.
    batch_size : images with pixels in a group; the last has what is left.
    slots : groups that may be with the model at once.
    apart : a thread for each slot takes them there, which does not decode, and has
        ``model_threads`` threads of torch's. Else all do, and torch has one thread in each.
    model_threads : see there.
    """

    def __init__(
        self,
        images: Iterator[Image],
        loads: Sequence[Load],
        infer: Infer | None = None,
        *,
        batch_size: int,
        slots: int,
        apart: bool,
        model_threads: int,
        ahead: int = 0,
    ):
        self._images = images
        self._infer = infer
        self._batch_size = batch_size
        self._slots = slots
        # A batch for every slot, one that is filled, and what threads decode meanwhile.
        self._later = (slots + 1) * batch_size + 2 * len(loads)
        self._most = self._later if infer else max(ahead, self._later)
        self._changed = threading.Condition()
        self._waiting: deque[list[Decoded | None]] = deque()  # cells, in the source's order
        self._filling = _Group()
        self._ready: deque[_Group] = deque()
        self._groups: deque[_Group] = deque()
        self._held = self._running = 0
        self._asking = self._exhausted = self._stopped = False
        self._failure: BaseException | None = None
        self.times = Times()
        before = torch.get_num_threads()
        jobs = [(load, not apart) for load in loads]
        jobs += [(None, True)] * (slots - sum(infers for _, infers in jobs))
        threads = model_threads if apart else 1
        started = threading.Barrier(len(jobs) + 1)
        self._threads = [
            threading.Thread(
                target=self._work, args=(*job, threads, started), name="classify", daemon=True
            )
            for job in jobs
        ]
        for thread in self._threads:
            thread.start()
        started.wait()
        torch.set_num_threads(before)  # for threads to come, which take over the last call's number

    def __iter__(self) -> Iterator[Any]:
        """The answers in the source's order.

        Raises
        ------
        BaseException
            What the source or ``infer`` raises.
        """
        while True:
            with self._changed:
                self._changed.wait_for(self._something)
                if not self._groups or self._groups[0].answers is None:
                    if self._failure is not None:
                        raise self._failure
                    return
                group = self._groups.popleft()
            yield from group.answers
            with self._changed:
                self._held -= len(group.images)
                self._changed.notify_all()

    def _something(self) -> bool:
        if self._failure is not None:
            return True
        if self._groups:
            return self._groups[0].answers is not None
        return self._exhausted and not self._waiting and not self._filling.images

    def start(self, infer: Infer) -> None:
        """Bring the model."""
        with self._changed:
            self._infer, self._most = infer, self._later
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, after what each is at. One that waits for the source, as for a pipe that
        no one writes to, is left behind.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        end = time.monotonic() + _PATIENCE
        for thread in self._threads:
            while thread.is_alive() and not (self._asking and time.monotonic() > end):
                thread.join(0.05)

    # ---- a thread --------------------------------------------------------------------------------

    def _work(
        self, load: Load | None, infers: bool, threads: int, started: threading.Barrier
    ) -> None:
        torch.set_num_threads(threads)
        started.wait()
        try:
            while (job := self._next(load is not None, infers)) is not None:
                if isinstance(job, _Group):
                    self._answer(job)
                else:
                    self._decode(load)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._stopped = True
                self._changed.notify_all()

    def _next(self, loads: bool, infers: bool) -> _Group | str | None:
        """A group for the model, an image to ask for, or None at the end."""
        before = time.perf_counter()
        with self._changed:
            try:
                while not self._stopped:
                    if infers and self._infer and self._ready and self._running < self._slots:
                        self._running += 1
                        return self._ready.popleft()
                    if loads and not self._exhausted:
                        if not self._asking and self._held < self._most:
                            self._asking = True
                            self._held += 1
                            return "image"
                    elif not infers or (self._exhausted and not self._pending()):
                        return None
                    self._changed.wait()
                return None
            finally:
                self.times.wait += time.perf_counter() - before

    def _pending(self) -> bool:
        """Whether the model may still get a group."""
        return bool(self._waiting or self._filling.images or self._ready)

    def _decode(self, load: Load) -> None:
        before = time.perf_counter()
        image = next(self._images, None)
        asked = time.perf_counter()
        cell: list[Decoded | None] = [None]
        with self._changed:
            self._asking = False
            if image is None:
                self._exhausted = True
                self._held -= 1
                self._fill()
            else:
                self._waiting.append(cell)
            self.times.source += asked - before
            self._changed.notify_all()
        if image is None:
            return
        decoded = load(image)
        with self._changed:
            cell[0] = decoded
            self.times.decode += time.perf_counter() - asked
            self._fill()

    def _fill(self) -> None:
        """Put what is decoded into groups, up to the first image that is not."""
        while self._waiting and self._waiting[0][0] is not None:
            (decoded,) = self._waiting.popleft()
            self._filling.images.append(decoded)
            self._filling.good += decoded.pixels is not None
            # Or images without pixels would pile up behind a good one, until no more are asked for.
            many = len(self._filling.images) >= 2 * self._batch_size
            if self._filling.good in (0, self._batch_size) or many:
                self._close()
        if self._exhausted and not self._waiting and self._filling.images:
            self._close()
        if self._exhausted:
            self._changed.notify_all()

    def _close(self) -> None:
        group, self._filling = self._filling, _Group()
        self._groups.append(group)
        self._ready.append(group)
        self._changed.notify_all()

    def _answer(self, group: _Group) -> None:
        before = time.perf_counter()
        answers = self._infer(group.images)
        with self._changed:
            group.answers = answers
            self._running -= 1
            self.times.model += time.perf_counter() - before
            self._changed.notify_all()
