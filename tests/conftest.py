import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Two test processes on two cores: more threads each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "2")
