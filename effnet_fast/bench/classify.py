"""`effnet-fast classify` beside timm's inference, on one folder: rates, memory, agreement, and how
near it comes to what decoding and the model alone allow.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..classify.load import MODES
from ..errors import ArgumentError, EffnetFastError
from ..gpu.counts import table
from .cpu import ALLOCATOR
from .harness import Results, environment
from .photos import SIZES, make_photos

OURS = "effnet_fast"
# Of timm's inference.py the best settings of 16 tried on two cores: for a short run, and for the
# steady state (batches that divide 2,000: another last one is compiled anew).
TIMM = (
    "workers=2,batch-size=8,threads=1,channels-last",
    "workers=2,batch-size=40,threads=1,channels-last,torchcompile",
)
CLASSES = 1000
_POLL = 0.2  # seconds between two looks at the memory of a run


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the photos; those missing are made")
    parser.add_argument("--images", type=int, default=2000, help="default: 2000")
    parser.add_argument(
        "--megapixels", type=float, help="of every photo (default: 640x480 to 2000x1500)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument(
        "--timm", action="append", metavar="OPTIONS",
        help="a run of timm's, as in workers=2,batch-size=8,channels-last; '' is timm's as it is "
        f"(default: {' and '.join(map(repr, TIMM))})",
    )  # fmt: skip
    parser.add_argument(
        "--modes", default=",".join(MODES), metavar="NAME,...", help="ours (default: all)"
    )
    parser.add_argument("--no-agreement", action="store_true", help="leave the answers alone")
    parser.add_argument("--output", type=Path, help="a JSON file, which rows are added to")
    options = parser.parse_args(arguments)
    try:
        return _run(options, root)
    except EffnetFastError as error:
        print(f"benchmarks/classify.py: error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, root: Path | None) -> int:
    modes = options.modes.split(",")
    for mode in modes:
        if mode not in MODES:
            raise ArgumentError(f"--modes has {mode!r}; accepted: {', '.join(MODES)}")
    smallest, largest = SIZES
    if options.megapixels is not None:
        edge = round((options.megapixels * 1e6 / 12) ** 0.5)
        smallest = largest = (4 * edge, 3 * edge)
    make_photos(options.folder, options.images, smallest=smallest, largest=largest)
    allocator = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    results = Results(options.output, {"environment": environment(root), "allocator": allocator})
    contenders: dict[str, Callable[[Path], list[str]]] = {
        f"timm {given or 'as it is'}": _timm(options.folder, given)
        for given in (options.timm or TIMM)
    }
    contenders |= {f"{OURS} {mode}": _ours(options.folder, mode) for mode in modes}
    row: dict[str, Any] = {
        "images": options.images,
        "sizes": [smallest, largest],
        "bound": {mode: bound(options.folder, mode) for mode in modes},
        "runs": rounds(contenders, options.images, options.rounds),
    }
    if not options.no_agreement:
        row["agreement"] = agreement(options.folder, modes)
    results.add(f"{options.images} images of {smallest} to {largest}", row)
    print("\n".join(describe(row)))
    return 0


def _ours(folder: Path, mode: str, topk: int = 5) -> Callable[[Path], list[str]]:
    way = [] if mode == "default" else [f"--{mode}"]

    def command(out: Path) -> list[str]:
        return [
            sys.executable, "-m", "effnet_fast.cli", "classify", str(folder), "--model",
            "efficientnet_lite0", "--pretrained", "--topk", str(topk), "--summary",
            "--results-file", str(out), *way,
        ]  # fmt: skip

    return command


def _timm(folder: Path, given: str) -> Callable[[Path], list[str]]:
    options = []
    for item in filter(None, given.split(",")):
        name, _, value = item.partition("=")
        options += [f"--{name}", value] if value else [f"--{name}"]

    def command(out: Path) -> list[str]:
        module = "effnet_fast.bench.timm_inference"
        return [
            sys.executable, "-m", module, str(folder), "--results-file", str(out), *options
        ]  # fmt: skip

    return command


# ---- runs ----------------------------------------------------------------------------------------


def rounds(
    contenders: Mapping[str, Callable[[Path], list[str]]], images: int, count: int
) -> dict[str, dict[str, Any]]:
    """Runs in turns (A B C A B C ...): medians of their rates, the largest of their memory."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            for name, command in contenders.items():
                out = Path(folder) / "results.csv"
                out.unlink(missing_ok=True)
                runs[name].append(timed(command(out), images))
                print(f"{name}: {runs[name][-1]}", file=sys.stderr)
    return {
        name: {
            "whole": statistics.median(run["whole"] for run in several),
            "steady": _median(run["steady"] for run in several),
            "rss": max(run["rss"] for run in several),
            "pss": max(run["pss"] for run in several),
            "all": several,
        }
        for name, several in runs.items()
    }


