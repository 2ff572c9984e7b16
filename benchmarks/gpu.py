"""Everything that a machine with a GPU should be asked: tests, operators, whole models, peers.

python benchmarks/gpu.py [--output FILE] [--minutes 25] [--backend ptx --tiny]
"""

import sys
from pathlib import Path

from effnet_fast.bench.gpu import main

if __name__ == "__main__":
    sys.exit(main(root=Path(__file__).parents[1]))
