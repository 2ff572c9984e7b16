"""Where images come from: in a stable order, under stable keys."""

from __future__ import annotations

import glob
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What a folder is searched for. A file named on its own is tried whatever its name ends in.
EXTENSIONS = frozenset(
    (
        ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
        ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip


TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ZIPS = (".zip",)
TABLES = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True)
class Image:
    """An image to classify.

    Attributes
    ----------
    key : names it in the results: its path as given, printable as UTF-8. Of an archive's member
        the archive's path with the member's; of a table's row the table's path with its number.
    path : the file, or the archive or table that it is in.
    error : why there is nothing to decode; empty when there is.
    data : the file's bytes, when they came out of an archive or a table.
    """

    key: str
    path: Path
    error: str = ""
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Columns:
    """Which columns of a parquet or arrow table are read; None to find out.

    Attributes
    ----------
    image : holds an image file's bytes, or its path, seen from the table's folder. By default the
        first with bytes (a struct with ``bytes`` is one), else the first that is called ``path``,
        ``filename``, ``file_name``, ``file`` or ``image_path``.
    key : holds what names the image in the results; by default its path behind the table's folder,
        or the row's number behind the table's path.
    """

    image: str | None = None
    key: str | None = None


def find_images(
    paths: Iterable[str | os.PathLike[str]], columns: Columns | None = None
) -> Iterator[Image]:
    """The images that ``paths`` lead to, in the order of ``paths``.

    A path is an image file; a folder, whose image files are found recursively, sorted by name,
    files before folders; a pattern as in ``photos/**/*.jpg``, where there is no such file; a tar
    archive, plain or compressed, or a zip, of which the members with an image's ending are taken
    in their order; a parquet or arrow table.

    A file that is reached twice under one path is given once. What cannot be read, a folder without
    an image file, what is missing from a damaged archive, and the second of two rows of tables with
    one key, is an `Image` with its ``error``. Links are followed, once around a loop.
    """
    seen, containers = Keys(), Keys()
    for path in paths:
        for image in _given(Path(path), columns or Columns(), containers):
            if seen.add(image.key):
                yield image
            elif image.key != key_of(image.path):  # another image, that a column names so
                number = 2
                while not seen.add(key := f"{image.key}#{number}"):
                    number += 1
                error = f"a duplicate key: {image.key} is there {number} times or more"
                yield Image(key, image.path, error)


def listed(lines: Iterable[bytes]) -> Iterator[Path]:
    """The paths in a list, one a line; blank lines are none."""
    for line in lines:
        line = line.rstrip(b"\r\n")
        if line:
            yield Path(os.fsdecode(line))


class Keys:
    """A set of texts that takes no more memory the more it holds: SQLite keeps it in a file of its
    own, which is gone with it.
    """

    def __init__(self) -> None:
        # One thread at a time asks for images, not always the same.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("pragma journal_mode = off")
        self._database.execute("create table keys (key text primary key) without rowid")
        self._database.execute("begin")

    def add(self, key: str) -> bool:
        """Whether it is new."""
        return self._database.execute("insert or ignore into keys values (?)", (key,)).rowcount > 0


def is_container(path: Path) -> bool:
    """Whether the name is that of an archive or a table."""
    return path.name.lower().endswith((*TARS, *ZIPS, *TABLES))


def matches(path: Path) -> list[str] | None:
    """The files that a pattern fits, in order; None of a path that is no pattern."""
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return None
    found = sorted(glob.iglob(str(path), recursive=True), key=os.fsencode)
    # A folder that a pattern reaches would be searched for files that it does not fit.
    return [match for match in found if not os.path.isdir(match)]


def _given(path: Path, columns: Columns, containers: Keys) -> Iterator[Image]:
    found = matches(path)
    if found is None:
        yield from _at(path, columns, containers)
    elif not found:
        yield _refused(path, "a pattern that no file fits")
    else:
        for match in found:
            yield from _at(Path(match), columns, containers)


def _at(
    path: Path, columns: Columns | None = None, containers: Keys | None = None
) -> Iterator[Image]:
    """``containers`` are those that were read, and are not read again."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        yield _refused(path, reason(error))
        return
    if stat.S_ISDIR(mode):
        found = False
        for image in _in_folder(path, ()):
            found = True
            yield image
        if not found:
            yield _refused(path, "a folder without image files")
    elif not stat.S_ISREG(mode):
        yield _refused(path, "not a regular file")  # to open a pipe would wait for its writer
    elif columns is not None and is_container(path):
        if containers.add(key_of(path)):
            yield from _contained(path, columns)
    else:
        yield Image(key_of(path), path)


def _contained(path: Path, columns: Columns) -> Iterator[Image]:
    name = path.name.lower()
    if name.endswith(TABLES):
        from .tables import in_table

        yield from in_table(path, columns)
    else:
        from .archives import in_tar, in_zip

        yield from in_zip(path) if name.endswith(ZIPS) else in_tar(path)


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


def reason(error: OSError | ValueError) -> str:
    """An operating system's error in a few words, without the path."""
    if not isinstance(error, OSError):
        return str(error)
    return error.strerror[0].lower() + error.strerror[1:] if error.strerror else str(error)


def _refused(path: Path, error: str) -> Image:
    return Image(key_of(path), path, error)
