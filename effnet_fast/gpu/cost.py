"""A model of what kernels take: instructions, the L2 cache and DRAM, waves of blocks, launches.

Its numbers are those of an H100, the instructions per output those that the PTX machine counts; it
chooses between kernels and between tiles where nothing can be measured.
"""

from __future__ import annotations

# Of a multiprocessor and a cycle: warps' instructions (4 schedulers, some 80 % of them busy),
# results of the special-function unit, products of a warp-wide matrix instruction in half
# precision, and bytes that the L2 cache gives it.
ISSUE = 3.2
SPECIAL = 16
PRODUCTS = 1024
L2_BYTES = 24
# From the end of a kernel to the begin of one that depends on it, in a graph.
LAUNCH_SECONDS = 1e-6
# A swish takes 2 results of the special-function unit.
SWISH_SPECIAL = 2


def cycles(
    blocks: int,
    multiprocessors: int,
    instructions: float,
    *,
    special: float = 0.0,
    products: float = 0.0,
    l2_bytes: float = 0.0,
    alone: float = 0.0,
) -> float:
    """Cycles of a launch.

    Parameters
    ----------
    blocks, multiprocessors : int
    instructions, special, products, l2_bytes : float
        Of a block: of its warps, results of its threads, of its products, bytes that it reads.
    alone : float
        Cycles of a block that has a multiprocessor for itself.
    """
    busy = max(instructions / ISSUE, special / SPECIAL, products / PRODUCTS, l2_bytes / L2_BYTES)
    return max(-(-blocks // multiprocessors) * busy, alone)
