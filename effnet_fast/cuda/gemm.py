"""Shared memory of csrc/cuda/gemm.cuh: products of matrices by blocks."""

from __future__ import annotations

ROW_BYTES = 128  # of a tile of a matrix
STAGES = 3  # tiles of both matrices, on their way or in use


def stages_bytes(rows: int, depth: int, size: int, stages: int = STAGES) -> int:
    """Shared memory for tiles of so many rows, of matrices with rows of so many elements."""
    return min(stages, -(-depth * size // ROW_BYTES)) * rows * ROW_BYTES


def sums_bytes(m: int, n: int) -> int:
    """Shared memory for a block's sums."""
    return 4 * m * (n + 8)
