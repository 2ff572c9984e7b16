"""What a kernel takes of a multiprocessor, and how many of its blocks fit on one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from effnet_fast.errors import ArgumentError, BackendError

WARP = 32
MAX_THREADS = 1024  # of a block
MAX_REGISTERS = 255  # of a thread
REGISTERS = 65536  # of a multiprocessor, and the most of a block
SUB_PARTITIONS = 4  # of a multiprocessor: each has a quarter of the registers, for whole warps
REGISTER_UNIT = 256  # registers are given to a warp in these
SHARED_UNIT = 128  # bytes; shared memory is given to a block in these
RESERVED_SHARED = 1024  # bytes of each block that the driver takes


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel; registers and bytes are of a thread, shared memory of a block.

    Attributes
    ----------
    spill_stores, spill_loads : bytes that did not fit into registers.
    stack : bytes of local memory, spills and arrays, of the kernel and what it calls.
    barriers : named barriers.
    """

    registers: int
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    static_shared: int = 0
    barriers: int = 0


@dataclass(frozen=True)
class Multiprocessor:
    """The limits of a multiprocessor: resident warps and blocks, bytes of shared memory.

    ``barriers`` is how many can be in use; None where the blocks run out first.
    """

    warps: int
    blocks: int
    shared: int
    barriers: int | None = None

    @property
    def block_shared(self) -> int:
        """Bytes of shared memory that a block may ask for."""
        return self.shared - RESERVED_SHARED


# CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability"; barriers and
# the units above: the toolkit's cuda_occupancy.h.
MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, blocks=32, shared=164 << 10),
    86: Multiprocessor(warps=48, blocks=16, shared=100 << 10),
    89: Multiprocessor(warps=48, blocks=24, shared=100 << 10),
    90: Multiprocessor(warps=64, blocks=32, shared=228 << 10, barriers=64),
    100: Multiprocessor(warps=64, blocks=32, shared=228 << 10, barriers=64),
    120: Multiprocessor(warps=48, blocks=24, shared=100 << 10, barriers=24),
}
CAPABILITIES = tuple(MULTIPROCESSORS)


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel fit on a multiprocessor.

    Attributes
    ----------
    blocks, warps : resident at once; 0 when the kernel cannot be launched like this.
    fraction : of the warps that the multiprocessor can hold, 0 to 1.
    limiters : what there would have to be more of: ``"warps"``, ``"blocks"``, ``"registers"``,
        ``"shared memory"``, ``"barriers"``.
    """

    blocks: int
    warps: int
    fraction: float
    limiters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{100 * self.fraction:.0f} % ({', '.join(self.limiters)})"


def check_capability(capability: int) -> None:
    """Raise ArgumentError unless kernels are compiled for ``capability``."""
    if capability not in MULTIPROCESSORS:
        raise ArgumentError(
            f"capability is {capability!r}; accepted: {', '.join(map(str, CAPABILITIES))}"
        )


def occupancy(
    resources: Resources, threads: int, dynamic_shared: int, capability: int
) -> Occupancy:
    """How many blocks of a kernel are resident on a multiprocessor at once.

    The split between L1 and shared memory is taken to be the best for the kernel, as the driver
    chooses it.

    Parameters
    ----------
    resources : Resources
    threads : int
        Of a block, 1 to 1024.
    dynamic_shared : int
        Bytes that a launch asks for, beside ``resources.static_shared``.
    capability : int
        Of the device: 80, 86, 89, 90, 100 or 120.

    Raises
    ------
    ArgumentError
        An argument is outside of these.
    """
    check_capability(capability)
    if not 1 <= threads <= MAX_THREADS:
        raise ArgumentError(f"threads is {threads}; accepted: 1 to {MAX_THREADS}")
    if dynamic_shared < 0:
        raise ArgumentError(f"dynamic_shared is {dynamic_shared}; accepted: 0 and up")
    sm = MULTIPROCESSORS[capability]
    warps = -(-threads // WARP)
    limits = {
        "warps": sm.warps // warps,
        "blocks": sm.blocks,
        "shared memory": _blocks_by_shared(resources.static_shared + dynamic_shared, sm),
    }
    if resources.registers:
        limits["registers"] = _blocks_by_registers(resources.registers, warps)
    if sm.barriers is not None and resources.barriers:
        limits["barriers"] = sm.barriers // resources.barriers
    blocks = min(limits.values())
    limiters = tuple(name for name, limit in limits.items() if limit == blocks)
    return Occupancy(blocks, blocks * warps, blocks * warps / sm.warps, limiters)


def _blocks_by_registers(registers: int, warps: int) -> int:
    of_warp = _round_up(registers * WARP, REGISTER_UNIT)
    # A launch is checked as if its warps were spread evenly over the sub-partitions.
    if registers > MAX_REGISTERS or of_warp * _round_up(warps, SUB_PARTITIONS) > REGISTERS:
        return 0
    return REGISTERS // SUB_PARTITIONS // of_warp * SUB_PARTITIONS // warps


def _blocks_by_shared(shared: int, sm: Multiprocessor) -> int:
    if shared > sm.block_shared:
        return 0
    return sm.shared // _round_up(shared + RESERVED_SHARED, SHARED_UNIT)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


_LINE = re.compile(
    r"ptxas[\w-]* info\s*: (?:Compiling entry function '(?P<entry>[^']+)'"
    r"|Function properties for (?P<function>\S+)"
    r"|Used (?P<registers>\d+) registers(?P<uses>[^\n]*))"
    r"|(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
)


def parse_resources(log: str) -> dict[str, Resources]:
    """Read what ``ptxas -v`` printed: the resources of each kernel, by name.

    ptxas does not say who calls a function that was not inlined: its spills and stack are counted
    for every kernel of the module.
    """
    frames: dict[str, tuple[int, ...]] = {}
    used: dict[str, re.Match] = {}
    entry = function = ""
    for match in _LINE.finditer(log):
        if match["entry"]:
            entry = match["entry"]
        elif match["function"]:
            function = match["function"]
        elif match["stack"]:
            frames[function] = tuple(int(match[key]) for key in ("stack", "stores", "loads"))
        else:
            used[entry] = match
    called = [frame for name, frame in frames.items() if name not in used]
    found = {}
    for name, match in used.items():
        stack, stores, loads = map(sum, zip(frames.get(name, (0, 0, 0)), *called, strict=True))
        uses = match["uses"]
        found[name] = Resources(
            registers=int(match["registers"]),
            spill_stores=stores,
            spill_loads=loads,
            stack=max(stack, _sum(r"(\d+) bytes cumulative stack size", uses)),
            static_shared=_sum(r"(\d+) bytes smem", uses),
            barriers=_sum(r"used (\d+) barriers", uses),
        )
    return found


def resources_of(name: str, log: str) -> Resources:
    """The resources of one kernel, from what ``ptxas -v`` printed.

    Raises
    ------
    BackendError
        They are not in it.
    """
    found = parse_resources(log)
    if name not in found:
        raise BackendError(f"ptxas does not say what {name} uses: {log.strip()!r}")
    return found[name]


def _sum(pattern: str, text: str) -> int:
    return sum(map(int, re.findall(pattern, text)))
