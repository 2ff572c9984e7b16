"""What a run has done so far, on the disk: it can be killed at any instant, and gone on with.

One SQLite file beside the results holds the arguments and every row, and is all that says what is
done: an image is done when its row is committed, and a key can't be there twice. The results are
made from it when all images are done; a run that ends before leaves results as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import sqlite3
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..errors import ArgumentError, ResultsError
from ..files import scratch_files
from .results import Result
from .sinks import checked, open_sink

_SCHEMA = """
create table run (name text primary key, value text not null);
create table results (
  id integer primary key,
  filename text not null unique,
  "index" text not null,
  label text not null,
  prob text not null,
  note text not null,
  error text not null,
  mode text not null,
  logits blob,
  embedding blob
);
create view predictions as
  select r.id, r.filename, best.key as rank, best.value as "index",
    json_extract(r.label, '$[' || best.key || ']') as label,
    json_extract(r.prob, '$[' || best.key || ']') as prob
  from results as r, json_each(r."index") as best;
"""
_COLUMNS = 'filename, "index", label, prob, note, error, mode, logits, embedding'
# What a kill may cost: rows that are not committed. A commit takes some 10 ms on a disk.
_ROWS, _SECONDS = 1024, 1.0
PART = 65_536  # rows of a file in a folder of parquet files
# Of parts that are no results yet: being written, or of a `PartWriter` and not adopted.
_HIDDEN = re.compile(r"\.{1,2}part-\w+\.parquet(\.[0-9a-f]{16}\.tmp)?")


class Journal:
    """A results file, or folder of parquet parts, in the making.

    Parameters
    ----------
    path : the results file; or a folder, as its last slash says, or its being there when ``format``
        is "parquet". A folder gets a parquet file with each `PART` rows.
    format : as of `open_sink`, and "sqlite".
    arguments : all that the results depend on, as JSON has it. What is done under others is not
        gone on with.
    topk, vectors : as of `open_sink`.
    restart : forget what is done.

    Raises
    ------
    ArgumentError
        What is done was done under other arguments: the message names the difference. The file
        cannot be made, or another run is making it; its folder has parts of a run that ended.
    """

    _OWN_ARGUMENTS: ClassVar[Mapping[str, Any]] = {}  # what else the rows depend on

    def __init__(
        self,
        path: str | Path,
        format: str | None,
        arguments: Mapping[str, Any],
        *,
        topk: int,
        vectors: Sequence[str] = (),
        restart: bool = False,
    ):
        self.path, self.format, self.partial = places(path, format)
        self.folder = self.partial.parent == self.path
        self._options = {"topk": topk, "vectors": tuple(vectors)}
        arguments = {**arguments, **self._OWN_ARGUMENTS}
        self._arguments = {name: json.dumps(value) for name, value in arguments.items()}
        self._rows: list[tuple[Any, ...]] = []
        self._unsettled = False
        self._database: sqlite3.Connection | None = None
        try:
            if self.folder:
                self.path.mkdir(exist_ok=True)
            self._database = sqlite3.connect(
                self.partial, timeout=0, isolation_level=None, check_same_thread=False
            )
            self._database.execute("pragma locking_mode = exclusive")
            self._database.execute("pragma synchronous = full")
            self._database.execute("begin exclusive")  # what another run is making is refused here
            if restart:
                self._forget()
            self._open()
        except ArgumentError:
            self.close()
            raise
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise ArgumentError(f"results file {self.path}: {_why(error, self.partial)}") from error
        self.before = self.done
        self._committed = time.monotonic()

    def _open(self) -> None:
        if self._database.execute("select 1 from sqlite_master").fetchone() is None:
            parts = self._parts()
            if parts:
                raise ArgumentError(
                    f"results folder {self.path} has parts of an earlier run, as {parts[0].name}; "
                    "accepted: an empty folder, or --restart, which removes them"
                )
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.executemany("insert into run values (?, ?)", self._arguments.items())
            self.done = 0
        else:
            self._compare(dict(self._database.execute("select name, value from run")))
            (self.done,) = self._database.execute("select count(*) from results").fetchone()
        self._tidy()
        self._database.execute("commit")

    def _compare(self, there: Mapping[str, str]) -> None:
        different = [
            f"{name} was {_brief(there.get(name))}, is {_brief(self._arguments.get(name))}"
            for name in {**there, **self._arguments}
            if there.get(name) != self._arguments.get(name)
        ]
        if different:
            raise ArgumentError(
                f"{self.partial} holds results of another command: {'; '.join(different)}; "
                "accepted: the same command, or --restart to forget them"
            )

    def holds(self, key: str) -> bool:
        """Whether an image was done when the journal was opened."""
        if not self.before:
            return False
        found = self._database.execute("select id from results where filename = ?", (key,))
        row = found.fetchone()
        return row is not None and row[0] <= self.before

    def add(self, result: Result) -> None:
        """Take a row; it is on the disk after the next commit, in a second or some.

        Raises
        ------
        ResultsError
            It cannot be written. What was committed before is there.
        """
        self._take(result)
        if len(self._rows) >= _ROWS or time.monotonic() - self._committed > _SECONDS:
            self.commit()

    def _take(self, result: Result) -> None:
        lists = (json.dumps(x) for x in (result.indices, result.labels, result.probs))
        vectors = (_blob(x) for x in (result.logits, result.embedding))
        self._rows.append(
            (result.filename, *lists, result.note, result.error, result.mode, *vectors)
        )

    @property
    def pending(self) -> int:
        """Rows that were taken and are not committed."""
        return len(self._rows)

    def commit(self) -> None:
        """Put the rows that were taken on the disk.

        Raises
        ------
        ResultsError
            As of `add`.
        """
        try:
            self._settle()
            self._unsettled, rows = True, self._rows
            self._database.execute("begin exclusive")
            places = ", ".join("?" * len(_COLUMNS.split(",")))
            self._database.executemany(f"insert into results ({_COLUMNS}) values ({places})", rows)
            self._database.execute("commit")
            self.done, self._rows = self.done + len(rows), []
            self._unsettled = False
            if self.folder:
                self._write_parts()
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error
        self._committed = time.monotonic()

    def _settle(self) -> None:
        """After a commit that failed, or that Ctrl-C interrupted: find out what it did."""
        if not self._unsettled:
            return
        if self._database.in_transaction:
            self._database.execute("rollback")
        (count,) = self._database.execute("select count(*) from results").fetchone()
        self._rows = self._rows[count - self.done :]
        self.done, self._unsettled = count, False

    def results(self, start: int = 0, stop: int = -1) -> Iterator[Result]:
        """The committed rows from ``start`` to ``stop``, in order."""
        rows = self._database.execute(
            f"select {_COLUMNS} from results where id > ? order by id limit ?",
            (start, stop - start if stop >= 0 else -1),
        )
        for filename, *lists, note, error, mode, logits, embedding in rows:
            best = (tuple(json.loads(text)) for text in lists)
            yield Result(filename, *best, note, error, mode, _numbers(logits), _numbers(embedding))

    def publish(self) -> None:
        """Make the results of what is done, and end the journal.

        Raises
        ------
        ResultsError
            They cannot be written; the same command tries it again.
        """
        self.commit()
        try:
            if self.format == "sqlite":
                self._close_for_good()
                os.replace(self.partial, self.path)
                return
            if self.folder:
                self._write_parts(last=True)
            else:
                self._write(self.path, 0, self.done)
        except (sqlite3.Error, OSError, ArgumentError) as error:
            raise self._failed(error) from error
        self.discard()

    def _write(self, path: Path, start: int, stop: int) -> None:
        with open_sink(path, self.format, **self._options) as sink:
            for result in self.results(start, stop):
                sink.write(result)

    def _write_parts(self, last: bool = False) -> None:
        number = len(self._parts())
        while number * PART < self.done and (last or (number + 1) * PART <= self.done):
            stop = min((number + 1) * PART, self.done)
            self._write(self.path / f"part-{number:05}.parquet", number * PART, stop)
            number += 1

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.parquet")) if self.folder else []

    def _tidy(self) -> None:
        """Remove what a killed run was writing, and its parts of rows that are not committed."""
        scratch = self._hidden() if self.folder else scratch_files(self.path)
        for path in [*scratch, *self._uncommitted()]:
            path.unlink(missing_ok=True)

    def _hidden(self) -> list[Path]:
        return [path for path in self.path.iterdir() if _HIDDEN.fullmatch(path.name)]

    def _uncommitted(self) -> list[Path]:
        """Parts of a run that was killed when it had written its last, which may be a short one."""
        return self._parts()[self.done // PART :]

    def _failed(self, error: Exception) -> ResultsError:
        return ResultsError(f"results file {self.path}: {_why(error, self.partial)}; {self.kept()}")

    def kept(self) -> str:
        """For a person whose run ends early."""
        return (
            f"{self.done} images are done and saved in {self.partial}; the same command goes on "
            "with the rest"
        )

    def leave(self) -> None:
        """End early: rows that were taken are committed; a journal without any is removed.

        Raises
        ------
        ResultsError
            As of `add`.
        """
        if self._rows:
            self.commit()
        if self.done:
            self.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Remove the journal; results stay."""
        self._close_for_good()
        self.partial.unlink(missing_ok=True)

    def _close_for_good(self) -> None:
        """Close the file, and remove SQLite's own journal of it that a killed run left.

        SQLite removes the one it writes itself; a run that has nothing to write finds the killed
        run's rolled back and leaves it there.
        """
        self.close()
        self.partial.with_name(f"{self.partial.name}-journal").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _forget(self) -> None:
        for kind, name in self._database.execute(
            "select type, name from sqlite_master where type in ('table', 'view')"
        ).fetchall():
            self._database.execute(f'drop {kind} "{name}"')
        for path in self._parts():
            path.unlink()


