"""Counts of launches: read as the machine writes them, and what is derived from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from gpu_driver import KERNELS, entry

from effnet_fast.errors import ArgumentError
from effnet_fast.gpu import Device, Launch
from effnet_fast.gpu.counts import (
    Counts,
    InstructionCounts,
    SharedCounts,
    TensorCounts,
    Traffic,
    table,
)

# Row `lane` of 32 x `pitch` floats in shared memory is written along a column: conflicts, unless
# the pitch is odd. Every fourth float of x is read, and y is read twice, by two warps.
_HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
STRIDED = _HEADER + entry(
    "strided",
    """
  .shared .align 4 .b8 tile[4224];
  mov.u32 r1, tile;
  ld.param.u32 r2, [pitch];
  and.b32 r3, lane, 31;
  mul.lo.s32 r4, r3, r2;
  mad.lo.s32 r5, r4, 4, r1;
  setp.lt.u32 p0, lane, 32;
  @p0 st.shared.u32 [r5], lane;
  bar.sync 0;
  @p0 bra first;
  ld.shared.u32 r6, [r5];
first:
  ld.param.u64 rd1, [x];
  ld.param.u64 rd2, [y];
  mul.wide.u32 rd3, lane, 16;
  add.s64 rd4, rd1, rd3;
  ld.global.u32 r7, [rd4];
  mul.wide.u32 rd5, r3, 4;
  add.s64 rd6, rd2, rd5;
  ld.global.u32 r8, [rd6];
