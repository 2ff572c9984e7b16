"""What the depthwise GPU kernels may take, from counts, on EfficientNet-B0's layers in float16; and
the baseline that they are compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from layers import layers
from tolerances import assert_parity, conv, sums

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gpu_counts import MULTIPROCESSORS, Operands, Run, run, run_baseline

from effnet_fast.errors import BackendError
from effnet_fast.gpu import Device, fat_binary
from effnet_fast.gpu.nvcc import find_nvcc

B0 = layers("efficientnet_b0").depthwise


@pytest.fixture(scope="module")
def device():
    try:
        fat_binary.path("depthwise_conv")
    except BackendError as error:
        pytest.skip(str(error))
    with Device("ptx", threads=1) as device:
        yield device


def check(run: Run, layer):
    """What was counted is a right result."""
    operands = Operands.of(layer)
    expected = conv(operands.x, operands.weight, operands.bias, "swish", layer.window)
    assert_parity(run.y, expected)
    return expected


@pytest.mark.parametrize("layer", B0, ids=str)
def test_budgets(device, layer):
    cuda = run(device, "cuda", layer)
    expected = check(cuda, layer)
    assert_parity(cuda.sums[None], sums(expected))
    (counts,) = cuda.counts
    x, y = counts.tensor("x"), counts.tensor("y")
    assert x.read.used_share >= 0.9
    assert y.write.used_share >= 0.95
    assert x.write.requests == y.read.requests == 0
    if layer.stride == 1:
        assert x.read.l2_bytes <= 1.35 * x.bytes
    # Every pixel that some window covers comes from memory, once; and every output goes there.
    assert x.read.dram_bytes <= x.bytes
    assert y.write.l2_bytes == y.write.dram_bytes == y.bytes == 2 * cuda.y.numel()
    assert counts.shared.conflict_ratio <= 1.1
    assert cuda.special_per_output == 2.0
    assert cuda.products >= (0.6 if layer.stride == 1 else 0.45)
    assert cuda.blocks >= 2 * MULTIPROCESSORS


# Of B0's widths a little less, so that pixels lie at any alignment of 2 bytes, or of 8. Between 128
# and 160 channels a block has about half of them: runs of 160 bytes begin and end within sectors.
@pytest.mark.parametrize("layer", B0, ids=str)
@pytest.mark.parametrize("less", [3, 4])
def test_sectors_at_any_alignment(device, layer, less):
    c = layer.channels - less
    (counts,) = run(device, "cuda", layer, c).counts
    x, y = counts.tensor("x").read, counts.tensor("y").write
    assert (x + y).used_share >= (0.82 if 128 < c < 160 else 0.85)


@pytest.mark.parametrize("layer", [B0[i] for i in (0, 5, 3, 10)], ids=str)
def test_the_baseline_takes_more(device, layer):
    """One of each window; the figures of docs/performance.md are made by the same functions."""
    try:
        find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))
    cuda, baseline = run(device, "cuda", layer), run_baseline(device, layer)
    operands = Operands.of(layer)
    before = conv(operands.x, operands.weight, operands.bias, "none", layer.window).value
    # Rounded to float16 twice, before swish, whose slope is at most 1.1, and after; 2^-14 is the
    # least normal number, and covers float32's own errors.
    error = (baseline.y - before * before.sigmoid()).abs()
    assert (error <= 2.1 * 2**-11 * before.abs() + 2**-14).all()
    means = baseline.y.double().mean((0, 2, 3))
    assert (baseline.sums - means).abs().max() < 1e-5
    assert baseline.instructions_per_output > 3 * cuda.instructions_per_output
    assert baseline.bytes_per_output("l2") > 1.1 * cuda.bytes_per_output("l2")
    assert baseline.bytes_per_output("dram") > 1.3 * cuda.bytes_per_output("dram")
