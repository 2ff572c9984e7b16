"""Names of classes."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from ..errors import ArgumentError


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 names of ImageNet's classes, in the order of every ImageNet model's outputs."""
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def read_labels(path: str | Path) -> tuple[str, ...]:
    """One name per line, in the order of the model's outputs.

    Raises
    ------
    ArgumentError
        The file cannot be read, or is no text.
    """
    try:
        return tuple(Path(path).read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"class map {path}: {error}") from error


def labels_for(classes: int) -> tuple[str, ...]:
    """ImageNet's names for 1,000 outputs; else ``class 0``, ``class 1``, ..."""
    if classes == len(imagenet_labels()):
        return imagenet_labels()
    return tuple(f"class {index}" for index in range(classes))
