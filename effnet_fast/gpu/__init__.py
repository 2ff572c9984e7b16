"""GPUs behind the CUDA driver API: a real one, or the PTX machine on the CPU."""

from effnet_fast.gpu.device import (
    Buffer,
    Device,
    Event,
    Graph,
    Kernel,
    Launch,
    Module,
    Region,
    Stream,
)

__all__ = [
    "Buffer",
    "Device",
    "Event",
    "Graph",
    "Kernel",
    "Launch",
    "Module",
    "Region",
    "Stream",
]
