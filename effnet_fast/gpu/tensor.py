"""Tensors in device memory, as launches take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from effnet_fast.gpu.device import Buffer, Device, Region


@dataclass(frozen=True, eq=False)
class DeviceTensor:
    """A tensor on a real GPU or on the PTX machine.

    Attributes
    ----------
    memory : Buffer or torch.Tensor
        What it lies in; kept alive.
    address : int
        Of its first element.
    dtype : torch.dtype
    shape, strides : tuple of int
        Strides in elements, none negative.
    """

    memory: Any
    address: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> DeviceTensor:
        """A torch tensor on the GPU, in place."""
        return cls(
            tensor, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride())
        )

    @classmethod
    def upload(cls, device: Device, tensor: torch.Tensor) -> DeviceTensor:
        """A copy of a tensor on the CPU, with its strides: what lies between its elements too."""
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        span = tensor.detach().as_strided((_span(shape, strides),), (1,))
        buffer = device.upload(span)
        return cls(buffer, buffer.address, tensor.dtype, shape, strides)

    @classmethod
    def empty(
        cls, device: Device, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> DeviceTensor:
        """New memory."""
        buffer = device.empty(_span(shape, strides) * dtype.itemsize)
        return cls(buffer, buffer.address, dtype, tuple(shape), tuple(strides))

    @property
    def bytes(self) -> int:
        """From its first element to its last."""
        return _span(self.shape, self.strides) * self.dtype.itemsize

    @property
    def map_strides(self) -> tuple[int, int, int]:
        """Of a map (N, C, H, W): of images, rows and pixels, 0 where there is only one."""
        image, _, row, pixel = (
            stride if size > 1 else 0 for size, stride in zip(self.shape, self.strides, strict=True)
        )
        return image, row, pixel

    def has_aligned_pixels(self, bytes: int) -> bool:
        """Whether every pixel of a map begins at a multiple of so many bytes."""
        strides = (self.dtype.itemsize * stride for stride in self.map_strides)
        return all(n % bytes == 0 for n in (self.address, *strides))

    def region(self, name: str, mode: str) -> Region:
        """Declare it for a launch, as ``"r"``, ``"w"`` or ``"rw"``."""
        return Region(name, self.address, self.bytes, "r" in mode, "w" in mode)

    def download(self, device: Device, into: torch.Tensor) -> None:
        """Copy it to a tensor on the CPU of the same shape, of any strides."""
        assert isinstance(self.memory, Buffer) and self.address == self.memory.address
        data = device.download(self.memory, self.dtype, (_span(self.shape, self.strides),))
        into.copy_(data.as_strided(self.shape, self.strides))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
