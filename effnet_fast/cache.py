"""Compiled kernels and measured times on disk, made once: bounded, atomic, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

FORMAT = 1  # of an entry; others are not read
MAX_BYTES = 512 << 20
_SUFFIX = ".json"
_STALE = 3600  # seconds after which an unfinished write has died with its process


def folder() -> Path:
    """``$EFFNET_FAST_CACHE``, or ``~/.cache/effnet_fast/kernels``."""
    named = os.environ.get("EFFNET_FAST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "effnet_fast" / "kernels"


def digest(*parts: Any) -> str:
    """A key of everything that a result depends on; the parts are what JSON can hold."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(key: str) -> dict[str, Any] | None:
    """The entry of a key; None when there is none, or it is damaged."""
    path = folder() / (key + _SUFFIX)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    checksum, _, text = data.partition(b"\n")
    if hashlib.sha256(key.encode() + text).hexdigest().encode() != checksum:
        _log.warning("%s is damaged: made again", path)
        _remove(path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used: the oldest go first
    return json.loads(text)


def write(key: str, entry: dict[str, Any], max_bytes: int = MAX_BYTES) -> None:
    """Keep an entry; a folder that cannot be written is a warning, for nothing is lost but time."""
    text = json.dumps(entry).encode()
    data = hashlib.sha256(key.encode() + text).hexdigest().encode() + b"\n" + text
    path = folder() / (key + _SUFFIX)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("the kernel cache %s cannot be written: %s", path.parent, error)
        if temporary is not None:
            _remove(Path(temporary))
        return
    _trim(path, max_bytes)


def _trim(newest: Path, max_bytes: int) -> None:
    """Remove what was used longest ago until the rest is small enough."""
    entries = []
    with contextlib.suppress(OSError), os.scandir(newest.parent) as found:
        for item in found:
            with contextlib.suppress(OSError):
                status = item.stat()
                if item.name.endswith(_SUFFIX):
                    entries.append((status.st_mtime, status.st_size, Path(item.path)))
                elif item.name.startswith(".writing-") and time.time() - status.st_mtime > _STALE:
                    _remove(Path(item.path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= max_bytes:
            return
        if path != newest:
            _remove(path)
            total -= size


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
