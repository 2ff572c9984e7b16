"""Pillow's resize of 8-bit RGB images, of a crop alone, by a kernel of our own."""

from __future__ import annotations

import logging
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import BackendError
from ..ops.extension import extension

_log = logging.getLogger(__name__)

# In the order of csrc/include/effnet_fast/resize.h.
FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")


class Part(Protocol):
    """``count`` pixels of an edge, from ``start``."""

    start: int
    count: int


def resize(
    pixels: np.ndarray, size: tuple[int, int], interpolation: str, rows: Part, columns: Part
) -> np.ndarray:
    """The pixels of Pillow 13 in a part of a resized image; of the others none is computed.

    Parameters
    ----------
    pixels : uint8 (H, W, 3).
    size : height and width that all of it would be resized to.
    interpolation : one of `FILTERS`.
    rows, columns : the part of those.

    Returns
    -------
    ndarray
        uint8 (rows.count, columns.count, 3).
    """
    out = np.empty((rows.count, columns.count, 3), np.uint8)
    pixels = np.ascontiguousarray(pixels)
    extension().resize(
        pixels.ctypes.data, *pixels.shape[:2], pixels.strides[0], *size,
        FILTERS.index(interpolation), rows.start, columns.start, *out.shape[:2], out.ctypes.data,
    )  # fmt: skip
    return out


@cache
def is_pillows() -> bool:
    """Whether `resize` can be used for the Pillow that is installed.

    Its pixels are compared with those of a few small images. Another version may do other
    arithmetic: before 13 rows were always summed first, and some pixels of images that are twice as
    high as wide are others.
    """
    try:
        extension()
    except BackendError as error:
        _log.warning("images are resized by Pillow, which takes ten times as long: %s", error)
        return False
    noise = np.random.default_rng(0)
    for (height, width), (to_height, to_width) in _PROBES:
        pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = _All(to_height), _All(to_width)
        for name in FILTERS:
            theirs = Image.fromarray(pixels).resize(
                (to_width, to_height), Image.Resampling[name.upper()]
            )
            ours = resize(pixels, (to_height, to_width), name, *whole)
            if not np.array_equal(ours, np.asarray(theirs)):
                _log.warning(
                    "images are resized by Pillow %s, which takes ten times as long: it has other "
                    "%s pixels than the kernel, which has those of Pillow 13",
                    Image.__version__,
                    name,
                )
                return False
    return True


class _All:
    start = 0

    def __init__(self, count: int):
        self.count = count


# Wide, high and larger: rows first, columns first, and neither shrinks.
_PROBES = (((48, 90), (13, 21)), ((96, 24), (20, 12)), ((9, 11), (20, 30)))