""",
    ".param .u64 x, .param .u64 y, .param .u32 pitch",
)


def run(device, ptx, name, grid, block, arguments, regions):
    device.take_counts()
    kernel = device.load(ptx).kernel(name)
    device.launch(Launch(kernel, grid, block, 0, arguments, regions))
    device.synchronize()
    (counted,) = device.take_counts()
    return counted


def run_strided(pitch):
    with Device("ptx") as device:
        x, y = device.upload(np.zeros(256, np.int32)), device.upload(np.zeros(32, np.int32))
        regions = (x.region("x", "r"), y.region("y", "r"))
        return run(device, STRIDED, "strided", (2, 1), (64,), (x, y, pitch), regions)


def test_what_the_machine_counts_is_read_and_written_back():
    counted = run_strided(32)
    counts = Counts.parse(counted)
    assert counts.to_dict() == counted
    assert json.loads(counts.to_json()) == counted
    assert Counts.parse(counts.to_json()) == counts
    assert Counts.parse(json.dumps(counted)) == counts
    assert (counts.kernel, counts.grid, counts.block) == ("strided", (2, 1, 1), (64, 1, 1))
    assert counts.shared_bytes == 4224
    assert counts.seconds > 0


def test_sectors_of_a_strided_read():
    counts = Counts.parse(run_strided(32))
    x, y = counts.tensor("x"), counts.tensor("y")
    # Two blocks of two warps: each warp 32 x 4 bytes out of 512, 16 sectors.
    assert x.read == Traffic(4, 512, 512, 64, 64, 32)
    assert x.write == x.atomic == Traffic()
    assert x.read.used_share == 0.25
    assert (x.read.l2_bytes, x.read.dram_bytes) == (2048, 1024)
    assert x.l2_ratio == 2.0  # every block reads all of its 1024 bytes
    # Both warps of a block read the same 128 bytes.
    assert y.read == Traffic(4, 512, 512, 16, 8, 4)
    assert (y.read.used_share, y.l2_ratio) == (1.0, 2.0)
    assert counts.traffic == x.read + y.read == Traffic(8, 1024, 1024, 80, 72, 36)
    assert counts.traffic.used_share == pytest.approx(1024 / (80 * 32))


@pytest.mark.parametrize("pitch, ways", [(32, 32), (33, 1), (2, 2), (4, 4), (1, 1)])
def test_bank_conflicts(pitch, ways):
    counts = Counts.parse(run_strided(pitch))
    # The first warp of each block stores, the second loads.
    expected = SharedCounts(2, 2 * ways, 2, 2 * 32 * 4)
    assert counts.shared_store == counts.shared_load == expected
    assert counts.shared_store.conflict_ratio == ways
    assert counts.shared == SharedCounts(4, 4 * ways, 4, 2 * 2 * 32 * 4)


def test_instructions():
    with Device("ptx") as device:
        x = device.upload(np.ones(100, np.int32))
        y = device.upload(np.ones(100, np.int32))
        regions = (y.region("y"), x.region("x", "r"))
        # 100 threads of 128 go on behind the bounds test: 4 lanes of the last warp.
        counted = run(device, KERNELS, "double_add", (4,), (32,), (y, x, 100), regions)
    counts = Counts.parse(counted)
    assert counts.classes["global_load"] == InstructionCounts(8, 200)
    assert counts.classes["global_load"].average_lanes == 25.0
    assert counts.classes["global_store"] == InstructionCounts(4, 100)
    assert counts.opcodes["mad.lo.s32"].warp == 8
    assert counts.warp_instructions == sum(o.warp for o in counts.opcodes.values())
    assert counts.thread_instructions == sum(o.thread for o in counts.opcodes.values())
    assert counts.average_lanes == counts.thread_instructions / counts.warp_instructions
    assert 25 < counts.average_lanes < 32
    y = counts.tensor("y")
    assert y.all == y.read + y.write
    assert y.all.sectors == 26  # 12.5 sectors, twice


def test_nothing_counted_is_nan_not_an_error():
    counts = Counts("nothing", (1, 1, 1), (32, 1, 1), tensors=(TensorCounts("empty", 0, 0),))
    assert math.isnan(counts.average_lanes)
    assert math.isnan(counts.traffic.used_share)
    assert math.isnan(counts.tensor("empty").l2_ratio)
    assert math.isnan(counts.shared.conflict_ratio)
    assert counts.warp_instructions == counts.thread_instructions == 0
    assert "nothing: grid 1 x 1 x 1" in str(counts)
    assert Counts.parse(counts.to_json()) == counts


def test_printed():
    counts = replace(Counts.parse(run_strided(32)), seconds=0.0)
    text = str(counts)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "strided: grid 2 x 1 x 1, block 64 x 1 x 1, 4,224 bytes of shared memory"
    assert "tensor bytes requests used L1 bytes L2 bytes of size DRAM" in lines
    assert "x read 1,024 4 25.0 % 2,048 2,048 2.00 1,024" in lines
    assert "y read 128 4 100.0 % 512 256 2.00 128" in lines
    assert "global_load 8 32.0" in lines
    assert lines[-1] == (
        "shared memory stores: 256 bytes in 2 requests, 64 wavefronts, 32.00 of the least"
    )
    assert all(line == line.rstrip() and len(line) <= 100 for line in text.splitlines())


def test_a_table_is_aligned():
    rows = [("name", "n", "why"), ("a", "10", "x"), ("long name", "5", "yy")]
    assert table(rows, indent=1, left=(0, 2)) == [
        " name        n  why",
        " a          10  x",
        " long name   5  yy",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: {k: v for k, v in d.items() if k != "tensors"},
        lambda d: d | {"more": 1},
        lambda d: d | {"tensors": [{"name": "x"}]},
        lambda d: d | {"shared_load": {"requests": 1, "wave": 2}},
        lambda d: d | {"opcodes": [{"warp": 1}]},
        lambda d: [],
        lambda d: "{",
        lambda d: None,
    ],
)
def test_something_else_is_refused(change):
    data = Counts("k", (1, 1, 1), (1, 1, 1)).to_dict()
    with pytest.raises(ArgumentError, match=r"the counts cannot be read \(\w+: "):
        Counts.parse(change(data))


def test_a_tensor_that_there_is_not():
    with pytest.raises(ArgumentError, match="name is 'z'; accepted: x, y"):
        Counts.parse(run_strided(1)).tensor("z")
