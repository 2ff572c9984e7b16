"""An image file to 8-bit RGB: what every kind of file becomes, and why one is refused."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import ImageError
from .sources import reason

try:
    import simplejpeg
except ImportError:  # Pillow gives the same pixels, and can't scale while it decodes
    simplejpeg = None
HAS_TURBO = simplejpeg is not None

_log = logging.getLogger(__name__)

# Where Pillow itself takes a file for a decompression bomb; 178,956,970 pixels are 512 MiB of RGB.
MAX_PIXELS = 178_956_970

_JPEG = b"\xff\xd8\xff"
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_UPRIGHT = {  # what turns an image of each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    source: str | os.PathLike[str] | bytes, *, apply_exif: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """Read an image file as timm and torchvision do, where they do it right.

    ===========================  ==================================================================
    the file holds               becomes
    ===========================  ==================================================================
    grey, bilevel, palette,      RGB, by Pillow
    YCbCr, Lab
    alpha, transparent palette   RGB without the alpha, with a note
    CMYK                         RGB by Pillow, without its colour profile, with a note
    16-bit grey                  scaled by 255/65535 and rounded, with a note
    32-bit integers or floats    refused, except integers in 0..65535, which are 16-bit
    several frames or pages      the first, with a note
    EXIF orientation             left as stored, with a note; turned upright with ``apply_exif``
    over `MAX_PIXELS` pixels     refused before any pixel is decoded
    EPS                          refused: Pillow would start Ghostscript for it
    ===========================  ==================================================================

    Parameters
    ----------
    source : path of the file, or its bytes.
    apply_exif : turn the image as its EXIF orientation says; timm and torchvision do not.

    Returns
    -------
    image : PIL image of mode RGB.
    notes : what was done to it that a reader of the results should know.

    Raises
    ------
    ImageError
        With the reason: unreadable, empty, not an image, truncated, too large, no defined range.
    """
    with _reasons(), _opened(source) as image:
        return _decoded(image, apply_exif)


Least = Callable[[int, int], tuple[int, int]]


def decode_pixels(
    source: str | os.PathLike[str] | bytes, *, apply_exif: bool = False, least: Least | None = None
) -> tuple[np.ndarray, tuple[int, int], tuple[str, ...]]:
    """`decode` to an array, by libjpeg-turbo where it is a JPEG: the same pixels.

    Parameters
    ----------
    source, apply_exif : as of `decode`.
    least : from the width and height of the whole image those that its pixels must have at least.
        A JPEG is then decoded to the smallest of the scales 1/8 to 8/8 that has them, in the
        frequencies, which is faster and not the same pixels.

    Returns
    -------
    pixels : uint8 (height, width, 3).
    size : width and height of the whole image.
    notes : as of `decode`.

    Raises
    ------
    ImageError
        As of `decode`.
    """
    with _reasons():
        if simplejpeg is not None:
            data = _jpeg_bytes(source)
            if data is not None:
                with _opened(data) as image:
                    found = _turbo(data, image, apply_exif, least)
                if found is not None:
                    return found
                source = data
        with _opened(source) as image:
            rgb, notes = _decoded(image, apply_exif)
        return np.array(rgb), rgb.size, notes


@cache
def turbo_is_pillows() -> bool:
    """Whether libjpeg-turbo gives the pixels of the decoder that Pillow was built with.

    Seen of small JPEGs of each subsampling, sequential and progressive, smooth and rough, with
    edges that are no multiple of a block's. It does where that is a libjpeg-turbo of the last ten
    years.
    """
    if simplejpeg is None:
        return False
    rough = np.random.default_rng(0).integers(0, 256, (45, 37, 3), dtype=np.uint8)
    smooth = np.add.outer(np.arange(45) * 3, np.arange(111) * 2).reshape(45, 37, 3)
    for pixels in (rough, smooth.astype(np.uint8)):
        for subsampling, progressive, quality in product((0, 1, 2), (False, True), (40, 92)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(
                file, "JPEG", subsampling=subsampling, progressive=progressive, quality=quality
            )
            found = simplejpeg.decode_jpeg(file.getvalue(), "RGB")
            if not np.array_equal(found, np.asarray(Image.open(file))):
                _log.warning("JPEGs are decoded by Pillow: its pixels are not libjpeg-turbo's")
                return False
    return True


def _jpeg_bytes(source: str | os.PathLike[str] | bytes) -> bytes | None:
    """All of a JPEG; None of anything else, which may be too large to be read for nothing."""
    if isinstance(source, bytes):
        return source if source.startswith(_JPEG) else None
    with _file(source) as file:
        head = file.read(len(_JPEG))
        return head + file.read() if head == _JPEG else None


def _turbo(
    data: bytes, image: Image.Image, apply_exif: bool, least: Least | None
) -> tuple[np.ndarray, tuple[int, int], tuple[str, ...]] | None:
    """What libjpeg-turbo makes of a plain JPEG that it has no complaint about; else None."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    _check_size(image)
    orientation = _orientation(image)
    upright = _upright(image.size, orientation, apply_exif)
    width, height = (0, 0) if least is None else least(*upright)
    if upright != image.size:
        width, height = height, width
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
    except ValueError:  # Pillow takes some of what it refuses, and says what is wrong with others
        return None
    notes = []
    if orientation in _UPRIGHT:
        if apply_exif:
            pixels = np.array(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))
        notes.append(_turned(orientation, apply_exif))
    return pixels, upright, tuple(notes)


