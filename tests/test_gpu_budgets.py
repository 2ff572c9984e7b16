"""What the CUDA depthwise kernels may take, from counts, on EfficientNet-B0's layers in float16."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from layers import layers
from operators import Random

from effnet_fast.cuda import depthwise_conv
from effnet_fast.errors import BackendError
from effnet_fast.gpu import Device, fat_binary
from effnet_fast.gpu.counts import Counts
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act

DTYPE = torch.float16
BATCH, MULTIPROCESSORS = 8, 132  # an H100
B0 = layers("efficientnet_b0").depthwise


class Run(NamedTuple):
    counts: Counts
    blocks: int  # at the whole batch
    outputs: int


@pytest.fixture(scope="module")
def device():
    try:
        fat_binary.path("depthwise_conv")
    except BackendError as error:
        pytest.skip(str(error))
    with Device("ptx", threads=1) as device:
        yield device


def run(device, layer, channels=None):
    """One image, cut as it is in the batch."""
    _, size, k, _, _ = layer
    c = channels or layer.channels
    window, r = layer.window, Random(DTYPE)
    out = window.output_size(size, size)
    cut = depthwise_conv.tiling(
        BATCH, c, size, size, window, DTYPE.itemsize, MULTIPROCESSORS, c % 16 != 0
    )
    x = r(1, c, size, size).contiguous(memory_format=torch.channels_last)
    y = DeviceTensor.empty(device, (1, c, *out), (c * out[0] * out[1], 1, c * out[1], c), DTYPE)
    constants = depthwise_conv.pack(r.weight(c, 1, k, k), r(c))
    sums = (1, cut.tiles, c), (cut.tiles * c, c, 1)
    launch = depthwise_conv.launch(
        device,
        DeviceTensor.upload(device, x),
        DeviceTensor.upload(device, constants),
        y,
        window,
        Act.SWISH,
        DeviceTensor.empty(device, *sums, torch.float32),
        cut,
    )
    device.take_counts()
    device.launch(launch)
    device.synchronize()
    (counts,) = device.take_counts()
    return Run(Counts.parse(counts), BATCH * launch.grid[0], c * out[0] * out[1])


@pytest.mark.parametrize("layer", B0, ids=str)
def test_budgets(device, layer):
    counts, blocks, outputs = run(device, layer)
    x, y = counts.tensor("x"), counts.tensor("y")
    assert x.read.used_share >= 0.9
    assert y.write.used_share >= 0.95
    assert x.write.requests == y.read.requests == 0
    if layer.stride == 1:
        assert x.read.l2_bytes <= 1.35 * x.bytes
    # Every pixel that some window covers comes from memory, once; and every output goes there.
    assert x.read.dram_bytes <= x.bytes
    assert y.write.l2_bytes == y.write.dram_bytes == y.bytes == 2 * outputs
    assert counts.shared.conflict_ratio <= 1.1
    special = sum(
        count.thread for name, count in counts.opcodes.items() if name.startswith(("ex2", "rcp"))
    )
    assert special == counts.classes["special"].thread == 2 * outputs
    assert blocks >= 2 * MULTIPROCESSORS


# Of B0's widths a little less, so that pixels lie at any alignment of 2 bytes, or of 8. Between 128
# and 160 channels a block has about half of them: runs of 160 bytes begin and end within sectors.
@pytest.mark.parametrize("layer", B0, ids=str)
@pytest.mark.parametrize("less", [3, 4])
def test_sectors_at_any_alignment(device, layer, less):
    c = layer.channels - less
    counts, _, _ = run(device, layer, c)
    x, y = counts.tensor("x").read, counts.tensor("y").write
    assert (x + y).used_share >= (0.82 if 128 < c < 160 else 0.85)
