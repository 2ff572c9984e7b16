"""The host side of csrc/cuda/swish.cu."""

from __future__ import annotations

import math

import numpy as np

from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act

__all__ = ["launch"]

THREADS = 256
# Blocks of a multiprocessor at a time: with more, each thread has another 16 bytes to do.
RESIDENT = 8


def launch(device: Device, x: DeviceTensor, y: DeviceTensor, act: Act) -> Launch:
    """Compute y = act(x), elementwise.

    Parameters
    ----------
    device : Device
    x, y : DeviceTensor
        Dense, in the same order in memory, of at least one element; y may be x.
    act : Act
    """
    n = math.prod(x.shape)
    blocks = -(-n * x.dtype.itemsize // (16 * THREADS))
    return Launch(
        kernel(device, "swish", f"swish_{suffix(x.dtype)}"),
        grid=(min(blocks, RESIDENT * device.attributes["multiprocessor_count"]),),
        block=(THREADS,),
        arguments=(x, y, np.int64(n), np.int32(act)),
        regions=(x.region("x", "r"), y.region("y", "w")),
    )
