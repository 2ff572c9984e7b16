"""The process's memory: what it takes, and giving back what is not needed (Linux, glibc)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

_SAMPLED = 2e-3  # seconds between two looks: a layer of B7 is folded in 10 ms
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """What the process has in memory; None where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return None


class Peak:
    """The most that memory grew by within :func:`watched`; ``bytes`` is None where unknown."""

    bytes: int | None = None


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """Look at the memory from time to time.

    The system's own record of a peak is the whole process's, and to clear it would be seen outside.
    """
    peak, before, done = Peak(), resident_bytes(), threading.Event()
    if before is None:
        yield peak
        return
    peak.bytes = 0

    def look() -> None:
        peak.bytes = max(peak.bytes, resident_bytes() - before)

    def sample() -> None:
        while not done.wait(_SAMPLED):
            look()

    thread = threading.Thread(target=sample, name="effnet_fast memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        look()


def trim() -> None:
    """Give free memory back to the system: the temporaries of folded weights leave the heap full of
    holes, 480 MB of them for B7.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(AttributeError):  # of another C library
            ctypes.CDLL(None).malloc_trim(0)


def drop_pages(tensors: Iterable[torch.Tensor], inode: int) -> None:
    """Give back the memory of tensors that are mapped from a file, by its inode, and unchanged.

    They are read from the file again when they are used. What lies elsewhere is left alone: a page
    that is no file's would come back as zeros.
    """
    if not sys.platform.startswith("linux"):
        return
    page, madvise = mmap.PAGESIZE, ctypes.CDLL(None).madvise
    mapped = _mappings(inode)
    for tensor in tensors:
        storage = tensor.untyped_storage()
        start = -(-storage.data_ptr() // page) * page
        end = (storage.data_ptr() + storage.nbytes()) // page * page
        if start < end and any(first <= start and end <= last for first, last in mapped):
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _mappings(inode: int) -> list[tuple[int, int]]:
    """Where a file lies in this process's memory: [first, last) addresses."""
    found = []
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        addresses, _, _, _, its_inode, *_ = line.split()
        if int(its_inode) == inode:
            first, _, last = addresses.partition("-")
            found.append((int(first, 16), int(last, 16)))
    return found