def _upright(size: tuple[int, int], orientation: int, apply_exif: bool) -> tuple[int, int]:
    return size[::-1] if apply_exif and 5 <= orientation <= 8 else size


@contextmanager
def _reasons() -> Iterator[None]:
    """Whatever a decoder raises as an `ImageError` with the reason."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a format that is not read") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(reason(error)) from error
        detail = " ".join(str(error).split())
        raise ImageError(f"damaged or truncated: {type(error).__name__}: {detail}") from error


def _file(path: str | os.PathLike[str]) -> IO[bytes]:
    if stat.S_ISFIFO(os.stat(path).st_mode):  # whose opening would wait for a writer
        raise ImageError("not a regular file")
    return open(path, "rb")


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes) -> Iterator[Image.Image]:
    with io.BytesIO(source) if isinstance(source, bytes) else _file(source) as file:
        if not file.read(1):
            raise ImageError("an empty file (0 bytes)")
        file.seek(0)
        with Image.open(file, formats=_formats()) as image:
            yield image


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # Pillow hands EPS to Ghostscript: files from anywhere are not to start a program.
    return tuple(name for name in Image.ID if name != "EPS")


def _decoded(image: Image.Image, apply_exif: bool) -> tuple[Image.Image, tuple[str, ...]]:
    _check_size(image)
    notes = []
    # A phone's MPO holds its photo first and previews or a second eye's view behind it.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    image.load()
    orientation = _orientation(image)
    rgb, note = _rgb(image)
    if note:
        notes.append(note)
    if orientation in _UPRIGHT:
        if apply_exif:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        notes.append(_turned(orientation, apply_exif))
    return rgb, tuple(notes)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too large: {width}x{height} pixels, maybe a decompression bomb; at most {MAX_PIXELS}"
        )


def _turned(orientation: int, applied: bool) -> str:
    return f"EXIF orientation {orientation} {'' if applied else 'not '}applied"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are whole, and damaged metadata holds no orientation
        return 1


def _rgb(image: Image.Image) -> tuple[Image.Image, str]:
    mode = image.mode
    if mode == "RGB":
        return image, ""
    if mode in (*_SIXTEEN_BIT, "I"):
        return _from_sixteen_bit(np.asarray(image)), "16-bit grey scaled to 8 bits"
    if mode == "F":
        raise ImageError("32-bit float pixels, which have no defined white; save it as 8 bits")
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns of the transparency that it drops
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return image.convert("RGB"), "transparency ignored"
    if mode == "CMYK":
        return image.convert("RGB"), "CMYK converted without its colour profile"
    return image.convert("RGB"), ""


def _from_sixteen_bit(pixels: np.ndarray) -> Image.Image:
    # Pillow opens some 16-bit files as mode I, 32-bit integers.
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ImageError(
            f"32-bit integer pixels from {pixels.min()} to {pixels.max()}; accepted: 0 to 65535"
        )
    grey = (pixels.astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
