"""What ptxas says of kernels, and how many of their blocks fit on a multiprocessor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from effnet_fast.errors import ArgumentError, BackendError
from effnet_fast.gpu import Device
from effnet_fast.gpu.resources import (
    MULTIPROCESSORS,
    Multiprocessor,
    Resources,
    occupancy,
    parse_resources,
    resources_of,
)

# ---- resources -----------------------------------------------------------------------------------

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spills' for 'sm_80'
ptxas info    : Function properties for spills
    808 bytes stack frame, 1160 bytes spill stores, 1884 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 808 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Compile time = 353.666 ms
ptxas-blackwell info    : Compiling entry function '_Z1aPf' for 'sm_120a'
ptxas-blackwell info    : Function properties for _Z1aPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas-blackwell info    : Used 134 registers, used 4 barriers, 132 bytes smem
"""  # noqa: E501
CALLED = """\
ptxas info    : Function properties for _Z6calledPf
    32 bytes stack frame, 28 bytes spill stores, 20 bytes spill loads
"""


def test_what_ptxas_says_is_read():
    assert parse_resources(LOG) == {
        "spills": Resources(64, 1160, 1884, 808, 0, 0),
        "_Z1aPf": Resources(134, static_shared=132, barriers=4),
    }
    assert parse_resources(LOG + CALLED) == {
        "spills": Resources(64, 1188, 1904, 840, 0, 0),
        "_Z1aPf": Resources(134, 28, 20, 32, 132, 4),
    }
    assert parse_resources("") == {}
    assert resources_of("spills", LOG).registers == 64
    with pytest.raises(BackendError, match=r"ptxas does not say what other uses: .*ptxas info"):
        resources_of("other", LOG)


