"""Batch classification beside timm's inference: rates, memory, agreement.

python benchmarks/classify.py FOLDER [--images 2000] [--rounds 3] [--output FILE]
"""

import sys
from pathlib import Path

from effnet_fast.bench.classify import main

if __name__ == "__main__":
    sys.exit(main(root=Path(__file__).parents[1]))
