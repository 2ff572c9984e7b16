"""The GPU benchmark: tests, operators and whole models beside what else one would run.

    python benchmarks/gpu.py [--output FILE] [--minutes 25]

On a machine with a GPU this is the one command. A file of results is gone on with: what was
measured stays, what there was no time for is done. With ``--backend ptx --tiny`` all of it but the
clock runs on the PTX machine.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError, EffnetFastError
from ..optimize import optimize
from .gpu_layers import layer_row, layers
from .gpu_models import CONTENDERS, Place, model_row, stock_model
from .harness import (
    OUT_OF_TIME,
    Budget,
    Results,
    environment,
    is_complete,
    outcome_table,
    reason_of,
)

# In the order in which they are measured, should the time be short.
MODELS = {
    "efficientnet_b0": 224,
    "tf_efficientnetv2_s": 384,
    "tf_efficientnet_lite0": 224,
    "tf_efficientnet_b4": 380,
    "tf_efficientnet_b7": 600,
}
BATCHES = (64, 1, 256, 8)
OPERATORS_OF = ("efficientnet_b0", "tf_efficientnetv2_s")
TINY = {"tf_efficientnet_lite0": 64}
TINY_BATCHES = (2, 1)
SECTIONS = ("tests", "sanitizer", "models", "operators")
DTYPES = ("float16", "bfloat16", "float32")

_TEST_SECONDS = 400
_SANITIZER_SECONDS = 200
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


# ---- tests ---------------------------------------------------------------------------------------


def tests_row(root: Path, backend: str, seconds: float, *prefix: str) -> dict[str, Any]:
    """The tests that are marked gpu, by pytest, under a tool if one is named.

    With the backend "ptx" the machine is their GPU.
    """
    if not (root / "tests").is_dir():
        return {"skipped": f"no tests in {root}"}
    command = [
        *prefix, sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", "-p",
        "no:cacheprovider", str(root / "tests" / "test_gpu_hardware.py"),
    ]  # fmt: skip
    if backend == "gpu" and not prefix:
        command[-1] = str(root / "tests")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=root,
            env={**os.environ, "EFFNET_FAST_GPU_TESTS": backend},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done within {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    summary = next((line for line in reversed(lines) if re.search(r" in [\d.]+s", line)), "")
    row: dict[str, Any] = {"status": done.returncode, "summary": summary.strip("= ")}
    if done.returncode:
        row["tail"] = (lines + done.stderr.strip().splitlines())[-30:]
    return row


def sanitizer_rows(root: Path, backend: str, budget: Budget) -> Iterator[tuple[str, dict]]:
    """By compute-sanitizer's tools."""
    for tool in _TOOLS:
        found = shutil.which("compute-sanitizer")
        if backend == "ptx":
            row = {"skipped": "the PTX machine checks every access itself"}
        elif found is None:
            row = {"skipped": "no compute-sanitizer on PATH"}
        elif budget.left < _SANITIZER_SECONDS:
            row = {"skipped": OUT_OF_TIME}
        else:
            row = tests_row(
                root, backend, _SANITIZER_SECONDS, found, "--tool", tool, "--error-exitcode", "9",
                "--target-processes", "all",
            )  # fmt: skip
        yield tool, row


# ---- the command ---------------------------------------------------------------------------------


