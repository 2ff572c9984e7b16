"""Where results go: csv, json and parquet files that are whole or not there at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from ..errors import ArgumentError
from ..files import whole_file
from .pipeline import Result
from .sources import reason

FORMATS = ("csv", "json", "parquet")
_ROW_GROUP = 4096  # rows that are held before they are written


class Sink(Protocol):
    """Takes results one by one; ``close`` completes the file."""

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


@contextmanager
def open_sink(path: str | Path, format: str | None = None, *, topk: int) -> Iterator[Sink]:
    """A file of results, complete under its name when the block ends and untouched when it raises.

    Rows go to a temporary file beside it, which then takes the name.

    Parameters
    ----------
    path : the file; its folder exists.
    format : "csv": a row per image, columns ``filename, index_0, label_0, prob_0, ..., note,
        error``; "json": a list of objects with lists ``index``, ``label``, ``prob``; "parquet": a
        table of the same. By default what the file's name ends in.
    topk : how many classes a result has at most.

    Raises
    ------
    ArgumentError
        The format is none of these or needs a package that is missing; no file can be made there.
    """
    path = Path(os.path.realpath(path))  # through a link, not in its place
    format = format_of(path) if format is None else format
    if format not in FORMATS:
        raise ArgumentError(f"results format is {format!r}; accepted: {', '.join(FORMATS)}")
    if path.exists() and not path.is_file():
        raise ArgumentError(f"results file {path}: not a regular file")
    if format == "parquet":
        _need_pyarrow()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(path))
        except OSError as error:
            raise ArgumentError(f"results file {path}: {reason(error)}") from error
        sink = _CLASSES[format](file, topk)
        try:
            yield sink
        finally:
            sink.close()  # pyarrow complains of a writer that is left open


def format_of(path: Path) -> str:
    """The format that a results file's name ends in."""
    format = path.suffix[1:].lower()
    if format not in FORMATS:
        raise ArgumentError(
            f"results file {path}: its format is not clear from its name; accepted: "
            f"{', '.join('.' + name for name in FORMATS)}, or --results-format"
        )
    return format


class _Csv:
    def __init__(self, file: IO[bytes], topk: int):
        self._topk = topk
        self._text = io.TextIOWrapper(file, "utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        best = [f"{name}_{rank}" for rank in range(topk) for name in ("index", "label", "prob")]
        self._rows.writerow(["filename", *best, "note", "error"])

    def write(self, result: Result) -> None:
        best = [
            value
            for triple in zip(result.indices, result.labels, result.probs, strict=True)
            for value in triple
        ]
        best += [""] * (3 * self._topk - len(best))
        self._rows.writerow([result.filename, *best, result.note, result.error])

    def close(self) -> None:
        self._text.detach()


class _Json:
    def __init__(self, file: IO[bytes], topk: int):
        self._file = file
        self._between = b"[\n"

    def write(self, result: Result) -> None:
        row = json.dumps(_row(result), ensure_ascii=False, allow_nan=False)
        self._file.write(self._between + row.encode())
        self._between = b",\n"

    def close(self) -> None:
        self._file.write(b"[]\n" if self._between == b"[\n" else b"\n]\n")


class _Parquet:
    def __init__(self, file: IO[bytes], topk: int):
        import pyarrow
        from pyarrow import parquet

        self._pyarrow = pyarrow
        self._schema = pyarrow.schema(
            {
                "filename": pyarrow.string(),
                "index": pyarrow.list_(pyarrow.int32()),
                "label": pyarrow.list_(pyarrow.string()),
                "prob": pyarrow.list_(pyarrow.float32()),
                "note": pyarrow.string(),
                "error": pyarrow.string(),
            }
        )
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, object]] = []

    def write(self, result: Result) -> None:
        self._rows.append(_row(result))
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


_CLASSES = {"csv": _Csv, "json": _Json, "parquet": _Parquet}


def _row(result: Result) -> dict[str, object]:
    return {
        "filename": result.filename,
        "index": list(result.indices),
        "label": list(result.labels),
        "prob": list(result.probs),
        "note": result.note,
        "error": result.error,
    }


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ArgumentError(
            "results format parquet needs pyarrow: pip install 'effnet-fast[classify]'"
        ) from error
