"""Kernels that nobody here wrote run right on the PTX machine, and nothing is reported on them."""

from __future__ import annotations

import pytest
from foreign_kernels import KERNELS, Foreign

from effnet_fast.gpu.catalogue import MACHINE
from effnet_fast.gpu.device import Device


@pytest.mark.parametrize("capability", [80, 89, 120])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_runs_right(kernel: Foreign, capability: int):
    ptx = kernel.ptx(capability)
    assert f".target sm_{80 if 'cutlass' in kernel.name else capability}" in ptx
    index = MACHINE[capability]
    for options in ({"threads": 1}, {"threads": 2}, {"shuffle": True, "seed": 1}):
        with Device("ptx", index, **options) as device:
            kernel.check(device, ptx)
