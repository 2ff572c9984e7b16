"""CUDA kernels on a device."""

from __future__ import annotations

import threading

import torch

from effnet_fast.gpu import fat_binary
from effnet_fast.gpu.device import Device, Kernel

_lock = threading.Lock()


def suffix(dtype: torch.dtype) -> str:
    """Of the kernels' names: ``"float16"``."""
    return str(dtype).removeprefix("torch.")


def kernel(device: Device, stem: str, name: str) -> Kernel:
    """A kernel of ``csrc/cuda/<stem>.cu``.

    Raises
    ------
    BackendError
        The CUDA kernels were not built.
    """
    with _lock:
        if name not in device.kernels:
            # The machine does not know registers, and refuses launches that would not fit.
            given = {name: fat_binary.resources(stem)[80][name].registers}
            device.kernels[name] = device.load(fat_binary.image(stem), given).kernel(name)
        return device.kernels[name]