def timed(command: Sequence[str], images: int) -> dict[str, float]:
    """One run.

    Returns
    -------
    dict
        ``whole`` and ``steady``, images/s with the start and without, the latter None of a run
        that is too short to tell; ``rss`` and ``pss``, bytes
        of all its processes, the largest sums seen.

    Raises
    ------
    ArgumentError
        It fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory = {"rss": 0, "pss": 0}
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(process.pid, memory, over))
    watching.start()
    out = process.communicate()[0]
    seconds = time.perf_counter() - start
    over.set()
    watching.join()
    if process.returncode != 0:
        raise ArgumentError(f"{' '.join(command)}: exit status {process.returncode}")
    return {"whole": images / seconds, "steady": _steady(out), **memory}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _steady(out: str) -> float | None:
    """From what a run prints."""
    if found := re.search(r"([0-9.]+) images/s after the first", out):
        return float(found[1])
    marks = [json.loads(line) for line in out.splitlines() if line.startswith('{"done"')]
    early = [mark for mark in marks[:-1] if 2 * mark["done"] <= marks[-1]["done"]]
    if not early:
        return None
    seconds = marks[-1]["time"] - early[-1]["time"]
    return (marks[-1]["done"] - early[-1]["done"]) / seconds


def _watch(pid: int, memory: dict[str, int], over: threading.Event) -> None:
    turn = 0
    while not over.wait(_POLL):
        pids = _tree(pid)
        memory["rss"] = max(memory["rss"], sum(_kib(p, "status", "VmRSS:") for p in pids) * 1024)
        if turn % 5 == 0:  # the kernel walks all pages for it
            pss = sum(_kib(p, "smaps_rollup", "Pss:") for p in pids) * 1024
            memory["pss"] = max(memory["pss"], pss)
        turn += 1


def _tree(pid: int) -> list[int]:
    try:
        text = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    return [pid, *(found for child in text.split() for found in _tree(int(child)))]


def _kib(pid: int, file: str, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:  # it has ended meanwhile
        pass
    return 0


# ---- the bound -----------------------------------------------------------------------------------


def bound(folder: Path, mode: str, images: int = 200) -> dict[str, float]:
    """Images/s of all cores with decoding alone, with the model alone, and with one after the
    other: what a loader that loses nothing would reach.
    """
    command = [sys.executable, "-m", __name__, str(folder), mode, str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _bound(folder: Path, mode: str, images: int) -> dict[str, float]:
    import torch

    import effnet_fast

    from ..classify import find_images, load_model
    from ..classify.load import Loader
    from ..classify.pipeline import default_workers

    loaded = load_model("efficientnet_lite0", pretrained=True)
    loader, cores = Loader(loaded.preprocess, mode), default_workers()
    files = list(find_images([folder]))[:images]
    model = effnet_fast.optimize(loaded.model)
    batch = np.stack([loader(image).pixels for image in files[:16]])

    def infer(_: int) -> None:
        with torch.inference_mode():
            model(loaded.preprocess.normalise(torch.from_numpy(batch))).softmax(1)

    batches = list(range(-(-images // len(batch))))
    decode = len(files) / _together(loader, files, cores)
    alone = len(batches) * len(batch) / _together(infer, batches, cores)
    return {"decode": decode, "model": alone, "both": 1 / (1 / decode + 1 / alone), "cores": cores}


def _together(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> float:
    """Seconds that threads of one core each take for all items; the better of two times."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            list(pool.map(work, items))
            seconds.append(time.perf_counter() - start)
    return min(seconds)


