"""How many mechanical mistakes in the package's GPU kernels the tests and the PTX machine notice.

    python benchmarks/gpu_mutants.py

All kernels of tests/test_gpu_mutants.py, some minutes: mutants, survivors, and those of them that
are not known to behave as the kernel does.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_gpu_mutants import source_ptx, survivors, targets, unexplained

from effnet_fast.gpu.counts import table


def main() -> None:
    """Make them, run them, and print."""
    rows, total = [], {"cuda": [0, 0, 0], "triton": [0, 0, 0]}
    for target in targets():
        made, alive = survivors(target, source_ptx(target))
        numbers = (made, len(alive), len(list(unexplained(alive))))
        total[target.language] = [
            a + b for a, b in zip(total[target.language], numbers, strict=True)
        ]
        rows.append((target.name, target.language, *map(str, numbers)))
    rows += [("all", language, *map(str, numbers)) for language, numbers in total.items()]
    head = ("kernel", "language", "mutants", "survive", "unexplained")
    print("\n".join(table([head, *rows], left=[0, 1])))


if __name__ == "__main__":
    main()
