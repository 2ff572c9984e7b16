"""effnet_fast: EfficientNet inference close to the limit of the hardware it runs on."""

from __future__ import annotations

import gc

# Importing PyTorch makes some 300,000 objects, none of them garbage: 1.25 s without the collector,
# 1.5 s with it. They become old ones without being looked at, which would take 0.1 s.
_collects = gc.isenabled()
gc.disable()
try:
    from . import errors
    from .model import OptimizedModel
    from .optimize import optimize
    from .report import Report
    from .serialize import load
finally:
    if _collects:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.enable()

__version__ = "0.1.0"

__all__ = ["OptimizedModel", "Report", "__version__", "errors", "load", "optimize"]
