"""Batch classification on Ray Data: the pipeline of one machine, in actors on any number of them.

The driver has the source and the sinks, so keys, order, rows and what a run goes on with are those
of one machine. Between the two a block of images is a row of a dataset, which `map_batches` takes
to an actor: it reads the files and has a `Classifier` of its own for them.

Importing this module needs Ray Data.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from torch import nn

from .. import __version__
from ..errors import ArgumentError, BackendError, EffnetFastError
from .feed import device_for
from .journal import BlockJournal, PartWriter
from .pipeline import Classifier, default_workers
from .results import Result
from .sources import Image
from .workers import Times

# Of a block: batches for each thread of its actor, so that few are not full; rows, where it becomes
# a parquet part; and bytes, of images that have theirs with them.
BLOCK_BATCHES, PART_ROWS, BLOCK_BYTES = 4, 1024, 64 << 20
# Blocks of an actor: the one that it is at, and one that is on its way.
IN_FLIGHT = 2
# Blocks without results, for each actor: those, and as many that are done before an earlier one is.
AHEAD = 2 * IN_FLIGHT
# Ray Data restarts an actor that dies, and gives it its blocks again, for ever; but an image may be
# what kills each.
ATTEMPTS = 4
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Pool:
    """Actors that classify.

    Attributes
    ----------
    least, most : how many there are; None is as many as the cluster has room for at the start.
    cpus, gpus : what each reserves; fractions share one.
    """

    least: int | None = None
    most: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        # Ray counts in ten thousandths.
        if not 1e-4 <= self.cpus < math.inf:
            raise ArgumentError(f"--cpus-per-actor is {self.cpus:g}; accepted: 0.0001 and up")
        if not (self.gpus == 0 or 1e-4 <= self.gpus < math.inf):
            raise ArgumentError(f"--gpus-per-actor is {self.gpus:g}; accepted: 0, 0.0001 and up")

    @classmethod
    def of(cls, concurrency: str | None, cpus: float, gpus: float) -> Pool:
        """From options.

        Parameters
        ----------
        concurrency : "N", "MIN:MAX", or None.
        cpus, gpus : as of the class.

        Raises
        ------
        ArgumentError
            ``concurrency`` is none of these, or a number is too small.
        """
        if concurrency is None:
            return cls(cpus=cpus, gpus=gpus)
        least, colon, most = concurrency.partition(":")
        numbers = (least, most if colon else least)
        if not all(number.isdecimal() for number in numbers) or not (
            1 <= int(numbers[0]) <= int(numbers[1])
        ):
            raise ArgumentError(
                f"--concurrency is {concurrency!r}; accepted: N or MIN:MAX, numbers of actors of 1 "
                "and up"
            )
        return cls(*map(int, numbers), cpus, gpus)

    def fitted(self, nodes: Iterable[dict[str, float]]) -> Pool:
        """With its numbers known, on a cluster of nodes with such resources.

        Raises
        ------
        ArgumentError
            There is not room for ``least`` actors, or for one.
        """
        room = sum(map(self._room, nodes))
        least = 1 if self.least is None else self.least
        if room < least:
            raise ArgumentError(
                f"--concurrency is {least} or more actors of {self.each}, and the cluster has room "
                f"for {room}; accepted: N or MIN of at most that, actors of less, or more nodes"
            )
        return self if self.least else replace(self, least=room, most=room)

    def _room(self, node: dict[str, float]) -> int:
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(node.get(name, 0) / each) for name, each in wanted.items() if each)

    @property
    def each(self) -> str:
        """What an actor has, for people."""
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


class RayRun:
    """Images on their way to results by actors; used as a `pipeline.Run` is.

    It connects to a cluster, or starts a Ray of its own on this machine, which ends with it. Where
    this process is connected already, that is used.

    Parameters
    ----------
    classifier : without a model. Its ``workers`` are the threads of an actor.
    images : from `find_images`. A path is the nodes' to read; the bytes of archives and tables are
        read here, and travel.
    pool : of actors.
    address : of a cluster that this machine is a node of; None to start a Ray.
    backend : of `effnet_fast.optimize`, in each actor; None for the stock model. "auto" is a GPU
        where the pool's actors have one.
    dtype : of the optimised model; by default the model's.
    journal : of parquet parts. Actors write them, and results come back without vectors.

    Raises
    ------
    ArgumentError
        The cluster has not room for the pool.
    BackendError
        There is no cluster at the address.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Iterator[Image],
        pool: Pool,
        *,
        address: str | None = None,
        backend: str | None = "auto",
        dtype: torch.dtype | None = None,
        journal: BlockJournal | None = None,
    ):
        self.times = Times()
        if backend == "auto":
            backend = "gpu" if pool.gpus else "cpu"
        self._classifier, self._images = classifier, images
        self._backend, self._dtype = backend, dtype
        self._journal = journal
        self._source: _Source | None = None
        self._blocks: Iterator[_Block] | None = None
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(address)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._nodes, self._pool = len(nodes), pool.fitted(nodes)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        least, most = self._pool.least, self._pool.most
        count = f"{most}" if least == most else f"{least} to {most}"
        nodes = "a node" if self._nodes == 1 else f"{self._nodes} nodes"
        return f"Ray, {count} actors of {self._pool.each} on {nodes}"

    def start(self, model: nn.Module) -> None:
        """Bring the model, which is not optimised: each actor does that, for its own processor."""
        classifier = self._classifier
        writer = None if self._journal is None else self._journal.writer
        rows = BLOCK_BATCHES * classifier.batch_size * classifier.workers
        self._source = _Source(self._images, PART_ROWS if writer else rows, AHEAD * self._pool.most)
        # One copy of the weights in a node's store, for all actors there.
        setup = ray.put(
            _Setup(classifier, model, self._backend, self._dtype, writer, self._source.store)
        )
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1  # or rows, which are blocks of images, would be joined
        context.enable_progress_bars = False  # `Progress` is ours
        # Of a few images, which are no fault.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
        with DataContext.current(context):
            dataset = ray.data.read_datasource(
                self._source.datasource(), override_num_blocks=1, num_cpus=0, label_selector=_here()
            ).map_batches(
                _Predictor,
                fn_constructor_args=(setup,),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=self._pool.least,
                    max_size=self._pool.most,
                    max_tasks_in_flight_per_actor=IN_FLIGHT,
                ),
                num_cpus=self._pool.cpus,
                num_gpus=self._pool.gpus or None,
            )
        self._blocks = _blocks(dataset, context)

    def __iter__(self) -> Iterator[Result]:
        """The results in the source's order.

        Raises
        ------
        EffnetFastError
            What the source, an actor's `Classifier` or the writing of a part raises.
        BackendError
            Ray can't go on: a node that it needs is gone, nothing has come for half an hour, or an
            image kills each actor.
        """
        try:
            expected = 0
            for block in self._blocks:
                if block.error is not None:
                    raise block.error
                if block.number < expected:  # of a reader that began again
                    continue
                if block.number > expected:
                    raise BackendError(f"Ray gave block {block.number} for block {expected}")
                self._count(block.times)
                yield from block.results
                if block.part:
                    self._journal.adopt(block.part)
                expected += 1
                self._source.release(expected)
        except ExecutionTimeoutError as error:
            seconds = DataContext.get_current().execution_no_progress_timeout_s
            raise BackendError(
                f"Ray made no progress for {seconds:g} s: actors of a node that is lost wait for "
                "room on another; with --results-file the same command goes on"
            ) from error
        except (ray.exceptions.RayError, SystemException) as error:
            raise BackendError(f"Ray can't go on: {_brief(error)}") from error
        if self._source.failure is not None:
            raise self._source.failure
        if expected < self._source.count:
            raise BackendError(f"Ray gave {expected} blocks of {self._source.count}")

    def _count(self, times: Times) -> None:
        self.times.source = self._source.seconds
        for name in ("decode", "model", "wait"):
            setattr(self.times, name, getattr(self.times, name) + getattr(times, name))

    def close(self) -> None:
        """End its actors, and the Ray that it has started."""
        if self._source is not None:
            self._source.close()
        if self._blocks is not None:
            self._blocks.close()
        if self._owns_ray:
            ray.shutdown()


