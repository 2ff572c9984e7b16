"""Triton's kernels for sm_120 on the machine's sm_120: a case of each, more in `make test-full`."""

from __future__ import annotations

import gpu_cases as cases
import pytest
import torch
from operators import Random
from test_classifier import compare as compare_classifier
from test_fused_mbconv import compare as compare_fused
from test_pointwise_conv import compare as compare_pointwise
from test_stem_conv import compare as compare_stem

from effnet_fast import ops
from effnet_fast.errors import BackendError
from effnet_fast.gpu.catalogue import MACHINE, select
from effnet_fast.gpu.counts import Counts
from effnet_fast.network import Window
from effnet_fast.ops import gpu_step

pytestmark = pytest.mark.capability(120)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
each_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Seconds each.
float16_first = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, id=str(dtype), marks=[] if dtype == torch.float16 else pytest.mark.full)
        for dtype in DTYPES
    ],
)
in_triton = pytest.mark.parametrize("impl", ["triton"])


# ---- kernels of the catalogue, on operands with NaN beside them ----------------------------------


def run(name, made):
    """In random order of blocks and warps."""
    (entry,) = select(name, ["triton"])
    try:
        ptx = entry.compile(120).ptx
    except BackendError as error:
        pytest.skip(str(error))
    assert ".target sm_120a" in ptx
    with cases.Bench(list(made), MACHINE[120], shuffle=True) as bench:
        bench.run(ptx)


def suffix(dtype):
    return str(dtype).removeprefix("torch.")


@float16_first
@pytest.mark.parametrize("k, s", [(3, 2), (7, 1)])
def test_depthwise_conv(k, s, dtype):
    run(f"depthwise_conv_k{k}s{s}_{suffix(dtype)}", cases.triton_cases(k, s, True, dtype))


@float16_first
def test_unaligned_depthwise_conv(dtype):
    run(f"depthwise_conv_unaligned_{suffix(dtype)}", cases.triton_cases(5, 1, False, dtype))


def test_depthwise_conv_total():
    run("depthwise_conv_total", cases.total_cases("triton"))


@each_type
@pytest.mark.parametrize("most, squeezed", [(32, (17, 31)), (256, (129, 256))])
def test_squeeze_excite(most, squeezed, dtype):
    sizes = ((2, 3, 272, squeezed[0], 0), (1, 1, 272, squeezed[1], 0))
    run(f"squeeze_excite_{most}_{suffix(dtype)}", cases.squeeze_cases("triton", dtype, 1, sizes))


@each_type
def test_swish(dtype):
    run(f"swish_{suffix(dtype)}", cases.swish_cases("triton", dtype, ((1040, 0, "swish"),)))


# ---- operators whose kernels are compiled for a layer --------------------------------------------


@in_triton
@each_type
@pytest.mark.parametrize("fusion", ["plain", "gate+residual", "gate+pool"])
@pytest.mark.parametrize("shape, cout", [((2, 64, 9, 9), 96), ((1, 41, 7, 5), 17)])
def test_pointwise_conv(impl, dtype, fusion, shape, cout):
    compare_pointwise(impl, dtype, Random()(*shape), cout, "swish", fusion)


@in_triton
@each_type
@pytest.mark.parametrize(
    "size, window",
    [
        ((33, 31), ((3, 3), (2, 2), (1, 1, 1, 1))),
        ((6, 5), ((2, 4), (1, 3), (0, 2, 3, 1))),  # with pairs of 16-bit integers
    ],
)
def test_stem_conv(impl, dtype, size, window):
    compare_stem(impl, dtype, Random()(1, 3, *size), 40, *window, "swish")


@in_triton
@float16_first
@pytest.mark.parametrize("fusion", ["plain", "project+residual"])
def test_fused_mbconv(impl, dtype, fusion):
    x, window = Random()(1, 24, 10, 10), Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    compare_fused(impl, dtype, x, 48, 24, window, "swish", fusion)


@in_triton
@each_type
def test_classifier(impl, dtype):
    compare_classifier(impl, dtype, Random()(17, 64), 33)


@in_triton
def test_what_is_newer_than_sm_89_is_executed(impl):
    device, r = gpu_step.machine(), Random(torch.float16)
    assert device.capability == 120
    device.take_counts()
    x, w1, w2 = r(1, 64, 9, 9), r.weight(16, 64), r.weight(64, 16)
    ops.pointwise_conv(x, r.weight(64, 64, 1, 1), r(64), act="swish", impl=impl)
    ops.squeeze_excite(Random()(2, 64), 9, w1, r(16), w2, r(64), impl=impl)
    executed = {name for text in device.take_counts() for name in Counts.parse(text).opcodes}
    for opcode in ("stmatrix.sync", "fma.rn.f32x2", "add.rn.f32.f16", "mma.sync"):
        assert any(name.startswith(opcode) for name in executed), opcode
