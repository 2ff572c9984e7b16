import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Test processes run side by side: more threads than cores spin while others wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
