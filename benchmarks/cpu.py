"""The table of docs/performance.md: whole models on this CPU, beside every runtime installed.

python benchmarks/cpu.py [--output FILE] [--seconds 20] [--only PATTERN]
"""

import sys
from pathlib import Path

from effnet_fast.bench.cpu_table import main

if __name__ == "__main__":
    sys.exit(main(root=Path(__file__).parents[1]))
