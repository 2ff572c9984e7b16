"""Shared memory of csrc/cuda/gemm.cuh: products of matrices by blocks."""

from __future__ import annotations

ROW_BYTES = 128  # of a tile of a matrix


def stages_bytes(rows: int, depth: int, size: int, stages: int | None = None) -> int:
    """Shared memory for tiles of so many rows, of matrices with rows of so many elements."""
    stages = stages or (2 if rows > 192 else 3)  # on their way or in use
    return min(stages, -(-depth * size // ROW_BYTES)) * rows * ROW_BYTES


def sums_bytes(m: int, n: int) -> int:
    """Shared memory for a block's sums."""
    return 4 * m * (n + 8)


def threads(m: int, n: int, size: int, split: int = 1) -> int:
    """Of a block for m x n sums, as TileProduct has them.

    A warp has 32 rows, and 64 columns in half precision, 32 in float32; with ``split`` others have
    the same sums, of other columns of the matrices.
    """
    return 32 * -(-m // 32) * -(-n // (64 if size == 2 else 32)) * split
