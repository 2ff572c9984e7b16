"""What a person sees of a run: a bar while it goes on, and a summary at its end."""

from __future__ import annotations

import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .pipeline import AHEAD
from .results import Result
from .sources import EXTENSIONS, ZIPS, find_images, is_container, matches
from .workers import Times

_SECONDS = 0.2  # between two looks of the bar


class Progress:
    """A bar on the standard error, if that is a terminal and tqdm is there; else nothing.

    Parameters
    ----------
    paths : what is classified, to count it meanwhile; None where that can't be asked twice.
    done : images that an earlier run did.
    """

    def __init__(self, paths: Iterable[Any] | None, done: int = 0):
        self._bar: Any = None
        self._errors = 0
        self._shown = 0.0
        if not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(initial=done, unit=" images", smoothing=0.05, file=sys.stderr)
        if paths is not None:
            threading.Thread(target=self._count, args=(list(paths),), daemon=True).start()

    def _count(self, paths: list[Any]) -> None:
        total = 0
        for path in paths:
            count = count_images(Path(path))
            if count is None:
                return
            total += count
        self._bar.total = total

    def add(self, result: Result, times: Times) -> None:
        """One more is done."""
        if self._bar is None:
            return
        self._errors += bool(result.error)
        self._bar.update()
        now = time.monotonic()
        if now - self._shown > _SECONDS:
            self._shown = now
            shares = times.shares()
            decode, model = shares["source"] + shares["decode"], shares["model"]
            text = f"decode {decode:.0%}, model {model:.0%}, idle {shares['wait']:.0%}"
            self._bar.set_postfix_str(f"{text}, {self._errors} errors", refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def count_images(path: Path) -> int | None:
    """How many images a path leads to; None where only reading it all would tell."""
    try:
        return sum(_count(Path(file)) for file in matches(path) or [path])
    except Exception:  # the run itself says what is wrong with it
        return None


def _count(path: Path) -> int:
    name = path.name.lower()
    if not is_container(path):
        return sum(1 for _ in find_images([path]))
    if name.endswith(".parquet"):
        from pyarrow import parquet

        return parquet.ParquetFile(path).metadata.num_rows
    if name.endswith(ZIPS):
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
    elif name.endswith(".tar"):
        names = _members(path)
    else:
        raise ValueError(f"{path} would have to be decompressed")
    return sum(Path(member).suffix.lower() in EXTENSIONS for member in names)


def _members(path: Path) -> Iterator[str]:
    with tarfile.open(path, "r:", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()
            if not member.isdir():
                yield member.name


class Summary:
    """Counts over a run's results."""

    def __init__(self) -> None:
        self.done = self.failed = self.before = 0
        # When the 512th came, the 1024th, ...: before them are images that were decoded ahead.
        self._marks: list[tuple[int, float]] = []
        self._classes: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def add(self, result: Result, is_new: bool = True) -> None:
        """One more; one that an earlier run did says nothing of this one's rate."""
        self.done += 1
        self.before += not is_new
        new = self.done - self.before
        if is_new and new % AHEAD == 0 and (new // AHEAD).bit_count() == 1:
            self._marks.append((new, time.perf_counter()))
        self._last = time.perf_counter()
        if result.error:
            self.failed += 1
            # What follows a colon is of one file alone: counts are of reasons.
            self._errors[result.error.partition(":")[0].partition(", after")[0]] += 1
        else:
            self._classes[result.labels[0]] += 1

    def lines(self, times: Times, images: int, seconds: float) -> list[str]:
        """For people; ``images`` were done in ``seconds`` by threads that spent ``times``."""
        rate = images / seconds if seconds else 0.0
        shares = times.shares()
        what = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        lines = [f"{rate:.1f} images/s over {seconds:.1f} s{self._steady()}"]
        lines.append(f"of the threads' time: {what}")
        for title, counts in (("classes", self._classes), ("errors", self._errors)):
            if counts:
                lines.append(f"{title}:")
                ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
                lines += [f"{count:9}  {name}" for name, count in ordered]
        return lines

    def _steady(self) -> str:
        """The rate of the second half or so, which the start of the model is no part of."""
        new = self.done - self.before
        marks = [mark for mark in self._marks if 2 * mark[0] <= new]
        if not marks:
            return ""
        count, then = marks[-1]
        rate = (new - count) / (self._last - then)
        return f", {rate:.1f} images/s after the first {count}"
