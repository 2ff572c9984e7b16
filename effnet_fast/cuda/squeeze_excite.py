"""The host side of csrc/cuda/squeeze_excite.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_squeeze_excite as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act

__all__ = ["Excitation", "images_of_block", "latency", "launch", "pack", "shared_bytes"]

THREADS = 256
SHARED = 48 << 10  # bytes, without a function attribute


class Arguments(ctypes.Structure):
    """SqueezeExcite of csrc/cuda/squeeze_excite.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("sums", "w1", "b1", "w2", "b2", "gate")),
        *((name, ctypes.c_int32) for name in ("images", "tiles", "channels", "squeezed")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("act", "gate_act", "is_aligned")),
    ]


@dataclass(frozen=True)
class Excitation:
    """What a gate is made of: gate_act(w2 act(w1 mean + b1) + b2).

    Attributes
    ----------
    sums : (N, tiles, C), float32, contiguous, N at least 1: the mean is their sum over the tiles,
        divided by ``pixels``.
    packed : what :func:`pack` returned.
    """

    sums: DeviceTensor
    pixels: int
    packed: tuple[DeviceTensor | None, ...]
    act: Act
    gate_act: Act

    @property
    def squeezed(self) -> int:
        """Channels between."""
        return self.packed[0].shape[0]

    def arguments(self, gate: DeviceTensor | None = None) -> Arguments:
        """SqueezeExcite; without a gate for a kernel that keeps it to itself."""
        n, tiles, c = self.sums.shape
        w1, b1, w2, b2 = self.packed
        quad = 4 * w1.dtype.itemsize
        return Arguments(
            sums=self.sums.address, w1=w1.address, b1=0 if b1 is None else b1.address,
            w2=w2.address, b2=0 if b2 is None else b2.address,
            gate=0 if gate is None else gate.address,
            images=n, tiles=tiles, channels=c, squeezed=self.squeezed,
            scale=1 / self.pixels,
            act=self.act, gate_act=self.gate_act,
            is_aligned=c % 4 == 0 and all(t.address % quad == 0 for t in (w1, w2)),
        )  # fmt: skip

    def reads(self) -> Mapping[str, DeviceTensor]:
        """Tensors by their names."""
        names = "sums", "w1", "b1", "w2", "b2"
        given = zip(names, (self.sums, *self.packed), strict=True)
        return {name: tensor for name, tensor in given if tensor is not None}


def launch(
    device: Device,
    sums: DeviceTensor,
    pixels: int,
    packed: tuple[DeviceTensor | None, ...],
    gate: DeviceTensor,
    act: Act,
    gate_act: Act,
    images: int | None = None,
) -> Launch:
    """Compute gate = gate_act(w2 act(w1 mean + b1) + b2): see :class:`Excitation`.

    Parameters
    ----------
    device : Device
    sums : DeviceTensor
    pixels : int
    packed : tuple of DeviceTensor or None
    gate : DeviceTensor
        (N, C), contiguous, of the weights' type.
    act, gate_act : Act
    images : int, optional
        Of a block, other than :func:`images_of_block` says.
    """
    n, _, c = sums.shape
    excitation = Excitation(sums, pixels, packed, act, gate_act)
    squeezed = excitation.squeezed
    images = images or images_of_block(n, c, squeezed, device.attributes["multiprocessor_count"])
    reads = excitation.reads()
    return Launch(
        kernel(device, "squeeze_excite", f"squeeze_excite_{images}_{suffix(gate.dtype)}"),
        grid=(-(-n // images),),
        block=(THREADS,),
        shared=shared_bytes(images, c, squeezed),
        arguments=(excitation.arguments(gate),),
        regions=(
            *(t.region(name, "r") for name, t in reads.items()),
            gate.region("gate", "w"),
        ),
        alive=(*reads.values(), gate),
    )


def images_of_block(n: int, c: int, squeezed: int, multiprocessors: int) -> int:
    """As many as leave few multiprocessors idle: they share the weights that a block reads."""
    for images in (4, 2):
        if 8 * n >= 7 * images * multiprocessors and shared_bytes(images, c, squeezed) <= SHARED:
            return images
    return 1


def latency(c: int, squeezed: int, dtype: torch.dtype, threads: int = THREADS) -> float:
    """Modelled cycles of a block that has a multiprocessor for itself: a thread has some 30 bytes
    of the weights on their way, which take some 500 cycles.
    """
    return 3000 + 2 * c * squeezed * dtype.itemsize * 16 / threads


def shared_bytes(images: int, c: int, squeezed: int) -> int:
    """Of a block for so many images."""
    return 4 * images * (-(-c // 4) * 4 + squeezed)
