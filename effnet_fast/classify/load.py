"""One image to the pixels of the model's crop, in the way of a mode; in a process of its own if
wanted.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..errors import ArgumentError, BackendError, ImageError
from .decode import HAS_TURBO, decode, decode_pixels, turbo_is_pillows
from .preprocess import Preprocess
from .sources import Image

# How an image becomes pixels, from the quickest to the one that is timm's:
#   fast-decode  JPEGs scaled while they are decoded, then as default
#   default      every pixel decoded by libjpeg-turbo, resized to Pillow's pixels
#   exact        the same, and by Pillow where its decoder is seen to have other pixels
MODES = ("default", "exact", "fast-decode")

# Of fast-decode: a JPEG is decoded to 1/2, 1/4 or 1/8 if that leaves its edges this many times as
# long as what they are resized to. On 2,000 photos of 640x480 to 2000x1500 and EfficientNet-Lite0,
# 95.8 % keep their best class with 1.25, and all whose confidence is above 0.5; with 1.5 97.4 %,
# with 2.0 98.8 %. Of the other eighths libjpeg-turbo has no vector code, and they agree no better.
MARGIN = 1.25


@dataclass(frozen=True)
class Decoded:
    """What became of an image until the model sees it.

    Attributes
    ----------
    key : the image's.
    pixels : uint8 (height, width, 3); None with an error.
    note, error : as of a result.
    """

    key: str
    pixels: np.ndarray | None
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class Loader:
    """Image files to crops.

    Attributes
    ----------
    preprocess : the model's.
    mode : one of `MODES`.
    apply_exif : turn images upright.
    """

    preprocess: Preprocess
    mode: str = "default"
    apply_exif: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ArgumentError(f"mode is {self.mode!r}; accepted: {', '.join(MODES)}")
        if self.mode == "fast-decode" and not HAS_TURBO:
            raise BackendError("fast-decode needs simplejpeg: pip install 'effnet-fast[classify]'")

    def __call__(self, image: Image) -> Decoded:
        """The crop, or the reason why there is none; it raises nothing of an image's making."""
        if image.error:
            return Decoded(image.key, None, error=image.error)
        try:
            pixels, notes = self._pixels(image.path if image.data is None else image.data)
            return Decoded(image.key, pixels, note="; ".join(notes))
        except ImageError as error:
            return Decoded(image.key, None, error=str(error))
        except MemoryError:
            return Decoded(image.key, None, error="not enough memory to decode it")

    def _pixels(self, source: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        preprocess = self.preprocess
        if self.mode == "exact" and not turbo_is_pillows():
            picture, notes = decode(source, apply_exif=self.apply_exif)
            return preprocess.crop(picture), notes
        least = self._least if self.mode == "fast-decode" else None
        pixels, size, notes = decode_pixels(source, apply_exif=self.apply_exif, least=least)
        return preprocess.crop_pixels(pixels, size), notes

    def _least(self, width: int, height: int) -> tuple[int, int]:
        to_width, to_height = self.preprocess.resized(width, height)
        most = min(width / to_width, height / to_height) / MARGIN
        scale = next((scale for scale in (8, 4, 2) if scale <= most), 1)
        return math.ceil(width / scale), math.ceil(height / scale)


class LoaderProcess:
    """A loader in a process of its own: a decoder that crashes, or is killed, takes nothing along.

    An image whose process ends is tried once more in a new one; when that ends, too, it gets a row
    with the reason.

    Raises
    ------
    BackendError
        When called: a process ended before it began to decode.
    """

    def __init__(self, loader: Loader):
        self._loader = loader
        self._process: Any = None
        self._start()

    def _start(self) -> None:
        # Not forked from this process, which has threads; what is imported is shared all the same.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._loader), daemon=True, name="decode"
        )
        self._process.start()
        theirs.close()
        self._ready = False

    @property
    def pid(self) -> int:
        """Of the process that decodes now."""
        return self._process.pid

    def __call__(self, image: Image) -> Decoded:
        for _ in range(2):
            self._await()
            try:
                self._pipe.send(image)
                return self._pipe.recv()
            except (EOFError, OSError):
                code = self._stop()
                self._start()
        return Decoded(image.key, None, error=f"its decoder was ended twice, by {_how(code)}")

    def _await(self) -> None:
        """Until the process has begun: what ends it before is no image's fault."""
        if self._ready:
            return
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            raise BackendError(
                f"a decoding process ended at its start, by {_how(self._stop())}; a script that "
                "uses processes keeps what it runs under if __name__ == '__main__'"
            ) from None
        self._ready = True

    def _stop(self) -> int:
        self._pipe.close()
        self._process.join(5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        return self._process.exitcode

    def close(self) -> None:
        """End the process."""
        self._stop()


def _how(code: int) -> str:
    return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


def _serve(pipe: Connection, loader: Loader) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        pipe.send("ready")
        while True:
            pipe.send(loader(pipe.recv()))
    except (EOFError, OSError):  # the parent has no more, or is gone
        pass
