"""Speed beside the stock model: whole networks, runs interleaved, medians.

python -m effnet_fast.bench.speed --model timm:efficientnet_b0 --size 224 --batch 1 --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict

import torch

from .. import __version__
from ..capture import native_size
from ..optimize import optimize
from ..verify import relative_error
from .coverage import build, models
from .harness import interleaved, wall_clock

# glibc gives large buffers back at each free unless told otherwise, and the page faults can be more
# than half of PyTorch's time on a small network: the setting belongs to every figure.
_ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def measure(source: str, name: str, size: int, batch: int, threads: int, seconds: float) -> dict:
    """One model against its stock self, in both layouts, with the outputs compared first."""
    torch.set_num_threads(threads)
    stock = build(source, name)
    start = time.perf_counter()
    fast = optimize(stock)
    optimize_seconds = time.perf_counter() - start
    h, w = (size, size) if size else native_size(stock)
    x = torch.randn(batch, 3, h, w, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        start = time.perf_counter()
        fast.plan((h + 1, w + 1))
        plan_seconds = time.perf_counter() - start
        error = relative_error(fast(x), stock(x))
        rows = x.to(memory_format=torch.channels_last)
        last = build(source, name).to(memory_format=torch.channels_last)
        times = interleaved(
            {
                "eager": wall_clock(lambda: stock(x)),
                "eager channels_last": wall_clock(lambda: last(rows)),
                "effnet_fast": wall_clock(lambda: fast(x)),
            },
            seconds,
        )
    return {
        "model": f"{source}:{name}",
        "size": [h, w],
        "batch": batch,
        "threads": threads,
        "seconds": {name: asdict(value) for name, value in times.items()},
        "difference": error,
        "optimize_seconds": optimize_seconds,
        "plan_seconds": plan_seconds,
        "environment": {
            "effnet_fast": __version__,
            "torch": torch.__version__,
            "instruction_set": fast.report.instruction_set,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "allocator": {name: os.environ[name] for name in _ALLOCATOR if name in os.environ},
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:efficientnet_b0", help="source:name")
    parser.add_argument(
        "--size", type=int, default=0, help="image edge; the model's own by default"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure for")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    key = tuple(options.model.split(":", 1))
    if key not in models():
        names = ", ".join(sorted({source for source, _ in models()}))
        parser.error(
            f"--model is {options.model!r}; accepted: source:name with a source of {names}"
        )
    result = measure(*key, options.size, options.batch, options.threads, options.seconds)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    (h, w), allocator = result["size"], result["environment"]["allocator"]
    print(
        f"{options.model} at {h}x{w}, batch {options.batch}, {options.threads} threads, "
        f"torch {torch.__version__}, allocator {allocator or 'as it comes'}"
    )
    fast = result["seconds"]["effnet_fast"]
    for name, row in result["seconds"].items():
        median, p10, p90 = (1e3 * row[key] for key in ("median", "p10", "p90"))
        print(
            f"  {name:20} median {median:8.2f} ms, p10 {p10:8.2f}, p90 {p90:8.2f}, "
            f"{row['median'] / fast['median']:5.2f}x of effnet_fast's median"
        )
    print(
        f"  optimize took {result['optimize_seconds']:.1f} s, a new resolution "
        f"{1e3 * result['plan_seconds']:.1f} ms, outputs differ by {result['difference']:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
