"""The launches that take every path through each matrix kernel, cut as no layer would be."""

from __future__ import annotations

import gpu_cases as cases
import pytest
import torch

from effnet_fast.cuda import expand_depthwise, expand_problem, pointwise_conv
from effnet_fast.errors import BackendError
from effnet_fast.gpu import fat_binary
from effnet_fast.gpu.catalogue import select

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run(name, dtype, made):
    """On the machine, in random order of blocks and warps."""
    (entry,) = select(f"{name}_{str(dtype).removeprefix('torch.')}", ["cuda"])
    try:
        ptx = entry.compile(80).ptx
    except BackendError as error:
        pytest.skip(str(error))
    with cases.Bench(list(made), shuffle=True) as bench:
        bench.run(ptx)


@pytest.mark.parametrize(
    "dtype, variant",
    [(dtype, variant) for dtype in DTYPES for variant in expand_depthwise.variants(dtype)],
)
def test_expand_depthwise(dtype, variant):
    k, s, layout, planes = variant
    cut = expand_depthwise.Tiling(1, 1, 1, planes, layout)
    name = expand_depthwise.kernel_name(cut, k, s, dtype).rpartition("_")[0]
    run(name, dtype, cases.expand_cases(*variant, dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_stem_depthwise(dtype):
    run("stem_depthwise_k3s1", dtype, cases.stem_cases(dtype))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "dtype, cut",
    [(dtype, cut) for dtype in DTYPES for cut in pointwise_conv.variants(dtype)],
    ids=lambda value: f"{value.m}x{value.n}" if hasattr(value, "m") else str(value),
)
def test_pointwise_conv(cut, gated, dtype):
    name = f"pointwise_conv{'_gated' * gated}_{cut.m}x{cut.n}"
    run(name, dtype, cases.pointwise_cases("cuda", dtype, cut, gated))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_excited_pointwise_conv(dtype):
    run("pointwise_conv_excited_32x32", dtype, cases.excited_cases(dtype))


@pytest.mark.parametrize("stem", ["expand_depthwise", "expand_depthwise_float"])
def test_tiles_leave_room_for_what_kernels_declare(stem):
    """In the shared memory of the GPUs that have the least."""
    try:
        resources = fat_binary.resources(stem)
    except BackendError as error:
        pytest.skip(str(error))
    declared = max(r.static_shared for kernels in resources.values() for r in kernels.values())
    assert expand_problem.SHARED + declared <= 99 << 10