class BlockJournal(Journal):
    """A folder of parquet parts that others write, on any machine, one for each block of images.

    Rows are here without vectors, which would be most of them: they say what is done. A part is
    written by `writer` under a hidden name, and gets its own, the number of its first row, when its
    rows are committed; so it is there if and only if they are, whatever is killed, or goes on
    writing for a run that ended. Arguments as of `Journal`; ``path`` is a folder.
    """

    # The parts of a `Journal` have other rows: neither goes on with what the other has done.
    _OWN_ARGUMENTS: ClassVar[Mapping[str, Any]] = {"parts": "by block"}

    @property
    def writer(self) -> PartWriter:
        """What writes parts, for `adopt`."""
        return PartWriter(self.path, **self._options)

    def add(self, result: Result) -> None:
        """Take a row, to be committed with its part."""
        self._take(replace(result, logits=None, embedding=None))

    def adopt(self, name: str) -> None:
        """Commit the rows that were taken, whose part `writer` has written.

        Raises
        ------
        ResultsError
            The part is not there, as in a folder that the machines do not share; or as of `commit`.
        """
        try:
            os.replace(self.path / name, self.path / f"part-{self.done:010}.parquet")
        except FileNotFoundError as error:
            raise ResultsError(
                f"results folder {self.path}: a part that was written is not there; accepted: a "
                f"folder that all nodes share; {self.kept()}"
            ) from error
        except OSError as error:
            raise self._failed(error) from error
        self.commit()

    def leave(self) -> None:
        """End early: rows whose part was not adopted are forgotten."""
        self._settle()
        self._rows = []
        self._tidy()
        super().leave()

    def publish(self) -> None:
        """End the journal: the parts are the results."""
        assert not self._rows, "rows without their part"
        self._tidy()
        self.discard()

    def _write_parts(self, last: bool = False) -> None:
        pass

    def _uncommitted(self) -> list[Path]:
        return [part for part in self._parts() if int(part.stem[5:]) >= self.done]