@pytest.mark.parametrize(
    "capability, registers, threads, static, dynamic, blocks, fraction, limiters",
    [
        # 64 warps of 8: 8 blocks; 32 registers x 32 = 4 x 256 a warp: 64 warps
        (80, 32, 256, 0, 0, 8, 1, ("warps", "registers")),
        # 33 registers take 1280 a warp: 16384 / 1280 = 12 warps in a sub-partition, 48 in all
        (80, 33, 256, 0, 0, 6, 0.75, ("registers",)),
        (80, 128, 256, 0, 0, 2, 0.25, ("registers",)),
        # 255 registers take 8192 a warp: 2 in a sub-partition, 8 in all
        (80, 255, 256, 0, 0, 1, 0.125, ("registers",)),
        (80, 255, 288, 0, 0, 0, 0, ("registers",)),
        # 9 warps are checked as 12: 12 x 5376 = 64512 just pass, 12 x 5632 do not
        (80, 168, 288, 0, 0, 1, 9 / 64, ("registers",)),
        (80, 169, 288, 0, 0, 0, 0, ("registers",)),
        # 164 KB / (48 + 1 KB)
        (80, 32, 128, 48 << 10, 0, 3, 3 * 4 / 64, ("shared memory",)),
        (80, 32, 128, 0, 163 << 10, 1, 4 / 64, ("shared memory",)),
        (80, 32, 128, 1, 163 << 10, 0, 0, ("shared memory",)),
        # 164 KB / 10.25 KB = 16; one byte more takes another 128
        (80, 16, 32, 0, 9472, 16, 16 / 64, ("shared memory",)),
        (80, 16, 32, 0, 9473, 15, 15 / 64, ("shared memory",)),
        (80, 16, 32, 0, 0, 32, 0.5, ("blocks",)),
        (80, 16, 33, 0, 0, 32, 1, ("warps", "blocks")),
        (86, 16, 32, 0, 0, 16, 16 / 48, ("blocks",)),
        (86, 40, 512, 0, 0, 3, 1, ("warps", "registers")),
        (86, 32, 1024, 0, 0, 1, 32 / 48, ("warps",)),
        (89, 16, 64, 0, 0, 24, 1, ("warps", "blocks")),
        (89, 32, 128, 49 << 10, 0, 2, 8 / 48, ("shared memory",)),
        (89, 32, 128, 99 << 10, 1, 0, 0, ("shared memory",)),
        (90, 32, 128, 0, 227 << 10, 1, 4 / 64, ("shared memory",)),
        (100, 32, 128, 0, 75 << 10, 3, 12 / 64, ("shared memory",)),
        (120, 16, 32, 0, 0, 24, 0.5, ("blocks",)),
        (120, 32, 128, 0, 99 << 10, 1, 4 / 48, ("shared memory",)),
    ],
)
def test_occupancy_by_hand(
    capability, registers, threads, static, dynamic, blocks, fraction, limiters
):
    found = occupancy(Resources(registers, static_shared=static), threads, dynamic, capability)
    assert (found.blocks, found.fraction, set(found.limiters)) == (blocks, fraction, set(limiters))
    assert found.warps == blocks * -(-threads // 32)


def test_barriers_limit_newer_architectures():
    # 24 of them on an sm_120
    assert occupancy(Resources(16, barriers=2), 64, 0, 120).blocks == 12
    assert occupancy(Resources(16, barriers=2), 64, 0, 120).limiters == ("barriers",)
    assert occupancy(Resources(16, barriers=2), 64, 0, 89).blocks == 24


@pytest.mark.parametrize(
    "threads, dynamic, capability, says",
    [
        (0, 0, 80, "threads is 0; accepted: 1 to 1024"),
        (1025, 0, 80, "threads is 1025"),
        (32, -1, 80, "dynamic_shared is -1; accepted: 0 and up"),
        (32, 0, 81, "capability is 81; accepted: 80, 86, 89, 90, 100, 120"),
    ],
)
def test_occupancy_checks_its_arguments(threads, dynamic, capability, says):
    with pytest.raises(ArgumentError, match=says):
        occupancy(Resources(32), threads, dynamic, capability)


def test_the_machine_s_devices_have_these_limits():
    for index, capability in ((0, 80), (1, 89), (2, 120)):
        with Device("ptx", index) as device:
            names = (
                "max_threads_per_multiprocessor", "max_blocks_per_multiprocessor",
                "max_shared_memory_per_multiprocessor", "max_shared_memory_per_block_optin",
            )  # fmt: skip
            threads, blocks, shared, block_shared = (device.attributes[n] for n in names)
            barriers = MULTIPROCESSORS[capability].barriers  # which no attribute says
            limits = Multiprocessor(threads // 32, blocks, shared, barriers)
            assert limits == MULTIPROCESSORS[capability]
            assert block_shared == MULTIPROCESSORS[capability].block_shared


# Reads "major minor warps shared threads registers static dynamic barriers" and writes the blocks
# that fit, and by warps, blocks, registers, shared memory and barriers alone.
OCCUPANCY = r"""
#include <climits>
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
  int major, minor, warps, shared, threads, registers, fixed, dynamic, barriers;
  while (scanf("%d %d %d %d %d %d %d %d %d", &major, &minor, &warps, &shared, &threads, &registers,
               &fixed, &dynamic, &barriers) == 9) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 32 * warps;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared;
    device.numSms = 1;
    device.sharedMemPerBlockOptin = shared - 1024;
    device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = 1024;
    function.numRegs = registers;
    function.sharedSizeBytes = fixed;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = dynamic;
    function.numBlockBarriers = barriers;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads,
                                                dynamic) != CUDA_OCC_SUCCESS) return 1;
    printf("%d %d %d %d %d %d\n", result.activeBlocksPerMultiprocessor, result.blockLimitWarps,
           result.blockLimitBlocks, result.blockLimitRegs, result.blockLimitSharedMem,
           result.blockLimitBarriers);
  }
}
"""
LIMITERS = ("warps", "blocks", "registers", "shared memory", "barriers")


def occupancy_header():
    places = [Path("/usr/local/cuda")]
    if home := os.environ.get("CUDA_HOME"):
        places.insert(0, Path(home))
    if found := shutil.which("nvcc"):
        places.append(Path(found).parents[1])
    return next((p / "include" for p in places if (p / "include/cuda_occupancy.h").is_file()), None)


def test_occupancy_is_that_of_the_toolkit(tmp_path):
    include = occupancy_header()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if include is None or compiler is None:
        pytest.skip("the toolkit's cuda_occupancy.h, or a C++ compiler, is not here")
    (tmp_path / "occupancy.cpp").write_text(OCCUPANCY)
    program = tmp_path / "occupancy"
    command = [compiler, "-w", "-O1", f"-I{include}", "-o", program, tmp_path / "occupancy.cpp"]
    subprocess.run(command, check=True)

    rng = np.random.default_rng(0)
    cases = []
    for capability, sm in MULTIPROCESSORS.items():
        sizes = [0, 1, 1024, 9472, 9473, 48 << 10, sm.block_shared, sm.block_shared + 1]
        for threads in (1, 32, 33, 64, 128, 192, 256, 288, 384, 512, 1000, 1024):
            for registers in (1, 16, 24, 32, 33, 40, 64, 65, 96, 128, 168, 169, 254, 255):
                for size in (*sizes, *map(int, rng.integers(0, sm.block_shared, 4))):
                    fixed = min(int(rng.integers(0, 48 << 10)), size)
                    barriers = int(rng.integers(0, 17))
                    cases.append((capability, threads, registers, fixed, size - fixed, barriers))
    lines = []
    for capability, threads, registers, fixed, dynamic, barriers in cases:
        sm = MULTIPROCESSORS[capability]
        given = (*divmod(capability, 10), sm.warps, sm.shared, threads, registers, fixed, dynamic)
        lines.append(" ".join(map(str, (*given, barriers))))
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == len(cases) > 10_000
    for case, (blocks, *limits) in zip(cases, rows, strict=True):
        capability, threads, registers, fixed, dynamic, barriers = case
        resources = Resources(registers, static_shared=fixed, barriers=barriers)
        found = occupancy(resources, threads, dynamic, capability)
        expected = {n for n, limit in zip(LIMITERS, limits, strict=True) if limit == blocks}
        assert (found.blocks, set(found.limiters)) == (blocks, expected), case
