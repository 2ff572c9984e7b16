"""Epilogue of csrc/cuda/epilogue.cuh: what becomes of a block's sums of products."""

from __future__ import annotations

import ctypes

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act


class Epilogue(ctypes.Structure):
    """Epilogue of csrc/cuda/epilogue.cuh."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("bias", "residual", "y", "sums")),
        *((name, ctypes.c_int64) for name in ("r_image", "y_image")),
        *((name, ctypes.c_int32) for name in ("r_row", "r_pixel", "y_row", "y_pixel")),
        ("columns", Divisor),
        *((name, ctypes.c_int32) for name in ("cout", "act", "is_aligned")),
    ]

    @classmethod
    def of(
        cls,
        cout: int,
        act: Act,
        bias: DeviceTensor | None,
        y: DeviceTensor | None = None,
        residual: DeviceTensor | None = None,
        sums: DeviceTensor | None = None,
        columns: int = 1,
    ) -> Epilogue:
        """With ``columns`` pixels in a row of y and the residual."""
        outputs = [t for t in (y, residual) if t is not None]
        self = cls(
            bias=address(bias), residual=address(residual), y=address(y), sums=address(sums),
            columns=Divisor.of(columns), cout=cout, act=act,
            is_aligned=cout % 4 == 0
            and all(t.has_aligned_pixels(4 * t.dtype.itemsize) for t in outputs),
        )  # fmt: skip
        for tensor in outputs:
            of = "y" if tensor is y else "r"
            for name, stride in zip(("image", "row", "pixel"), tensor.map_strides, strict=True):
                setattr(self, f"{of}_{name}", stride)
        return self


def address(tensor: DeviceTensor | None) -> int:
    """0 for none."""
    return 0 if tensor is None else tensor.address
