"""Files that are whole under their names, or not there."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name when the block ends; if that raises, all is as before.

    It is written beside its place, and on the disk before it takes the name. A link is followed.
    What a kill leaves there, `scratch_files` finds.

    Raises
    ------
    OSError
        As of ``open``, before the block begins, and of writing.
    """
    path = Path(os.path.realpath(path))
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with open(scratch, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink()
            raise


def scratch_files(path: str | Path) -> list[Path]:
    """Files that `whole_file` was writing for a path: of a run that goes on, or was killed."""
    path = Path(os.path.realpath(path))
    scratch = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    return sorted(place for place in path.parent.iterdir() if scratch.fullmatch(place.name))
