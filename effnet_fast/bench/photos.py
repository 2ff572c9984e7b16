"""A folder of JPEGs to time the whole way with: crops of scikit-image's photos, from a seed."""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path

from PIL import Image

# Those of scikit-image's package that a camera or a telescope took, in colour.
PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
QUALITIES = (75, 95)
SIZES = ((640, 480), (2000, 1500))


def make_photos(
    folder: Path,
    count: int,
    *,
    smallest: tuple[int, int] = SIZES[0],
    largest: tuple[int, int] = SIZES[1],
    seed: int = 0,
) -> list[Path]:
    """JPEGs between two sizes (width, height), a quarter of them upright; those there are kept.

    Each is a random crop of a photo, of at least half its width and height, scaled by a bicubic
    filter, with a quality of 75 to 95. The same seed gives the same files, whatever the count.
    """
    photos = [Image.open(resources.files("skimage.data") / name).convert("RGB") for name in PHOTOS]
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for index in range(count):
        draw = random.Random(f"{seed} {index}")
        photo = draw.choice(photos)
        scale = draw.random()
        size = [
            round(small + scale * (large - small))
            for small, large in zip(smallest, largest, strict=True)
        ]
        if draw.random() < 0.25:
            size.reverse()
        quality = draw.randint(*QUALITIES)
        part = [draw.uniform(0.5, 1.0) * edge for edge in photo.size]
        left, top = (draw.uniform(0, e - p) for e, p in zip(photo.size, part, strict=True))
        box = (left, top, left + part[0], top + part[1])
        path = folder / f"{index:06}.jpg"
        made.append(path)
        if not path.exists():
            scratch = path.with_suffix(".tmp")
            photo.resize(size, Image.Resampling.BICUBIC, box).save(scratch, "JPEG", quality=quality)
            scratch.replace(path)
    return made
