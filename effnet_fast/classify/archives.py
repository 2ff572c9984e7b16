"""Images in tar and zip archives, read from the front to the end."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .sources import EXTENSIONS, Image, Keys, key_of, reason

# A member is held in memory whole; one that is larger is no photo.
MAX_BYTES = 1 << 30

# What the libraries raise on an archive that is damaged.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
    NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


class _Members:
    """What an archive's members become: keys under its own, each once."""

    def __init__(self, path: Path):
        self.path = path
        self.key = key_of(path)
        self._seen = Keys()
        self.count = 0

    def image(self, name: str, data: bytes | None, error: str = "") -> Image:
        key = plain = f"{self.key}/{key_of(Path(name))}"
        number = 1
        while not self._seen.add(key):
            number += 1
            key = f"{plain}#{number}"
        if number > 1:
            data, error = None, f"a duplicate key: {plain} is in the archive {number} times or more"
        self.count += 1
        return Image(key, self.path, error, data)

    def damaged(self, why: str) -> Image:
        """For what is missing behind the members that were read."""
        text = f"a damaged or truncated archive, after {self.count} images: {why}"
        return Image(self.key, self.path, text)


def in_tar(path: Path) -> Iterator[Image]:
    """The image files in a tar archive, plain or compressed, in their order.

    It is read as a stream, so that its size does not matter. Where it ends too early, the images
    up to there are given and then an `Image` with the error.
    """
    members = _Members(path)
    try:
        with tarfile.open(
            path, "r|*", tarinfo=_Header, errors="surrogateescape", bufsize=1 << 18
        ) as archive:
            for member in archive:
                archive.members.clear()  # which a stream has no use for, and else keeps
                if Path(member.name).suffix.lower() in EXTENSIONS and not member.isdir():
                    yield _in_tar(archive, member, members)
            # tarfile takes an end in the middle of a header, or between two members, for the end.
            if not isinstance(getattr(archive, "ended", None), tarfile.EOFHeaderError):
                yield members.damaged("it ends without an end mark")
    except _DAMAGED as error:
        yield members.damaged(_text(error))


def _in_tar(archive: tarfile.TarFile, member: tarfile.TarInfo, members: _Members) -> Image:
    if not member.isfile():
        return members.image(member.name, None, "a link or a device, which has no bytes here")
    if member.size > MAX_BYTES:
        return members.image(member.name, None, f"too large: {member.size} bytes")
    return members.image(member.name, archive.extractfile(member).read())


class _Header(tarfile.TarInfo):
    """Keeps what ended the archive, which tarfile itself does not tell."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended = error
            raise


def in_zip(path: Path) -> Iterator[Image]:
    """The image files in a zip archive, in their order. A damaged member is an error of its own."""
    members = _Members(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                suffix = os.path.splitext(member.filename)[1].lower()
                if member.is_dir() or suffix not in EXTENSIONS:
                    continue
                if member.file_size > MAX_BYTES:
                    error = f"too large: {member.file_size} bytes"
                    yield members.image(member.filename, None, error)
                    continue
                try:
                    data, error = archive.read(member), ""
                except _DAMAGED as failure:
                    data, error = None, f"damaged in the archive: {_text(failure)}"
                yield members.image(member.filename, data, error)
    except _DAMAGED as error:
        yield members.damaged(_text(error))


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return reason(error)
    return " ".join(str(error).split()) or type(error).__name__
