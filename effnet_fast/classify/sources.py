"""Where images come from: files and folders, in a stable order under stable keys."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# What a folder is searched for. A file named on its own is tried whatever its name ends in.
EXTENSIONS = frozenset(
    (
        ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
        ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Image:
    """An image to classify.

    Attributes
    ----------
    key : names it in the results: its path as given, printable as UTF-8.
    path : the file.
    error : why there is nothing to decode; empty when there is.
    """

    key: str
    path: Path
    error: str = ""


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Image]:
    """The files among ``paths`` and, recursively, the image files in the folders among them.

    In the order of ``paths``; within a folder sorted by name, files before folders. A file that is
    reached twice under one path is given once. What cannot be read, and a folder without an image
    file, is an `Image` with its ``error``. Links are followed, once around a loop.
    """
    seen: set[str] = set()
    for path in paths:
        for image in _at(Path(path)):
            if image.key not in seen:
                seen.add(image.key)
                yield image


def _at(path: Path) -> Iterator[Image]:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield _refused(path, reason(error))
        return
    if stat.S_ISDIR(mode):
        found = False
        for image in _in_folder(path, ()):
            found = True
            yield image
        if not found:
            yield _refused(path, "a folder without image files")
    elif stat.S_ISREG(mode):
        yield Image(key_of(path), path)
    else:
        yield _refused(path, "not a regular file")  # to open a pipe would wait for its writer


def _in_folder(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Image]:
    folders = []
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        yield _refused(folder, reason(error))
        return
    for entry in ordered:
        path = folder / entry.name
        if entry.is_dir():
            folders.append(path)
        elif path.suffix.lower() in EXTENSIONS:
            yield from _at(path)
    for path in folders:
        yield from _in_folder(path, (*above, here))


def key_of(path: Path) -> str:
    r"""The path as text that any UTF-8 file can hold; bytes that are none become ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def reason(error: OSError) -> str:
    """An operating system's error in a few words, without the path."""
    return error.strerror[0].lower() + error.strerror[1:] if error.strerror else str(error)


def _refused(path: Path, error: str) -> Image:
    return Image(key_of(path), path, error)