# ---- agreement -----------------------------------------------------------------------------------


def agreement(folder: Path, modes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each mode's probabilities of all classes against timm's."""
    with tempfile.TemporaryDirectory() as scratch:
        out, array = Path(scratch) / "timm.csv", Path(scratch) / "timm.npy"
        timm = _timm(folder, "workers=1,batch-size=32")
        subprocess.run(
            [*timm(out), "--probabilities", str(array)], check=True, stdout=subprocess.DEVNULL
        )
        with open(out, newline="") as file:
            names = [row["filename"] for row in csv.DictReader(file)]
        right = dict(zip(names, np.load(array), strict=True))
        found = {}
        for mode in modes:
            out = Path(scratch) / f"{mode}.jsonl"
            subprocess.run(_ours(folder, mode, CLASSES)(out), check=True, stdout=subprocess.DEVNULL)
            found[mode] = _against(right, out)
    return found


def _against(right: Mapping[str, np.ndarray], out: Path) -> dict[str, Any]:
    same = sure = sure_same = 0
    largest, mean = 0.0, []
    with open(out, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            expected = right[Path(row["filename"]).name]
            given = np.empty(len(expected))
            given[row["index"]] = row["prob"]
            is_same = int(given.argmax()) == int(expected.argmax())
            same += is_same
            if expected.max() > 0.5:
                sure += 1
                sure_same += is_same
            difference = np.abs(given - expected)
            largest = max(largest, float(difference.max()))
            mean.append(float(difference.max()))
    return {
        "images": len(mean), "top1": same / len(mean), "sure": sure, "sure_same": sure_same,
        "largest": largest, "mean": statistics.mean(mean),
    }  # fmt: skip


# ---- for people ----------------------------------------------------------------------------------


def describe(row: Mapping[str, Any]) -> list[str]:
    """Lines of tables."""
    (w, h), (width, height) = row["sizes"]
    runs = row["runs"]
    # Of timm's the best, in the one as in the other.
    theirs = [run for name, run in runs.items() if name.startswith("timm")]
    base = {
        key: max((run[key] for run in theirs if run[key] is not None), default=None)
        for key in ("whole", "steady")
    }
    lines = [("", "whole img/s", "steady", "RSS MB", "PSS MB", "whole", "steady", "of the bound")]
    for name, run in runs.items():
        limit = row["bound"].get(name.removeprefix(f"{OURS} "))
        steady = run["steady"]
        ratios = (
            f"{run[key] / base[key]:.2f}x" if run[key] and base[key] else ""
            for key in ("whole", "steady")
        )
        lines.append(
            (
                name, f"{run['whole']:.1f}", f"{steady:.1f}" if steady else "",
                f"{run['rss'] / 1e6:.0f}",
                f"{run['pss'] / 1e6:.0f}", *ratios,
                f"{100 * steady / limit['both']:.0f} %" if limit and steady else "",
            )
        )  # fmt: skip
    text = [f"{row['images']} JPEGs of {w}x{h} to {width}x{height}", *table(lines, indent=2), ""]
    lines = [("bound, images/s of all cores", "decode alone", "model alone", "both")]
    for mode, limit in row["bound"].items():
        lines.append((mode, *(f"{limit[key]:.1f}" for key in ("decode", "model", "both"))))
    text += [*table(lines, indent=2), ""]
    if "agreement" in row:
        lines = [("against timm", "same top-1", "of those above 0.5", "largest", "mean difference")]
        for mode, found in row["agreement"].items():
            sure = f"{found['sure_same']} of {found['sure']}"
            lines.append(
                (
                    mode, f"{100 * found['top1']:.2f} %", sure, f"{found['largest']:.1e}",
                    f"{found['mean']:.1e}",
                )
            )  # fmt: skip
        text += table(lines, indent=2)
    return text


if __name__ == "__main__":
    print(json.dumps(_bound(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
