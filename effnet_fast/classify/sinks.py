"""Where results go: files of five formats, whole or not there at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import ArgumentError
from ..files import whole_file
from .results import Result
from .sources import reason
from .tables import need_pyarrow

FORMATS = ("csv", "json", "jsonl", "parquet", "sqlite")
_ROW_GROUP = 4096  # rows that are held before they are written


class Sink(Protocol):
    """Takes results one by one; ``close`` completes the file."""

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


@contextmanager
def open_sink(
    path: str | Path, format: str | None = None, *, topk: int, vectors: Sequence[str] = ()
) -> Iterator[Sink]:
    """A file of results, complete under its name when the block ends and untouched when it raises.

    Rows go to a temporary file beside it, which then takes the name.

    Parameters
    ----------
    path : the file; its folder exists.
    format : "csv": a row per image, columns ``filename, index_0, label_0, prob_0, ..., note,
        error, mode``, vectors as JSON lists; "json": a list of objects with lists ``index``,
        ``label``, ``prob``; "jsonl": an object a line; "parquet": a table of the same. By default
        what the file's name ends in. "sqlite" is not written here: `Journal` is such a file.
    topk : how many classes a result has at most.
    vectors : of "logits" and "embedding" those that results have.

    Raises
    ------
    ArgumentError
        The format is none of these or needs a package that is missing; no file can be made there.
    """
    path, format = checked(path, format)
    if format not in _CLASSES:
        raise ArgumentError(f"results format is {format!r}; accepted: {', '.join(_CLASSES)}")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(path))
        except OSError as error:
            raise ArgumentError(f"results file {path}: {reason(error)}") from error
        sink = _CLASSES[format](file, topk, tuple(vectors))
        try:
            yield sink
        finally:
            sink.close()  # pyarrow complains of a writer that is left open


def checked(path: str | Path, format: str | None) -> tuple[Path, str]:
    """Where a results file really is, and its format.

    Raises
    ------
    ArgumentError
        As of `open_sink`, as far as it is known before anything is written.
    """
    path = Path(os.path.realpath(path))  # through a link, not in its place
    format = format_of(path) if format is None else format
    if format not in FORMATS:
        raise ArgumentError(f"results format is {format!r}; accepted: {', '.join(FORMATS)}")
    if path.exists() and not path.is_file():
        raise ArgumentError(f"results file {path}: not a regular file")
    if format == "parquet":
        need_pyarrow("results format parquet")
    return path, format


def format_of(path: Path) -> str:
    """The format that a results file's name ends in."""
    format = path.suffix[1:].lower()
    format = {"db": "sqlite", "ndjson": "jsonl"}.get(format, format)
    if format not in FORMATS:
        raise ArgumentError(
            f"results file {path}: its format is not clear from its name; accepted: "
            f"{', '.join('.' + name for name in FORMATS)}, or --results-format"
        )
    return format


class _Csv:
    def __init__(self, file: IO[bytes], topk: int, vectors: tuple[str, ...]):
        self._topk, self._vectors = topk, vectors
        self._text = io.TextIOWrapper(file, "utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        best = [f"{name}_{rank}" for rank in range(topk) for name in ("index", "label", "prob")]
        self._rows.writerow(["filename", *best, "note", "error", "mode", *vectors])

    def write(self, result: Result) -> None:
        best = [
            value
            for triple in zip(result.indices, result.labels, result.probs, strict=True)
            for value in triple
        ]
        best += [""] * (3 * self._topk - len(best))
        vectors = [getattr(result, name) for name in self._vectors]
        cells = ["" if vector is None else json.dumps(vector) for vector in vectors]
        rest = (result.note, result.error, result.mode, *cells)
        self._rows.writerow([result.filename, *best, *rest])

    def close(self) -> None:
        self._text.detach()


class _Json:
    before, between, after, nothing = b"[\n", b",\n", b"\n]\n", b"[]\n"

    def __init__(self, file: IO[bytes], topk: int, vectors: tuple[str, ...]):
        self._file, self._vectors = file, vectors
        self._next = self.before

    def write(self, result: Result) -> None:
        row = json.dumps(row_of(result, self._vectors), ensure_ascii=False, allow_nan=False)
        self._file.write(self._next + row.encode())
        self._next = self.between

    def close(self) -> None:
        self._file.write(self.after if self._next == self.between else self.nothing)


class _JsonLines(_Json):
    before, between, after, nothing = b"", b"\n", b"\n", b""


class _Parquet:
    def __init__(self, file: IO[bytes], topk: int, vectors: tuple[str, ...]):
        import pyarrow
        from pyarrow import parquet

        self._pyarrow, self._vectors = pyarrow, vectors
        text, numbers = pyarrow.string(), pyarrow.list_(pyarrow.float32())
        self._schema = pyarrow.schema(
            {
                "filename": text,
                "index": pyarrow.list_(pyarrow.int32()),
                "label": pyarrow.list_(text),
                "prob": numbers,
                "note": text,
                "error": text,
                "mode": text,
                **dict.fromkeys(vectors, numbers),
            }
        )
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, result: Result) -> None:
        self._rows.append(row_of(result, self._vectors))
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


_CLASSES = {"csv": _Csv, "json": _Json, "jsonl": _JsonLines, "parquet": _Parquet}


def row_of(result: Result, vectors: Sequence[str] = ()) -> dict[str, Any]:
    """A result by the names of columns."""
    return {
        "filename": result.filename,
        "index": list(result.indices),
        "label": list(result.labels),
        "prob": list(result.probs),
        "note": result.note,
        "error": result.error,
        "mode": result.mode,
        **{name: getattr(result, name) for name in vectors},
    }