def _connect(address: str | None) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What its core logs on the terminal is about itself; errors of a run are raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # the other is Ray's log file
            handler.setLevel(logging.ERROR)
    own = {"num_cpus": default_workers(), "include_dashboard": False} if address is None else {}
    try:
        with _held_back_stderr():
            ray.init(address or "local", log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = "Ray can't be started" if address is None else f"no Ray at --address {address}"
        raise BackendError(f"{what}: {_brief(error)}") from error


def check_address(address: str) -> None:
    """Whether somebody listens at HOST:PORT; Ray itself would try for minutes.

    Raises
    ------
    ArgumentError
        The address is of Ray Client.
    BackendError
        Nobody does.
    """
    if address.startswith("ray://"):
        raise ArgumentError(
            f"--address is {address}, of Ray Client, which has no Ray Data; accepted: HOST:PORT or "
            "auto, on a node of the cluster"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", or what Ray says something about at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BackendError(f"no Ray at --address {address}: {error}") from error


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Shows what is written to it only if the block raises: Ray's core says there that it was told
    to be quiet.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(before, held.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _here() -> dict[str, str]:
    """Selects this node: what runs here lives as long as the driver does."""
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def _brief(error: Exception) -> str:
    """The first line, which says what happened, and the last, of a traceback the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys((*lines[:1], *lines[-1:]))) or type(error).__name__


# ---- what travels --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Images in the source's order, and then what became of them.

    It travels pickled, in a column of bytes: names of files are no text that Arrow could hold.

    Attributes
    ----------
    number : its place in the source's order.
    images : to classify; none of a block whose results have come.
    results : one for each image, without vectors where there is a part.
    part : the parquet file that they were written to.
    times : what the actor spent on it.
    error : why there are no results, and no actor would have any.
    """

    number: int
    images: tuple[Image, ...] = ()
    results: tuple[Result, ...] = ()
    part: str = ""
    times: Times = field(default_factory=Times)
    error: EffnetFastError | None = None


def _row(pickled: bytes) -> pyarrow.Table:
    return pyarrow.table({"block": pyarrow.array([pickled], pyarrow.large_binary())})


def _blocks(dataset: Dataset, context: DataContext) -> Iterator[_Block]:
    """What comes back, at once when it does."""
    with DataContext.current(context):
        for rows in dataset.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        ):
            for row in rows.column("block"):
                yield pickle.loads(row.as_buffer())


@dataclass(frozen=True)
class _Setup:
    """What an actor is made from."""

    classifier: Classifier
    model: nn.Module
    backend: str | None
    dtype: torch.dtype | None
    writer: PartWriter | None
    store: Any
    version: str = __version__


# ---- the source ----------------------------------------------------------------------------------


class _Source:
    """Blocks of the driver's images, as they come.

    A thread puts them into the object store, at most ``ahead`` before those whose results have
    come, and a single task of Ray Data's yields them. They stay until then: a task that is begun
    again reads them again.
    """

    def __init__(self, images: Iterator[Image], rows: int, ahead: int):
        self.count, self.seconds = 0, 0.0
        self.failure: BaseException | None = None
        self._images, self._rows, self._ahead = images, rows, ahead
        self._released, self._stopped = 0, False
        self._changed = threading.Condition()
        self.store = _Store.options(label_selector=_here()).remote()
        self._thread = threading.Thread(target=self._put, name="source", daemon=True)
        self._thread.start()

    def datasource(self) -> Datasource:
        """Of a dataset with a row for each block."""
        return _Datasource(self.store)

    def release(self, number: int) -> None:
        """The results of all blocks before it have come."""
        self.store.release.remote(number)
        with self._changed:
            self._released = number
            self._changed.notify_all()

    def close(self) -> None:
        """Ask for no more. A thread that waits for the source, as for a pipe, is left behind."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        ray.kill(self.store)

    def _put(self) -> None:
        try:
            for images in grouped(self._timed(), self._rows, BLOCK_BYTES):
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._stopped or self.count < self._released + self._ahead
                    )
                    if self._stopped:
                        return
                block = ray.put(pickle.dumps(_Block(self.count, images)))
                # In a list, or Ray would send what it refers to.
                self.store.add.remote(self.count, [block])
                self.count += 1
        except BaseException as error:
            self.failure = error
        finally:
            if not self._stopped:
                self.store.end.remote(self.count)

    def _timed(self) -> Iterator[Image]:
        folder = Path.cwd()  # which a node has not
        while True:
            before = time.perf_counter()
            image = next(self._images, None)
            self.seconds += time.perf_counter() - before
            if image is None:
                return
            yield replace(image, path=folder / image.path)


def grouped(images: Iterable[Image], rows: int, size: int) -> Iterator[tuple[Image, ...]]:
    """Images in groups, of so many rows and bytes at most; one larger image is a group."""
    group: list[Image] = []
    held = 0
    for image in images:
        more = len(image.data or b"")
        if group and (len(group) == rows or held + more > size):
            yield tuple(group)
            group, held = [], 0
        group.append(image)
        held += more
    if group:
        yield tuple(group)


@ray.remote(num_cpus=0)
class _Store:
    """Holds blocks that were put and not released, for who asks by their number.

    Calls of an asynchronous actor may overtake each other.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, ray.ObjectRef] = {}
        self._attempts: Counter[int] = Counter()
        self._released, self._count = 0, math.inf
        self._changed = asyncio.Condition()

    async def add(self, number: int, block: list[ray.ObjectRef]) -> None:
        async with self._changed:
            (self._blocks[number],) = block
            self._changed.notify_all()

    async def end(self, count: int) -> None:
        async with self._changed:
            self._count = count
            self._changed.notify_all()

    async def release(self, stop: int) -> None:
        for number in range(self._released, stop):
            del self._blocks[number]
            self._attempts.pop(number, None)
        self._released = max(self._released, stop)

    async def block(self, number: int) -> list[ray.ObjectRef] | None:
        """In a list, which is empty of one that was released; None behind the last."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: number in self._blocks or number < self._released or number >= self._count
            )
        if number >= self._count:
            return None
        return [self._blocks[number]] if number in self._blocks else []

    async def attempt(self, number: int) -> int:
        """How many times actors have begun with it, this one included."""
        self._attempts[number] += 1
        return self._attempts[number]


class _Datasource(Datasource):
    def __init__(self, store: Any):
        super().__init__()
        self._store = store

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(_read, self._store), unknown)]


def _read(store: Any) -> Iterator[pyarrow.Table]:
    """A task: each block as a row. Begun again it gives as many, as Ray expects of it."""
    number = 0
    while (block := ray.get(store.block.remote(number))) is not None:
        yield _row(ray.get(block[0]) if block else pickle.dumps(_Block(number)))
        number += 1


# ---- an actor ------------------------------------------------------------------------------------


class _Predictor:
    """The actor: a model that is optimised once, for all blocks that come.

    Errors of ours travel as what they are, in a `_Block`; Ray would wrap them.
    """

    def __init__(self, setup: ray.ObjectRef):
        self._error: EffnetFastError | None = None
        self._ended: float | None = None
        try:
            self._set_up(ray.get(setup))
        except EffnetFastError as error:
            self._error = error

    def _set_up(self, setup: _Setup) -> None:
        if setup.version != __version__:
            raise BackendError(
                f"effnet_fast is {__version__} on a node and {setup.version} on the driver; "
                "accepted: one version"
            )
        self._classifier, self._writer, self._store = setup.classifier, setup.writer, setup.store
        self._classifier.model = setup.model
        if setup.backend is not None:
            from ..optimize import optimize

            # Of an actor's GPUs, which are those that Ray lets it see, the first.
            model = setup.model.to(device_for(setup.backend))
            self._classifier.model = optimize(model, dtype=setup.dtype, backend=setup.backend)

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        (row,) = rows.column("block")
        block: _Block = pickle.loads(row.as_buffer())
        try:
            done = self._done(block)
        except EffnetFastError as error:
            done = _Block(block.number, error=error)
        return _row(pickle.dumps(done))

    def _done(self, block: _Block) -> _Block:
        if self._error is not None:
            raise self._error
        if not block.images:
            return _Block(block.number)
        attempts = ray.get(self._store.attempt.remote(block.number))
        if attempts > ATTEMPTS:
            first, last = block.images[0].key, block.images[-1].key
            raise BackendError(
                f"an actor died {ATTEMPTS} times at the images from {first} to {last}; where one "
                "of them crashes its decoder, --decoders processes tells which"
            )
        begun = time.perf_counter()
        results = tuple(self._classifier(block.images))
        times = self._classifier.times
        if self._ended is not None:
            times.wait += (begun - self._ended) * self._classifier.workers
        part = ""
        if self._writer is not None:
            part = self._writer(results)
            results = tuple(replace(result, logits=None, embedding=None) for result in results)
        self._ended = time.perf_counter()
        return _Block(block.number, results=results, part=part, times=times)
