"""What making and loading a model takes: seconds and memory, beside ONNX Runtime's.

python benchmarks/memory.py [--model timm:tf_efficientnet_b7] [--size 600]
"""

import sys

from effnet_fast.bench.memory import main

if __name__ == "__main__":
    sys.exit(main())
