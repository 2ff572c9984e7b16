"""Measurements side by side: contenders that agree, timed in turns, in a file that can be gone on
with.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError
from ..files import whole_file
from ..gpu.counts import table
from ..info import collect

Run = Callable[[], Any]
Sample = Callable[[], float]  # runs a contender once or a few times: the seconds of one run
Clock = Callable[[Run], Sample]

FORMAT = 1  # of a file of results; others are not gone on with
LEAST_SAMPLES = 5
OUT_OF_TIME = "out of time"  # the one reason for which a row is made again


# ---- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Of samples, in seconds."""

    median: float
    p10: float
    p90: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        ordered = sorted(seconds)

        def at(share: float) -> float:  # between the two samples that it falls between
            place = share * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (place - low) * (ordered[high] - ordered[low])

        return cls(statistics.median(ordered), at(0.1), at(0.9), len(ordered))


def wall_clock(run: Run) -> Sample:
    """Times one run as the host sees it."""

    def sample() -> float:
        before = time.perf_counter()
        run()
        return time.perf_counter() - before

    return sample


def cuda_events(run: Run, seconds: float = 10e-3) -> Sample:
    """Times runs back to back on torch's current stream: as many as take ``seconds``.

    An event is good to half a microsecond; the runs' launches are within the time where the host
    is slower than the GPU.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def elapsed(repeats: int) -> float:
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    elapsed(2)
    repeats = max(1, min(1000, math.ceil(seconds / max(elapsed(2), 1e-6))))
    return lambda: elapsed(repeats)


def interleaved(samples: Mapping[str, Sample], seconds: float) -> dict[str, Times]:
    """Samples taken in turns (A B C A B C ...) until ``seconds`` are over, five at least of each.

    What else the machine does then hits all alike. One of each is taken first and dropped.
    """
    taken: dict[str, list[float]] = {name: [] for name in samples}
    for sample in samples.values():
        sample()
    end = time.perf_counter() + seconds
    while samples and (
        time.perf_counter() < end or len(next(reversed(taken.values()))) < LEAST_SAMPLES
    ):
        for name, sample in samples.items():
            taken[name].append(sample())
    return {name: Times.of(seconds) for name, seconds in taken.items()}


# ---- contenders ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of one contender: its times, or why there are none.

    Attributes
    ----------
    times : None where it was not timed.
    error : of its output, relative L2.
    setup : seconds that it took to be ready, its first run included.
    skipped : why it does not run here, or is not timed.
    """

    times: Times | None = None
    error: float | None = None
    setup: float | None = None
    skipped: str | None = None


