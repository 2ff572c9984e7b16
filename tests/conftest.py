import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Test processes run side by side: more threads than cores spin while others wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory):
    """The session's own: GPU kernels are compiled once, and the user's cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFNET_FAST_CACHE", str(tmp_path_factory.mktemp("kernel_cache")))
        yield