@dataclass(frozen=True)
class PartWriter:
    """Writes the parts of a `BlockJournal`, in any process.

    Attributes
    ----------
    folder : of the results.
    topk, vectors : as of `open_sink`.
    """

    folder: Path
    topk: int
    vectors: tuple[str, ...]

    def __call__(self, results: Sequence[Result]) -> str:
        """The hidden name of the part with these rows, new each time.

        Raises
        ------
        ResultsError
            It cannot be written on this machine.
        """
        name = f".part-{secrets.token_hex(8)}.parquet"
        path = self.folder / name
        try:
            with open_sink(path, "parquet", topk=self.topk, vectors=self.vectors) as sink:
                for result in results:
                    sink.write(result)
        except (OSError, ArgumentError) as error:
            text = _why(error.__cause__ or error, path)
            raise ResultsError(
                f"results folder {self.folder}: {text}, on the node {socket.gethostname()}"
            ) from error
        return name


def places(path: str | Path, format: str | None) -> tuple[Path, str, Path]:
    """Of a results file: where it really is, its format, and its journal.

    Raises
    ------
    ArgumentError
        As of `open_sink`, before anything is written.
    """
    if str(path).endswith(os.sep) or (format == "parquet" and os.path.isdir(path)):
        if format not in (None, "parquet"):
            raise ArgumentError(
                f"results file {path}: a folder, for format {format!r}; accepted: 'parquet'"
            )
        path, format = checked(Path(os.path.realpath(path)) / "part.parquet", "parquet")
        return path.parent, format, path.parent / ".partial.sqlite"
    path, format = checked(path, format)
    return path, format, path.with_name(f".{path.name}.partial")


def is_folder(path: str | Path, format: str | None) -> bool:
    """Whether results go to a folder of parquet parts.

    Raises
    ------
    ArgumentError
        As of `places`.
    """
    place, _, partial = places(path, format)
    return partial.parent == place


def fingerprint(model: torch.nn.Module) -> str:
    """Of a model's weights, as 16 hex digits: other weights have another."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _brief(text: str | None) -> str:
    if text is None:
        return "not there"
    return text if len(text) <= 200 else f"{text[:197]}..."


def _why(error: Exception, partial: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error)
    if "locked" in text:
        return f"another run is writing it (it holds {partial})"
    if "unable to open" in text and not partial.parent.is_dir():
        return "no such file or directory"
    return text


def _blob(vector: Sequence[float] | None) -> bytes | None:
    return None if vector is None else array("f", vector).tobytes()


def _numbers(blob: bytes | None) -> tuple[float, ...] | None:
    return None if blob is None else tuple(array("f", blob))
