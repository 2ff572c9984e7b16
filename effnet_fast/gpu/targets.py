"""What a model of the time knows of GPUs: one of each architecture, from its data sheet."""

from __future__ import annotations

from dataclasses import dataclass

from effnet_fast.errors import ArgumentError
from effnet_fast.gpu.device import Device


@dataclass(frozen=True)
class Target:
    """A GPU as the model sees it.

    Attributes
    ----------
    capability : 90 for sm_90.
    multiprocessors : int
    clock : of a multiprocessor, in Hz.
    dram : bytes a second.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    dram: float

    @classmethod
    def named(cls, arch: str) -> Target:
        """Of ``"sm_90"``.

        Raises
        ------
        ArgumentError
        """
        for target in TARGETS:
            if arch == f"sm_{target.capability}":
                return target
        accepted = ", ".join(f"sm_{target.capability}" for target in TARGETS)
        raise ArgumentError(f"arch is {arch!r}; accepted: {accepted}")

    @classmethod
    def of(cls, device: Device) -> Target:
        """A device's: what it says of itself, the rest of the architecture's."""
        known = [t for t in TARGETS if t.capability <= device.capability]
        like = max(known, key=lambda t: t.capability)
        return cls(
            device.name,
            device.capability,
            device.attributes["multiprocessor_count"],
            like.clock,
            like.dram,
        )


TARGETS = (
    Target("A100 SXM 80 GB", 80, 108, 1.41e9, 2.04e12),
    Target("A10", 86, 72, 1.69e9, 0.60e12),
    Target("L40S", 89, 142, 2.52e9, 0.86e12),
    Target("H100 SXM", 90, 132, 1.83e9, 3.35e12),
    Target("B200", 100, 148, 1.85e9, 8.0e12),
    Target("RTX 5090", 120, 170, 2.41e9, 1.79e12),
)
