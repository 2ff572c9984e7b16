"""Batches of pixels to a model, and its outputs back, on the CPU or over a GPU's bus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import ArgumentError, BackendError
from ..ops.extension import extension
from .preprocess import Preprocess

Model = Callable[[torch.Tensor], Any]
DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
# Of a GPU's threads: while it computes the batch of one, another's is copied.
LANES = 2


class Calls(Enum):
    """Who calls a model.

    Attributes
    ----------
    ALL : every thread that decodes, with a batch of its own, on a core.
    ONE : a thread that does not decode, with all of torch's threads.
    GPU : `LANES` threads that do not decode, for one GPU.
    """

    ALL = "all"
    ONE = "one"
    GPU = "gpu"


def calls_of(model: Model) -> Calls:
    """How a model is to be called."""
    from ..model import OptimizedModel

    if device_of(model).type == "cuda":
        return Calls.GPU
    optimized = isinstance(model, OptimizedModel)
    if optimized and all(part.backend == "cpu" for part in model.parts()):
        return Calls.ALL
    return Calls.ONE


def device_of(model: Model) -> torch.device:
    """Where a model is."""
    from ..capture import device_of as of_module
    from ..model import OptimizedModel

    if isinstance(model, OptimizedModel):
        model = model.original
    return of_module(model) if isinstance(model, nn.Module) else torch.device("cpu")


def device_for(backend: str) -> torch.device:
    """Where a model has to be for a backend of `effnet_fast.optimize`: for "auto" on a GPU, where
    PyTorch and the GPU engine have one.

    Raises
    ------
    BackendError
        The backend is "gpu", and there is none.
    """
    from ..model import gpu_home

    here, has_gpu = torch.device("cpu"), torch.cuda.is_available()
    if backend != "gpu" and (backend != "auto" or not has_gpu):
        return here
    there = torch.device("cuda", torch.cuda.current_device() if has_gpu else 0)
    try:
        gpu_home("gpu", there)
        if not has_gpu:
            raise BackendError("backend is 'gpu', and PyTorch has no GPU")
    except BackendError:
        if backend == "gpu":
            raise
        return here
    return there


def dtype_for(name: str | None) -> torch.dtype | None:
    """Of a name, one of `DTYPES`.

    Raises
    ------
    ArgumentError
        It is none of them.
    """
    if name is not None and name not in DTYPES:
        raise ArgumentError(f"dtype is {name!r}; accepted: {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


class HostFeed:
    """Calls a model on the CPU, from any threads.

    Each thread has memory of its own for the model's input, which stays: a new one for each batch
    would be as many new pages.
    """

    def __init__(self, model: Model, preprocess: Preprocess):
        self._model, self._size, self._dtype = model, preprocess.size, _dtype_of(model)
        self._table = preprocess.table()
        self._normalise = normaliser()
        self._own = threading.local()

    def __call__(self, batch: Sequence[np.ndarray]) -> Any:
        """The model's outputs for crops, uint8 (height, width, 3)."""
        x = getattr(self._own, "x", None)
        if x is None or len(x) < len(batch):
            shape = (len(batch), 3, *self._size)
            x = self._own.x = torch.empty(shape, dtype=torch.float32, device="cpu")
        x = x[: len(batch)]
        self._normalise(batch, self._table, x)
        with torch.inference_mode():
            return self._model(x.to(self._dtype))


def normaliser() -> Callable[[Sequence[np.ndarray], torch.Tensor, torch.Tensor], None]:
    """From bytes (height, width, 3) by a table (3, 256) to floats (N, 3, height, width), by the
    extension where it is built.
    """

    def by_torch(batch: Sequence[np.ndarray], table: torch.Tensor, x: torch.Tensor) -> None:
        for pixels, to in zip(batch, x, strict=True):
            for channel, row in enumerate(table):
                to[channel] = row[torch.from_numpy(pixels[..., channel]).long()]

    try:
        kernel = extension().normalise
    except BackendError:  # which what decodes and resizes says, too
        return by_torch

    def by_kernel(batch: Sequence[np.ndarray], table: torch.Tensor, x: torch.Tensor) -> None:
        # In one call: each has to wait for the lock that Python's other threads have.
        dense = [np.ascontiguousarray(pixels) for pixels in batch]
        places = [pixels.__array_interface__["data"][0] for pixels in dense]
        kernel(places, x[0, 0].numel(), table.data_ptr(), x.data_ptr())

    return by_kernel


class DeviceFeed:
    """Calls a model on a GPU, from several threads.

    Each thread has a stream, and pinned memory at both ends of it. Pixels travel as bytes, a
    quarter of what the model takes. A batch with fewer images is filled up with what was there
    before, so that no kernels are chosen for it, and no graph is made.

    Parameters
    ----------
    model : on a GPU; on the CPU all is the same, but for streams and pinned memory.
    preprocess : the model's.
    batch_size : images of a batch, at most.
    """

    def __init__(
        self,
        model: Model,
        preprocess: Preprocess,
        batch_size: int,
    ):
        self._model, self._preprocess = model, preprocess
        self._device, self._dtype = device_of(model), _dtype_of(model)
        # Once: a copy from memory that is not pinned would wait for all that is under way.
        self._constants = preprocess.constants(self._device)
        self._shape = (batch_size, *preprocess.size, 3)
        self._lanes = threading.local()

    def __call__(self, batch: Sequence[np.ndarray]) -> Any:
        """The model's outputs on the CPU, for crops, uint8 (height, width, 3)."""
        lane = self._lane()
        for to, pixels in zip(lane.numpy, batch, strict=False):
            to[:] = pixels
        with torch.inference_mode(), lane:
            pixels = lane.pixels.to(self._device, non_blocking=True)
            x = self._preprocess.normalise(pixels, self._constants)
            outputs = self._model(x.to(self._dtype))
            # Of an output that is no tuple or dict of tensors only these could be fetched.
            outputs = getattr(outputs, "logits", outputs)
            fetched = pytree.tree_map_only(torch.Tensor, lane.fetch, outputs)
        lane.wait()
        return pytree.tree_map_only(torch.Tensor, lambda x: x[: len(batch)], fetched)

    def _lane(self) -> _Lane:
        lane = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._lanes.lane = _Lane(self._device, self._shape)
        return lane


def feed_for(model: Model, preprocess: Preprocess, batch_size: int) -> HostFeed | DeviceFeed:
    """What calls a model where it is."""
    if device_of(model).type == "cuda":
        return DeviceFeed(model, preprocess, batch_size)
    return HostFeed(model, preprocess)


class _Lane:
    """A thread's way to a GPU and back."""

    def __init__(self, device: torch.device, shape: tuple[int, ...]):
        self._pinned = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._pinned else None
        self._context: Any = None
        self.pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._pinned)
        self.numpy = self.pixels.numpy()

    def __enter__(self) -> None:
        self._context = torch.cuda.stream(self._stream)  # of None nothing
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def fetch(self, x: torch.Tensor) -> torch.Tensor:
        there = torch.empty(x.shape, dtype=x.dtype, pin_memory=self._pinned)
        return there.copy_(x, non_blocking=True)

    def wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _dtype_of(model: Model) -> torch.dtype:
    from ..model import OptimizedModel

    if isinstance(model, OptimizedModel):
        return next((part.dtype for part in model.parts()), torch.float32)
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
