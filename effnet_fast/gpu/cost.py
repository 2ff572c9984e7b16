"""A model of what kernels take: instructions, the L2 cache and DRAM, waves of blocks, launches.

Its numbers are those of an H100, the instructions per output those that the PTX machine counts; it
chooses between kernels and between tiles where nothing can be measured.
"""

from __future__ import annotations

import math

from effnet_fast.gpu.counts import Counts
from effnet_fast.gpu.targets import Target

# Of a multiprocessor and a cycle: warps' instructions (4 schedulers, some 80 % of them busy),
# results of the special-function unit, products of a warp-wide matrix instruction in half
# precision (62 % of what the matrix unit does with its own instructions: Luo et al. 2024,
# arXiv 2402.13499), and bytes that the L2 cache gives it.
ISSUE = 3.2
SPECIAL = 16
PRODUCTS = 1270
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
    wavefronts: float = 0.0,
    alone: float = 0.0,
    resident: int = 1,
    waits: float = 0.0,
) -> float:
    """Cycles of a launch.

    Parameters
    ----------
    blocks, multiprocessors : int
    instructions, special, products, l2_bytes, wavefronts : float
        Of a block: of its warps, results of its threads, of its products, bytes that it reads,
        passes through shared memory.
    alone : float
        Cycles of a block that has a multiprocessor for itself, at the least.
    resident : int
        Blocks that a multiprocessor has at a time.
    waits : float
        Cycles in which a block does nothing, and others may.
    """
    busy = max(
        instructions / ISSUE,
        special / SPECIAL,
        products / PRODUCTS,
        l2_bytes / L2_BYTES,
        wavefronts,
    )

    def together(count: int) -> float:
        """Blocks that share a multiprocessor."""
        return max(count * busy, busy + waits) if count else 0.0

    rounds, left = divmod(-(-blocks // multiprocessors), resident)
    return max(rounds * together(resident) + together(left), alone)


# A multiprocessor's passes through shared memory, and warps' instructions, of a cycle, at best.
_WAVEFRONTS, _ISSUED = 1, 4
# Products of a warp's mma.sync m16n8k16.
_MMA = 16 * 8 * 16
_L2_SECONDS = 1 / 5.5e12  # of a byte, on an H100


def roofline(counts: Counts, target: Target, dram_bytes: float, blocks: int) -> tuple[float, str]:
    """Seconds that a launch takes at the least, at a GPU's peak rates, and what limits it.

    Parameters
    ----------
    counts : Counts
        Of a launch with fewer blocks of the same work: of one image.
    target : Target
    dram_bytes : float
        Of the batch.
    blocks : int
        Of the batch: the last of them may leave multiprocessors idle.
    """
    own = target.multiprocessors
    scale = blocks / math.prod(counts.grid)
    waves = -(-blocks // own) * own / blocks  # beyond what would spread evenly
    # Moves between registers are an assembler's to remove.
    issued = counts.warp_instructions - counts.classes["move"].warp
    of_all = {
        "issue": issued / _ISSUED,
        "special": 32 * counts.classes["special"].warp / SPECIAL,
        "shared memory": counts.shared.wavefronts / _WAVEFRONTS,
        "tensor": counts.classes["tensor"].warp * _MMA / PRODUCTS,
    }
    seconds = {name: c * scale * waves / own / target.clock for name, c in of_all.items()}
    seconds["l2"] = counts.traffic.l2_bytes * scale * _L2_SECONDS
    seconds["dram"] = dram_bytes / target.dram
    limit = max(seconds, key=seconds.__getitem__)
    return seconds[limit] + LAUNCH_SECONDS, limit
