"""An image file to 8-bit RGB: what every kind of file becomes, and why one is refused."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import ImageError
from .sources import reason

# Where Pillow itself takes a file for a decompression bomb; 178,956,970 pixels are 512 MiB of RGB.
MAX_PIXELS = 178_956_970

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
    path: str | os.PathLike[str], *, apply_exif: bool = False
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
    path : path of the file.
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
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise ImageError("an empty file (0 bytes)")
            file.seek(0)
            with Image.open(file, formats=_formats()) as image:
                return _decoded(image, apply_exif)
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


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # Pillow hands EPS to Ghostscript: files from anywhere are not to start a program.
    return tuple(name for name in Image.ID if name != "EPS")


def _decoded(image: Image.Image, apply_exif: bool) -> tuple[Image.Image, tuple[str, ...]]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too large: {width}x{height} pixels, maybe a decompression bomb; at most {MAX_PIXELS}"
        )
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
        notes.append(f"EXIF orientation {orientation} {'' if apply_exif else 'not '}applied")
    return rgb, tuple(notes)


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
