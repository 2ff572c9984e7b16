"""How many thread-instructions a second the PTX machine runs, all its checks on.

    python benchmarks/ptx_machine.py [--threads 1 2] [--repeat 5] [--json FILE]

The kernels are those that tests/foreign_kernels.py compiles from Triton, CUB and CUTLASS sources;
the runs interleave, and each figure is a median over the launches of a run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from foreign_kernels import KERNELS, Foreign

from effnet_fast.gpu.device import Device

# Large enough that a launch's own cost, some 100 us, is small.
PROBLEMS = {
    "triton_vector_add": (300_000,),
    "triton_softmax": (300, 901),
    "triton_layer_norm": (300, 901),
    "triton_matmul": (256, 256, 256),
    "triton_dropout": (200_000,),
    "cub_block_reduce": (200_000,),
    "cub_block_scan": (200_000,),
    "cub_block_sort": (50_000,),
    "cub_block_histogram": (200_000,),
    "cutlass_simt_gemm": (256, 256, 128, 0.5, "value"),
    "cutlass_tensor_op_gemm": (256, 256, 256, 0.5, "value"),
}


def rate(kernel: Foreign, ptx: str, threads: int) -> tuple[float, int]:
    """Thread-instructions a second, and their number, of a second run: the first maps memory."""
    with Device("ptx", 0, threads=threads) as device:
        for _ in range(2):
            kernel.check_problem(device, ptx, *PROBLEMS[kernel.name])
        _, counts = device.take_counts()
    instructions = sum(c["thread"] for c in counts["classes"].values())
    return instructions / counts["seconds"], instructions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    texts = {kernel.name: kernel.ptx(80) for kernel in KERNELS}
    rates: dict[tuple[str, int], list[float]] = {}
    instructions = {}
    for _ in range(options.repeat):
        for kernel in KERNELS:
            for threads in options.threads:
                measured, instructions[kernel.name] = rate(kernel, texts[kernel.name], threads)
                rates.setdefault((kernel.name, threads), []).append(measured)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    columns = "".join(f"{f'{n} thread' + 's' * (n > 1):>12}" for n in options.threads)
    print(f"{'M thread-instructions/s':<26}{'M run':>8}{columns}")
    for name in texts:
        cells = "".join(f"{medians[name, n] / 1e6:12.1f}" for n in options.threads)
        print(f"{name:<26}{instructions[name] / 1e6:8.1f}{cells}")
    # All kernels one after the other: instructions over time.
    total = sum(instructions.values())
    cells = ""
    for n in options.threads:
        seconds = sum(instructions[name] / medians[name, n] for name in texts)
        cells += f"{total / seconds / 1e6:12.1f}"
    print(f"{'all of them':<26}{total / 1e6:8.1f}{cells}")
    if options.json:
        rows = [
            {"kernel": name, "threads": n, "thread_instructions_per_second": value}
            for (name, n), value in medians.items()
        ]
        options.json.write_text(json.dumps({"machine": platform.platform(), "rows": rows}))


if __name__ == "__main__":
    main()
