"""From a decoded image to a model's input: its own resize, crop and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..errors import ArgumentError, ImageError
from .decode import MAX_PIXELS
from .resize import FILTERS, is_pillows, resize

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
    """Resize, crop the centre, scale to 0..1, normalise: timm's and torchvision's pixels, bit for
    bit.

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
        return self.normalise(torch.from_numpy(np.stack([self.crop(image)])))[0].numpy()

    def crop(self, image: Image.Image) -> np.ndarray:
        """Resized and cropped: uint8 (height, width, 3), from an RGB image.

        Raises
        ------
        ImageError
            As of calling it.
        """
        if self._is_native():
            return self.crop_pixels(np.asarray(image))
        return self._crop_by_pillow(image, self.resized(*image.size))

    def crop_pixels(self, pixels: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """`crop` from uint8 (height, width, 3).

        Parameters
        ----------
        pixels : an image, or one that was scaled while it was decoded.
        size : width and height of the whole image, when ``pixels`` were scaled.

        Raises
        ------
        ImageError
            As of calling it.
        """
        width, height = self.resized(*(size or pixels.shape[1::-1]))
        if not self._is_native():
            return self._crop_by_pillow(Image.fromarray(pixels), (width, height))
        rows, columns = _Part.of(height, self.size[0]), _Part.of(width, self.size[1])
        resized = (height, width)
        if (rows.count, columns.count) == self.size:
            return resize(pixels, resized, self.interpolation, rows, columns)
        out = np.zeros((*self.size, 3), np.uint8)  # what the image leaves of the crop is black
        inner = out[rows.black :, columns.black :][: rows.count, : columns.count]
        inner[:] = resize(pixels, resized, self.interpolation, rows, columns)
        return out

    def _is_native(self) -> bool:
        return self.interpolation in FILTERS and is_pillows()

    def _crop_by_pillow(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        left, top = _start(size[0], self.size[1]), _start(size[1], self.size[0])
        return np.asarray(image.crop((left, top, left + self.size[1], top + self.size[0])))

    def normalise(
        self, pixels: torch.Tensor, constants: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The model's input, float32 (N, 3, height, width), from uint8 (N, height, width, 3).

        Parameters
        ----------
        pixels : on any device.
        constants : what `constants` made, there; made anew by default.
        """
        mean, std = self.constants(pixels.device) if constants is None else constants
        x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return x.div_(255).sub_(mean).div_(std)

    def table(self) -> torch.Tensor:
        """What `normalise` makes of each byte: float32 (3, 256)."""
        bytes_ = torch.arange(256, dtype=torch.uint8, device="cpu")
        return self.normalise(bytes_[None, None, :, None].expand(1, 1, 256, 3))[0, :, 0].clone()

    def constants(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The mean and the deviation, float32 (2, 3, 1, 1)."""
        numbers = (self.mean, self.std)
        return torch.tensor(numbers, dtype=torch.float32, device=device)[..., None, None]

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image of a width and height is resized to.

        Raises
        ------
        ImageError
            As of calling it.
        """
        to = self._resized(width, height)
        if to[0] * to[1] > MAX_PIXELS:
            raise ImageError(
                f"too elongated: {width}x{height} pixels would be {to[0]}x{to[1]} "
                f"for this model; at most {MAX_PIXELS}"
            )
        return to

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


class _Part(NamedTuple):
    """Of a resized edge, what CenterCrop keeps, and the black pixels before it."""

    start: int
    count: int
    black: int

    @classmethod
    def of(cls, edge: int, crop: int) -> _Part:
        start = _start(edge, crop)
        return cls(max(start, 0), min(edge, crop), max(-start, 0))


def _join(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
