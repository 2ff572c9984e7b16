"""Weights in the layout that the CPU kernels read, and a cache for calls with constant weights.

The cache knows a weight by its identity and takes its packed copy for good while its storage,
version, shape and strides are the same. A write that moves no version counter can't be seen:
through ``.data``, or through a numpy array over the same memory. Call :func:`clear_cache` after
one. Inference tensors have no version counter and are packed at every call.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch

from effnet_fast.network import Window
from effnet_fast.ops.extension import extension

# Room for B7 (265 MB) and another; the least recently used go first.
CACHE_BYTES = 512 << 20
ALIGNMENT = 64  # bytes: a cache line, and the widest vector

Room = Callable[[int], torch.Tensor]
Pack = Callable[[torch.Tensor, Room], torch.Tensor]


def aligned(floats: int) -> torch.Tensor:
    """Room for so many, uninitialised: one-dimensional, float32, aligned to 64 bytes."""
    spare = ALIGNMENT // 4
    buffer = torch.empty(floats + spare, dtype=torch.float32)
    start = -(buffer.data_ptr() // 4) % spare
    return buffer[start : start + floats]


def pack_conv(weight: torch.Tensor, room: Room = aligned) -> torch.Tensor:
    """A dense convolution's weight for ``_C.Conv``.

    Parameters
    ----------
    weight : Tensor
        (O, I, kh, kw), or (O, I) for a pointwise one; float32, CPU, any strides.
    room : callable
        Where it goes: as :func:`aligned`.

    Returns
    -------
    Tensor
        One-dimensional, float32, aligned to 64 bytes.
    """
    native = extension()
    cout, cin, kh, kw = (*weight.shape, 1, 1)[:4]
    source = weight.detach().contiguous()
    packed = room(native.packed_conv_size(cout, cin, kh, kw))
    native.pack_conv(source.data_ptr(), cout, cin, kh, kw, packed.data_ptr())
    return packed


# With so many it is 1.07x (AVX2) to 1.19x (AVX-512) as fast as the direct convolution, with 32 1.4x
# (docs/performance.md); transforms take the same time for fewer products.
WINOGRAD_CHANNELS = 16


def takes_winograd(weight: torch.Tensor, window: Window) -> bool:
    """Whether a dense convolution (O, I, kh, kw) is made by Winograd's F(2 x 2, 3 x 3)."""
    return (
        (window.kernel, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))
        and min(weight.shape[:2]) >= WINOGRAD_CHANNELS
    )  # fmt: skip


def pack_winograd(weight: torch.Tensor, room: Room = aligned) -> torch.Tensor:
    """As :func:`pack_conv`, of G g G' (4 x 4), made in float64 of a weight (O, I, 3, 3)."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    return pack_conv((g @ weight.detach().double() @ g.t()).float(), room)


def pack_depthwise(weight: torch.Tensor, room: Room = aligned) -> torch.Tensor:
    """As :func:`pack_conv`, for ``_C.DepthwiseConv``: a depthwise weight (C, 1, kh, kw)."""
    native = extension()
    c, _, kh, kw = weight.shape
    source = weight.detach().contiguous()
    packed = room(native.packed_depthwise_size(c, kh, kw))
    native.pack_depthwise(source.data_ptr(), c, kh, kw, packed.data_ptr())
    return packed


def pack_transposed(weight: torch.Tensor, room: Room = aligned) -> torch.Tensor:
    """(O, I) or (O, I, 1, 1) as contiguous [I][O]: the second layer of ``_C.SqueezeExcite``."""
    rows, columns = weight.shape[:2]
    return pack_plain(weight.detach().reshape(rows, columns).t(), room)


def pack_plain(weight: torch.Tensor, room: Room = aligned) -> torch.Tensor:
    """A copy with contiguous elements: biases, and the first layer of ``_C.SqueezeExcite``."""
    packed = room(weight.numel())
    packed.view(weight.shape).copy_(weight.detach())
    return packed


class _Entry(NamedTuple):
    weight: weakref.ref
    state: tuple
    packed: torch.Tensor


class PackCache:
    """Packed weights by the weight's identity, bounded in bytes, safe to use from several threads.

    Parameters
    ----------
    limit : int
        Bytes of packed weights to keep.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[tuple, _Entry] = OrderedDict()
        # Reentrant: a weight can die, and its entry with it, while this thread holds the lock.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self, weight: torch.Tensor, pack: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """``pack(weight)``, from the cache where ``weight`` is known and unchanged."""
        if weight.is_inference():
            return pack(weight)
        key = (id(weight), pack)
        state = (weight.data_ptr(), weight._version, weight.shape, weight.stride())
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.weight() is weight and entry.state == state:
                self._entries.move_to_end(key)
                return entry.packed
        packed = pack(weight)
        with self._lock:
            self._drop(key)
            reference = weakref.ref(weight, lambda dead: self._forget(key, dead))
            self._entries[key] = _Entry(reference, state, packed)
            self.bytes += packed.nbytes
            while self.bytes > self.limit:
                self._drop(next(iter(self._entries)))
        return packed

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def _drop(self, key: tuple) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.packed.nbytes

    def _forget(self, key: tuple, dead: weakref.ref) -> None:
        # The key's id may by now belong to another weight, whose entry stays.
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.weight is dead:
                self._drop(key)


CACHE = PackCache()


def clear_cache() -> None:
    """Forget the packed weights kept between calls: needed after a write through ``.data``."""
    CACHE.clear()
