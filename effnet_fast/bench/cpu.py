"""Whole networks on a CPU beside the runtimes that a user would take instead: effnet-fast bench.

Every contender has the same weights and images and a process of its own. Outputs are checked first,
runs are interleaved, and the rate of a library's matrix product and the memory's are measured among
them.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from ..capture import native_size
from ..errors import ArgumentError, BackendError
from ..files import whole_file
from ..gpu.counts import table
from ..plan import Plan, Step
from ..verify import relative_error
from . import cpu_operators
from .coverage import build, models
from .harness import Budget, Results, compare, environment, outcome_rows, outcome_table
from .peers import CONTENDERS, COPIED, LIMITS, SGEMM, Case, Peer
from .shapes import FOLDER, read

# Of logits, relative L2, from the stock model in float64: ten times what reordered sums differ by
# in a shallow network (1e-6 to 3e-6), and ten times what the stock model in float32 does where
# random weights make it chaotic (B4: 1e-4). A wrong layer is off by 1e-2 and more.
BOUND, OF_STOCK = 3e-5, 10.0
PROFILES = 30
# glibc gives large buffers back at each free unless told otherwise, and the page faults can be more
# than half of PyTorch's time on a small network: the setting belongs to every figure.
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument(
        "--model", default="timm:efficientnet_b0", help="source:name (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, help="image edge (default: the model's own)")
    parser.add_argument("--batch", type=int, default=1, help="default: 1")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--peers",
        default=",".join(CONTENDERS),
        metavar="NAME,...",
        help=f"what to compare (default: all of {', '.join(CONTENDERS)})",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for (default: 20)")
    parser.add_argument(
        "--operators",
        action="store_true",
        help="the model's operators one by one, in one process beside PyTorch's",
    )
    parser.add_argument(
        "--shapes",
        type=Path,
        metavar="FILE",
        help="of operators, a line each (default: what the package has of the model)",
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of operators' lines")
    parser.add_argument("--output", type=Path, help="a JSON file, which rows are added to")
    parser.add_argument("--csv", type=Path, help="a file for the row as CSV, a contender a line")


def contenders_of(text: str) -> list[str]:
    """The names in a list with commas.

    Raises
    ------
    ArgumentError
        There is no such contender.
    """
    names = text.split(",")
    for name in names:
        if name not in CONTENDERS:
            raise ArgumentError(f"--peers has {name!r}; accepted: {', '.join(CONTENDERS)}")
    return names


def run(options: argparse.Namespace, root: Path | None = None) -> int:
    """Measure one cell, print it, and keep it."""
    names = contenders_of(options.peers)
    key = tuple(options.model.split(":", 1))
    if key not in models():
        sources = ", ".join(sorted({source for source, _ in models()}))
        raise ArgumentError(
            f"--model is {options.model!r}; accepted: source:name with a source of {sources}"
        )
    for option in ("size", "batch", "threads"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise ArgumentError(f"--{option} is {value}; accepted: 1 or more")
    if not options.seconds > 0:
        raise ArgumentError(f"--seconds is {options.seconds}; accepted: more than 0")
    if options.csv is not None and not options.csv.parent.is_dir():
        raise ArgumentError(
            f"--csv is {options.csv}: {options.csv.parent} is no folder; accepted: one that exists"
        )
    allocator = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    results = Results(options.output, {"environment": environment(root), "allocator": allocator})
    if options.operators:
        if options.size is not None or set(names) != set(CONTENDERS):
            raise ArgumentError(
                "--operators has the sizes of its lines, beside PyTorch; accepted: no --size and "
                "no --peers"
            )
        return _run_operators(options, key, results)
    size = (options.size, options.size) if options.size else native_size(build(*key))
    row = measure(*key, size, options.batch, options.threads, names, options.seconds)
    results.add(f"{options.model} {size[0]} b{options.batch} t{options.threads}", row)
    print("\n".join(describe(row)))
    if options.csv is not None:
        write_csv(options.csv, row)
    return 0


def _run_operators(options: argparse.Namespace, key: tuple[str, ...], results: Results) -> int:
    shapes = [
        shape
        for shape in read(options.shapes or FOLDER / f"{key[-1]}.txt")
        if fnmatchcase(str(shape), options.only)
    ]
    if not shapes:
        raise ArgumentError(f"--only is {options.only!r}, and no operator's line is like that")
    torch.set_num_threads(options.threads)
    rates, rows = [cpu_operators.sgemm_gflops()], []
    for shape in shapes:
        seconds = options.seconds / len(shapes)
        row = cpu_operators.measure(shape, options.batch, options.threads, seconds)
        rows.append(row)
        results.add(f"{shape} b{options.batch} t{options.threads}", row)
    rates.append(cpu_operators.sgemm_gflops())
    print(f"sgemm {rates[0]:.1f} GFLOP/s before, {rates[1]:.1f} after")
    print("\n".join(cpu_operators.describe(rows, statistics.mean(rates))))
    if options.csv is not None:
        write_operators_csv(options.csv, rows)
    return 0


def measure(
    source: str,
    name: str,
    size: tuple[int, int],
    batch: int,
    threads: int,
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 20.0,
) -> dict[str, Any]:
    """One model at one size, batch and number of threads.

    Returns
    -------
    dict
        ``outcomes`` by contender, ``limits`` in GFLOP/s and GB/s, ``macs`` of an image, ``steps``
        of ours with their seconds, multiply-adds and bytes.
    """
    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder:
        case = Case(source, name, tuple(size), batch, threads, Path(folder))
        exact, bound = expected(case)

        def make(contender: str) -> Peer:
            peers[contender] = Peer(contender, case)
            return peers[contender]

        def error(output: Any) -> float:
            return 0.0 if output is None else relative_error(torch.from_numpy(output), exact)

        try:
            outcomes = compare(
                {c: (lambda c=c: make(c)) for c in (*contenders, *LIMITS)},
                error, bound, lambda peer: peer.sample, seconds, Budget(math.inf),
            )  # fmt: skip
            steps = peers["effnet_fast"].profile() if "effnet_fast" in peers else []
        finally:
            for peer in peers.values():
                peer.close()
    measured = {name: outcomes.pop(name) for name in LIMITS}
    for limit, outcome in measured.items():
        if outcome.times is None:
            raise BackendError(f"{limit}, a limit of this machine, can't be had: {outcome.skipped}")
    limits = {limit: outcome.times.median for limit, outcome in measured.items()}
    return {
        "model": f"{source}:{name}",
        "size": list(size),
        "batch": batch,
        "threads": threads,
        "outcomes": outcome_rows(outcomes),
        "limits": {
            "sgemm_gflops": 2 * SGEMM**3 / limits["sgemm"] / 1e9,
            "copy_gb": 2 * COPIED / limits["copy"] / 1e9,
        },
        "macs": sum(step["macs"] for step in steps),
        "steps": steps,
    }


def expected(case: Case) -> tuple[torch.Tensor, float]:
    """Logits in float64, and the error that a contender may have."""
    model, images = case.build(), case.images()
    with torch.no_grad():
        stock = model(images).reshape(case.batch, -1)
        exact = model.double()(images.double()).reshape(case.batch, -1)
    return exact, max(BOUND, OF_STOCK * relative_error(stock, exact))


def profile(model: Any, x: torch.Tensor) -> list[dict[str, Any]]:
    """The native steps of an optimised model: medians of their seconds for a batch, and for one
    image their multiply-adds and the bytes of what they read, make and multiply with.
    """
    rows = []
    for part in model.parts():
        runs = [part.profile(x) for _ in range(PROFILES)]
        plan = part.plan(tuple(x.shape[-2:]))
        for i, (step, _) in enumerate(runs[0]):
            seconds = statistics.median(run[i][1] for run in runs)
            rows.append({"operator": step.operator, "makes": step.nodes[-1].name} | {
                "seconds": seconds, **costs(plan, step)
            })  # fmt: skip
    return rows


def costs(plan: Plan, step: Step) -> dict[str, int]:
    """Multiply-adds and bytes of a step, for one image in float32."""
    macs = weights = 0
    for node in step.nodes:
        weight = getattr(node, "weight", None)
        if weight is None:  # both layers of squeeze-and-excite see one pixel
            weights += 2 * node.w1.numel() if hasattr(node, "w1") else 0
            macs += 2 * node.w1.numel() if hasattr(node, "w1") else 0
            continue
        weights += weight.numel()
        # Of what is within a step the map has the pixels of what it is made of.
        seen = node.x if node.name not in plan.sizes or getattr(node, "pool", False) else node.name
        macs += weight.numel() * math.prod(plan.sizes[seen][1:])
    names = {*step.reads(), *step.makes()}
    values = sum(math.prod(plan.sizes[plan.network.aliases.get(n, n)]) for n in names)
    return {"macs": macs, "bytes": 4 * (values + weights)}


def describe(row: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    (h, w), batch, limits = row["size"], row["batch"], row["limits"]
    lines = [
        f"{row['model']} at {h}x{w}, batch {batch}, {row['threads']} threads; "
        f"sgemm {limits['sgemm_gflops']:.1f} GFLOP/s, copy {limits['copy_gb']:.1f} GB/s",
        *outcome_table(row["outcomes"], batch),
    ]
    medians = {n: o["times"]["median"] for n, o in row["outcomes"].items() if o["times"]}
    if row["macs"]:
        rates = {n: 2 * row["macs"] * batch / t / 1e9 for n, t in medians.items()}
        shares = (
            f"{n} {r:.1f} GFLOP/s, {100 * r / limits['sgemm_gflops']:.0f} %"
            for n, r in rates.items()
        )
        lines += ["", "  of the sgemm rate: " + "; ".join(shares)]
    if row["steps"]:
        lines += ["", *operator_table(row["steps"], batch)]
    return lines


def operator_table(steps: Iterable[Mapping[str, Any]], batch: int) -> list[str]:
    """Sums by operator."""
    found: dict[str, list[float]] = {}
    for step in steps:
        sums = found.setdefault(step["operator"], [0.0, 0.0, 0.0])
        for i, key in enumerate(("seconds", "macs", "bytes")):
            sums[i] += step[key] * (1 if key == "seconds" else batch)
    total = sum(seconds for seconds, _, _ in found.values())
    lines = [("", "us", "share", "GFLOP/s", "GB/s")]
    for name, (seconds, macs, moved) in sorted(found.items(), key=lambda item: -item[1][0]):
        rates = (f"{x / seconds / 1e9:.1f}" for x in (2 * macs, moved))
        lines.append((name, f"{1e6 * seconds:,.0f}", f"{100 * seconds / total:.1f} %", *rates))
    return table(lines, indent=2)


def write_operators_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line for each operator and contender."""
    lines = [
        {key: row[key] for key in ("shape", "times", "batch", "threads", "macs", "bytes")}
        | {"contender": name}
        | (outcome["times"] or dict.fromkeys(("median", "p10", "p90", "samples")))
        | {key: outcome[key] for key in ("error", "setup", "skipped")}
        for row in rows
        for name, outcome in row["outcomes"].items()
    ]
    _write_lines(path, lines)


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def write_csv(path: Path, row: Mapping[str, Any]) -> None:
    """A line for each contender."""
    head = {key: row[key] for key in ("model", "batch", "threads")} | {
        "height": row["size"][0], "width": row["size"][1], **row["limits"]
    }  # fmt: skip
    lines = []
    for name, outcome in row["outcomes"].items():
        times = outcome["times"] or dict.fromkeys(("median", "p10", "p90", "samples"))
        rest = {key: outcome[key] for key in ("error", "setup", "skipped")}
        lines.append({**head, "contender": name, **times, **rest})
    _write_lines(path, lines)
