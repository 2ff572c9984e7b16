"""From a decoded image to a model's input: its own resize, crop and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..errors import ArgumentError, ImageError
from .decode import MAX_PIXELS

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash")


@dataclass(frozen=True)
class Preprocess:
    """Resize by Pillow, crop the centre, scale to 0..1, normalise: timm's and torchvision's pixels,
    bit for bit.

    Attributes
    ----------
    size : height and width of the model's input.
    resize : height and width that the image is resized to before the crop.
    crop_mode : "center" keeps the aspect ratio and fits the edge that is short in proportion;
        "squash" does not keep it.
    interpolation : one of `INTERPOLATIONS`.
    mean, std : per channel, for pixels in 0..1.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("size", "resize"):
            value = getattr(self, name)
            if len(value) != 2 or min(value) < 1:
                raise ArgumentError(f"{name} is {value}; accepted: a height and a width of 1 up")
        if self.crop_mode not in CROP_MODES:
            raise ArgumentError(f"crop_mode is {self.crop_mode!r}; accepted: {_join(CROP_MODES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ArgumentError(
                f"interpolation is {self.interpolation!r}; accepted: {_join(INTERPOLATIONS)}"
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) != 3 or not all(math.isfinite(v) for v in value):
                raise ArgumentError(f"{name} is {value}; accepted: 3 finite numbers")
        if min(self.std) <= 0:
            raise ArgumentError(f"std is {self.std}; accepted: numbers above 0")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The model's input, float32 (3, height, width), from an RGB image.

        Raises
        ------
        ImageError
            The image is so elongated that its resize would pass `MAX_PIXELS`.
        """
        width, height = self._resized(*image.size)
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"too elongated: {image.width}x{image.height} pixels would be {width}x{height} "
                f"for this model; at most {MAX_PIXELS}"
            )
        if (width, height) != image.size:
            image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        left, top = _start(width, self.size[1]), _start(height, self.size[0])
        image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        # numpy, not torch: in a decoding thread torch would start a team of threads of its own.
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        pixels /= np.float32(255)
        pixels -= np.asarray(self.mean, np.float32)[:, None, None]
        pixels /= np.asarray(self.std, np.float32)[:, None, None]
        return pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        to_height, to_width = self.resize
        if self.crop_mode == "squash":
            return to_width, to_height
        if to_height == to_width:  # torchvision's Resize to one number: it rounds down
            short, long = sorted((width, height))
            long = int(to_width * long / short)
            return (to_width, long) if width <= height else (long, to_width)
        ratio = min(height / to_height, width / to_width)  # timm's for a rectangle: it rounds
        return round(width / ratio), round(height / ratio)

    def changed(
        self,
        *,
        img_size: int | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        interpolation: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocess:
        """A copy with timm's options over it; what is None stays as it is.

        The image is resized to size / crop_pct, rounded down. ``mean`` and ``std`` have one number
        for all channels or three.
        """
        size = self.size if img_size is None else (img_size, img_size)
        if min(size) < 1:
            raise ArgumentError(f"img_size is {img_size}; accepted: 1 and up")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ArgumentError(f"crop_pct is {crop_pct}; accepted: above 0, at most 1")
        if crop_pct is not None:
            resize = tuple(math.floor(edge / crop_pct) for edge in size)
        else:
            resize = tuple(
                edge * old // old_edge
                for edge, old, old_edge in zip(size, self.resize, self.size, strict=True)
            )
        return replace(
            self,
            size=size,
            resize=resize,
            crop_mode=crop_mode or self.crop_mode,
            interpolation=interpolation or self.interpolation,
            mean=self.mean if mean is None else _three(mean),
            std=self.std if std is None else _three(std),
        )

    def __str__(self) -> str:
        mode = "" if self.crop_mode == "center" else f", {self.crop_mode}"
        return (
            f"{self.size[0]}x{self.size[1]} of {self.resize[0]}x{self.resize[1]}, "
            f"{self.interpolation}{mode}"
        )


def _three(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _start(edge: int, crop: int) -> int:
    """Where torchvision's CenterCrop starts; below 0 it pads with black."""
    return round((edge - crop) / 2) if edge >= crop else -((crop - edge) // 2)


def _join(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
