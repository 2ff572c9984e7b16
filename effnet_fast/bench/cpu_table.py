"""The cells of the CPU table: models, batches, threads, each against the fastest other runtime."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import EffnetFastError
from ..gpu.counts import table
from .cpu import ALLOCATOR, contenders_of, describe, measure
from .harness import Results, environment
from .peers import CONTENDERS

OURS = "effnet_fast"
# (source, model), edge, the larger batch.
MODELS = [
    (("timm", "efficientnet_b0"), 224, 16),
    (("timm", "efficientnet_b4"), 380, 16),
    (("timm", "tf_efficientnet_b7"), 600, 4),
    (("timm", "tf_efficientnetv2_s"), 384, 16),
    (("timm", "tf_efficientnet_lite0"), 224, 16),
]


def cells() -> dict[str, dict[str, Any]]:
    """What is measured, by the name of its row."""
    found = {}
    for (source, name), edge, most in MODELS:
        for batch, threads in ((1, 1), (1, 2), (most, 1), (most, 2)):
            found[f"{source}:{name} {edge} b{batch} t{threads}"] = {
                "source": source, "name": name, "size": (edge, edge), "batch": batch,
                "threads": threads,
            }  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON; what is there already is not run again")
    parser.add_argument("--seconds", type=float, default=20.0, help="a cell (default: 20)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of rows, as in '*b0*t1'")
    parser.add_argument("--peers", default=",".join(CONTENDERS), metavar="NAME,...")
    options = parser.parse_args(arguments)
    try:
        return _run(options, root)
    except EffnetFastError as error:
        print(f"benchmarks/cpu.py: error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, root: Path | None) -> int:
    contenders = contenders_of(options.peers)
    allocator = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    results = Results(options.output, {"environment": environment(root), "allocator": allocator})
    for name, cell in cells().items():
        if not fnmatchcase(name, options.only) or name in results.rows:
            continue
        row = measure(**cell, contenders=contenders, seconds=options.seconds)
        results.add(name, row)
        print("\n".join(describe(row)), flush=True)
    print("\n".join(["", *summary(results.rows)]))
    return 0


def summary(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each cell: ours, and how much longer the fastest other took."""
    lines = [("", "ms", "of sgemm", "fastest other", "ms", "ratio")]
    for name, row in rows.items():
        medians = {n: o["times"]["median"] for n, o in row["outcomes"].items() if o["times"]}
        ours = medians.pop(OURS, None)
        if ours is None or not medians:
            lines.append((name, "", "", "", "", ""))
            continue
        other = min(medians, key=medians.__getitem__)
        rate = 2 * row["macs"] * row["batch"] / ours / 1e9 / row["limits"]["sgemm_gflops"]
        lines.append((
            name, f"{1e3 * ours:,.1f}", f"{100 * rate:.0f} %", other,
            f"{1e3 * medians[other]:,.1f}", f"{medians[other] / ours:.2f}x",
        ))  # fmt: skip
    return table(lines, left=(0, 3))