def measure(
    results: Results,
    place: Place,
    root: Path,
    budget: Budget,
    *,
    tiny: bool = False,
    sections: Sequence[str] = SECTIONS,
    models: Sequence[str] = (),
    contenders: Sequence[str] = CONTENDERS,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Every row that the results lack, in order of what one would know first."""

    def missing(key: str) -> bool:
        row = results.rows.get(key)
        if row is None:
            return True
        return row.get("skipped") == OUT_OF_TIME or not is_complete(row.get("outcomes", {}))

    if "tests" in sections and missing("tests"):
        progress("tests")
        results.add("tests", tests_row(root, place.backend, _TEST_SECONDS))
    if "sanitizer" in sections:
        for tool, row in sanitizer_rows(root, place.backend, budget):
            if missing(key := f"sanitizer {tool}"):
                progress(key)
                results.add(key, row)
    sizes = TINY if tiny else MODELS
    batches = TINY_BATCHES if tiny else BATCHES
    for name in models or sizes:
        if "models" in sections:
            setups: dict[str, float] = {}
            for batch in batches:
                if not missing(key := f"model {name} {sizes[name]} batch {batch}"):
                    continue
                progress(key)
                try:
                    row = model_row(name, sizes[name], batch, place, contenders, budget, setups)
                except torch.OutOfMemoryError as error:
                    row = {"model": name, "batch": batch, "skipped": reason_of(error)}
                results.add(key, row)
                for contender, outcome in row.get("outcomes", {}).items():
                    setups[contender] = max(outcome["setup"] or 0.0, setups.get(contender, 0.0))
    for name in models or sizes:
        if "operators" in sections and (tiny or name in OPERATORS_OF):
            _measure_layers(
                results, place, budget, name, sizes[name], batches[0], tiny, contenders, missing,
                progress,
            )  # fmt: skip


def _measure_layers(
    results: Results,
    place: Place,
    budget: Budget,
    name: str,
    size: int,
    batch: int,
    tiny: bool,
    contenders: Sequence[str],
    missing: Callable[[str], bool],
    progress: Callable[[str], None],
) -> None:
    model = copy.deepcopy(stock_model(name)).to(place.device)
    (part,) = optimize(model, dtype=place.dtype, backend=place.backend, verify=False).parts()
    operators: set[str] = set()
    for layer in layers(part.engine((size, size)), batch):
        operator = layer.choice.steps[0].operator
        if tiny and operator in operators:
            continue  # one of each
        operators.add(operator)
        if not missing(key := f"layer {name} batch {batch} {layer.name}"):
            continue
        progress(key)
        try:
            row = layer_row(layer, batch, place, contenders, budget)
        except torch.OutOfMemoryError as error:
            row = {"layer": layer.name, "batch": batch, "skipped": reason_of(error)}
        results.add(key, row)


def describe(rows: Mapping[str, Any]) -> str:
    """The rows as tables."""
    lines = []
    for key, row in rows.items():
        if "outcomes" not in row:
            lines.append(f"{key}: {row.get('skipped') or row['summary']}")
            lines += [f"    {text}" for text in row.get("tail", ())]
    for key, row in rows.items():
        if "outcomes" in row:
            lines += ["", key + _scale(row), *outcome_table(row["outcomes"], row["batch"])]
    return "\n".join(lines).strip("\n")


def _scale(row: Mapping[str, Any]) -> str:
    if "layer" not in row:
        return ""
    return (
        f", {row['repeats']} of them: {row['planned_bytes'] / 1e6:.1f} MB at least, modelled "
        f"{1e6 * row['modelled_seconds']:.0f} us"
    )


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    """The command; its exit status is 1 when a test fails or one of our outputs is wrong."""
    root = root or Path(__file__).parents[2]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=("gpu", "ptx"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="a small network at 64 pixels")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="to begin work for")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="results, in JSON; gone on with"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", metavar="NAME", default=(), help=", ".join(MODELS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    options = parser.parse_args(arguments)
    try:
        status = _run(options, root)
    except EffnetFastError as error:
        print(f"benchmarks/gpu.py: error: {error}", file=sys.stderr)
        return 2
    return status


def _run(options: argparse.Namespace, root: Path) -> int:
    sizes = TINY if options.tiny else MODELS
    for name in options.models:
        if name not in sizes:
            raise ArgumentError(f"--models has {name!r}; accepted: {', '.join(sizes)}")
    place = Place.named(options.backend, getattr(torch, options.dtype))
    # IEEE float32 for all: the engine has no other. And cuDNN as its users have it.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    head = {
        "backend": options.backend, "dtype": options.dtype, "tiny": options.tiny,
        "device": place.describe(), "environment": environment(root),
    }  # fmt: skip
    results = Results(options.output, head)
    measure(
        results, place, root, Budget(60 * options.minutes), tiny=options.tiny,
        sections=options.sections, models=options.models, contenders=options.contenders,
        progress=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(describe(results.rows))
    return int(any(map(_is_bad, results.rows.values())))


def _is_bad(row: Mapping[str, Any]) -> bool:
    if row.get("status"):
        return True
    ours = (o for n, o in row.get("outcomes", {}).items() if n.startswith("effnet_fast"))
    return any(_is_wrong(outcome) for outcome in ours)


def _is_wrong(outcome: Mapping[str, Any]) -> bool:
    return outcome["skipped"] is not None and outcome["skipped"] != OUT_OF_TIME
