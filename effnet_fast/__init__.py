"""effnet_fast: EfficientNet inference close to the limit of the hardware it runs on."""

from __future__ import annotations

from . import errors
from .model import OptimizedModel
from .optimize import optimize
from .report import Report
from .serialize import load

__version__ = "0.1.0"

__all__ = ["OptimizedModel", "Report", "__version__", "errors", "load", "optimize"]
