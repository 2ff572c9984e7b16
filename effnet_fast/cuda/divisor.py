"""Divisors of csrc/cuda/divisor.cuh."""

from __future__ import annotations

import ctypes


class Divisor(ctypes.Structure):
    """A number to divide by: n / d = n m >> shift for 0 <= n < 2^31."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("divisor", "multiplier", "shift")]

    @classmethod
    def of(cls, d: int) -> Divisor:
        """For d >= 1."""
        shift = 31 + (d - 1).bit_length()
        return cls(d, -(-(1 << shift) // d), shift)
