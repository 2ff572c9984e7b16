"""Making and loading a model: seconds, and resident memory beside ONNX Runtime's of the same.

Each is loaded in a fresh process.

Growth is over a process that imported torch, or onnxruntime, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..capture import native_size
from ..errors import ArgumentError, EffnetFastError
from ..gpu.counts import table
from ..optimize import optimize
from .coverage import build, models
from .peers import Case, onnx_file

_RUNS = 3
_RESIDENT = """
import json, resource, time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
"""
_TORCH = _RESIDENT + "import torch; print(json.dumps([resident()]))"
_OURS = (
    _RESIDENT
    + """
import torch
import effnet_fast
start = time.perf_counter()
model = effnet_fast.load({path!r})
found = [time.perf_counter() - start, resident()]
x = torch.randn({shape})
with torch.no_grad():
    for _ in range({runs}):
        model(x)
print(json.dumps([*found, resident()]))
"""
)
_ORT = _RESIDENT + "import numpy, onnxruntime; print(json.dumps([resident()]))"
_THEIRS = (
    _RESIDENT
    + """
import numpy, onnxruntime
start = time.perf_counter()
session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
found = [time.perf_counter() - start, resident()]
x = numpy.random.randn(*{shape}).astype("float32")
for _ in range({runs}):
    session.run(None, {{"x": x}})
print(json.dumps([*found, resident()]))
"""
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="timm:tf_efficientnet_b7", help="source:name")
    parser.add_argument("--size", type=int, help="image edge (default: the model's own)")
    options = parser.parse_args(arguments)
    try:
        print("\n".join(measure(options.model, options.size)))
    except EffnetFastError as error:
        print(f"benchmarks/memory.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(model: str, edge: int | None) -> list[str]:
    """Lines of a table, in MB.

    Raises
    ------
    ArgumentError
        There is no such model, or the system does not tell what a process has in memory.
    """
    key = tuple(model.split(":", 1))
    if key not in models():
        raise ArgumentError(f"--model is {model!r}; accepted: source:name")
    if not sys.platform.startswith("linux"):
        raise ArgumentError("only Linux tells what a process has in memory, in /proc")
    stock = build(*key)
    size = (edge, edge) if edge else native_size(stock)
    lines = [(f"{model} at {size[0]}x{size[1]}", "load s", "loaded MB", f"after {_RUNS} runs")]
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "model.pt")
        start = time.perf_counter()
        fast = optimize(stock)
        seconds_of_optimize, report = time.perf_counter() - start, fast.report
        fast.save(saved)
        onnx = onnx_file(Case(*key, size, 1, 1, Path(folder)))
        rows = (("effnet_fast", _TORCH, _OURS, saved), ("onnxruntime", _ORT, _THEIRS, onnx))
        for name, bare, script, path in rows:
            (base,) = _run(bare)
            given = {"path": str(path), "shape": (1, 3, *size), "runs": _RUNS}
            seconds, loaded, ran = _run(script.format(**given))
            growth = (f"{(bytes - base) / 1e6:,.0f}" for bytes in (loaded, ran))
            lines.append((name, f"{seconds:.2f}", *growth))
    made = (
        f"optimize, with verification: {seconds_of_optimize:.1f} s; {report.peak_bytes / 1e6:,.0f} "
        f"MB at most, of which {report.weight_bytes / 1e6:,.1f} MB of packed weights stay"
    )
    return [made, *table(lines)]


def _run(script: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ArgumentError(f"a process failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