class Budget:
    """Wall-clock time that may be used up."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def compare(
    contenders: Mapping[str, Callable[[], Run]],
    error: Callable[[Any], float],
    bound: float,
    clock: Clock | None,
    seconds: float,
    budget: Budget,
    setups: Mapping[str, float] | None = None,
) -> dict[str, Outcome]:
    """Make each contender, check what it computes, and time those that are right side by side.

    Parameters
    ----------
    contenders : by name, what makes one ready to run. What it raises is the reason why it is
        skipped, and hinders no other.
    error : of an output, from the right one.
    bound : what an error may be.
    clock : None to run and not to time.
    seconds : to take samples for.
    budget : a contender is skipped that would not be ready within what is left.
    setups : seconds that contenders are known to take to be ready.
    """
    outcomes: dict[str, Outcome] = {}
    samples: dict[str, Sample] = {}
    for name, make in contenders.items():
        if (setups or {}).get(name, 0.0) > budget.left:
            outcomes[name] = Outcome(skipped=OUT_OF_TIME)
            continue
        start = time.perf_counter()
        try:
            run = make()
            found = error(run())
            setup = time.perf_counter() - start
            if not found <= bound:
                reason = f"wrong: its error is {found:.1e}, the bound {bound:.1e}"
                outcomes[name] = Outcome(error=found, setup=setup, skipped=reason)
                continue
            if clock is not None:
                samples[name] = clock(run)
        except Exception as failure:  # a peer's failure, whatever it is, is a row of the table
            outcomes[name] = Outcome(skipped=reason_of(failure))
            continue
        outcomes[name] = Outcome(error=found, setup=setup)
    for name, times in interleaved(samples, seconds).items():
        outcomes[name] = Outcome(times, outcomes[name].error, outcomes[name].setup)
    return outcomes


def reason_of(failure: BaseException) -> str:
    """The first line of an error, with its type."""
    line = next(iter(str(failure).strip().splitlines()), "")
    return f"{type(failure).__name__}: {line}"[:300]


# ---- results -------------------------------------------------------------------------------------


def environment(root: Path | None = None) -> dict[str, Any]:
    """Machine, versions and, of a checkout, its commit."""
    found = collect()
    if root is not None and (root / ".git").exists():
        found["commit"] = _git(root, "rev-parse", "HEAD")
        found["changed"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return found


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


class Results:
    """Rows by key in a JSON file, which is written whole with each: what is cut short is gone on
    with.

    Parameters
    ----------
    path : of the file; nowhere by default.
    head : what was measured, where: rows are added to a file of the same only.

    Raises
    ------
    ArgumentError
        The file is of something else, or no file of results; its folder is not there.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any]):
        self.path = path
        self.head = json.loads(json.dumps(head))
        self.rows: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)
        elif path is not None and not path.parent.is_dir():
            raise ArgumentError(f"{path}: {path.parent} is no folder; accepted: one that exists")

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            version, head, rows = content["format"], content["head"], content["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"{path} is no file of results: {reason_of(error)}") from error
        if version != FORMAT:
            raise ArgumentError(f"{path} has format {version}; accepted: {FORMAT}")
        for name in {**head, **self.head}:
            if head.get(name) != self.head.get(name):
                there, here = _difference(head.get(name), self.head.get(name))
                raise ArgumentError(
                    f"{path} is of another {name}: {there}, and here {here}; accepted: a file of "
                    "the same, or a new one"
                )
        self.rows = rows

    def add(self, key: str, row: Any) -> None:
        """Take a row, and write the file."""
        self.rows[key] = json.loads(json.dumps(row))
        if self.path is None:
            return
        content = {"format": FORMAT, "head": self.head, "rows": self.rows}
        try:
            with whole_file(self.path) as file:
                file.write((json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise ArgumentError(f"{self.path}: {error.strerror}") from error


def _difference(there: Any, here: Any) -> tuple[str, str]:
    """Two values that differ, at the first place where they do."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                a, b = _difference(there.get(name), here.get(name))
                return f"{name} {a}", b
    return repr(there), repr(here)


def outcome_rows(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """For a row of results."""
    return {name: asdict(outcome) for name, outcome in outcomes.items()}


def is_complete(outcomes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether nothing of a row was left out for want of time."""
    return all(outcome["skipped"] != OUT_OF_TIME for outcome in outcomes.values())


def outcome_table(
    outcomes: Mapping[str, Mapping[str, Any]], batch: int, ours: str = "effnet_fast"
) -> list[str]:
    """Lines of a table; times over those of the fastest contender whose name begins as ``ours``."""
    medians = {n: o["times"]["median"] for n, o in outcomes.items() if o["times"]}
    fastest = min((t for n, t in medians.items() if n.startswith(ours)), default=None)
    lines = [("", "error", "ready s", "median us", "p10", "p90", "images/s", "of ours", "")]
    for name, outcome in outcomes.items():
        error = "" if outcome["error"] is None else f"{outcome['error']:.1e}"
        setup = "" if outcome["setup"] is None else f"{outcome['setup']:.1f}"
        times, cells = outcome["times"], ("",) * 5
        if times is not None:
            ratio = f"{times['median'] / fastest:.2f}x" if fastest else ""
            us = (f"{1e6 * times[at]:,.1f}" for at in ("median", "p10", "p90"))
            cells = (*us, f"{batch / times['median']:,.0f}", ratio)
        lines.append((name, error, setup, *cells, outcome["skipped"] or ""))
    wanted = [i for i in range(len(lines[0])) if i == 0 or any(line[i] for line in lines[1:])]
    rows = [[line[i] for i in wanted] for line in lines]
    last = len(wanted) - 1 if wanted[-1] == len(lines[0]) - 1 else 0
    return table(rows, indent=2, left=(0, last))
