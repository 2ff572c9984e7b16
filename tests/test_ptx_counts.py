"""What the PTX machine counts, against numbers worked out by hand."""

import numpy as np
import pytest
from ptx_kernels import kernel

from effnet_fast.gpu import Device, Launch, Region

GRID, BLOCK = 3, 64
WARPS = GRID * BLOCK // 32


def count(
    body, regions=None, grid=GRID, block=BLOCK, shared=0, declarations="", target=80, **options
):
    """Run a kernel over x and y, 64 KB each; returns what was counted, tensors by their names."""
    with Device("ptx", 0 if target < 90 else 2, threads=1, **options) as device:
        x = device.upload(np.arange(16384, dtype=np.uint32))
        y = device.upload(np.zeros(16384, np.uint32))
        declared = regions(x, y) if regions else (x.region("x", "r"), y.region("y"))
        function = device.load(kernel(body, declarations, target=target)).kernel("kernel")
        device.launch(Launch(function, (grid,), (block,), shared, (x, y, 1), declared))
        device.synchronize()
        (counts,) = device.take_counts()
    counts["tensors"] = {tensor["name"]: tensor for tensor in counts["tensors"]}
    return counts


def traffic(requests, bytes, used_bytes, sectors, l2_sectors, dram_sectors):
    return {
        "requests": requests,
        "bytes": bytes,
        "used_bytes": used_bytes,
        "sectors": sectors,
        "l2_sectors": l2_sectors,
        "dram_sectors": dram_sectors,
    }


NOTHING = traffic(0, 0, 0, 0, 0, 0)
# Address of the lane's element, `stride` bytes apart and apart from other warps'.
STRIDED = """
  mul.wide.u32 q1, i, {stride};
  add.s64 q1, q1, x;
"""

# ---- global memory: 6 warps in 3 blocks ---------------------------------------------------------

READS = {
    # A warp's 128 bytes are 4 sectors, and nobody shares them.
    "stride_1": ("  ld.global.u32 r1, [xi];", traffic(6, 768, 768, 24, 24, 24)),
    "bytes": (
        STRIDED.format(stride=1) + "  ld.global.u8 r1, [q1];",
        traffic(6, 192, 192, 6, 6, 6),
    ),
    # One sector more for a warp; the sector between two warps of a block is fetched once from L2,
    # that between two blocks once from DRAM.
    "stride_1_shifted_by_a_word": (
        "  ld.global.u32 r1, [xi+4];",
        traffic(6, 768, 768, 30, 27, 25),
    ),
    "stride_2": (
        STRIDED.format(stride=8) + "  ld.global.u32 r1, [q1];",
        traffic(6, 768, 768, 48, 48, 48),
    ),
    "stride_32": (
        STRIDED.format(stride=128) + "  ld.global.u32 r1, [q1];",
        traffic(6, 768, 768, 192, 192, 192),
    ),
    "broadcast": ("  ld.global.u32 r1, [x+4];", traffic(6, 768, 24, 6, 3, 1)),
    "two_words": (
        STRIDED.format(stride=8) + "  ld.global.v2.u32 {r1, r2}, [q1];",
        traffic(6, 1536, 1536, 48, 48, 48),
    ),
    "four_words": (
        STRIDED.format(stride=16) + "  ld.global.v4.u32 {r1, r2, r3, r4}, [q1];",
        traffic(6, 3072, 3072, 96, 96, 96),
    ),
    "eight_bytes": (
        STRIDED.format(stride=8) + "  ld.global.u64 q2, [q1];",
        traffic(6, 1536, 1536, 48, 48, 48),
    ),
    # Requested twice, fetched once.
    "twice": (
        "  ld.global.u32 r1, [xi];\n  ld.global.u32 r2, [xi];",
        traffic(12, 1536, 1536, 48, 24, 24),
    ),
    "the_same_by_all_blocks": (
        """
  mul.wide.u32 q1, tid, 4;
  add.s64 q1, q1, x;
  ld.global.u32 r1, [q1];""",
        traffic(6, 768, 768, 24, 24, 8),
    ),
    "backwards": (
        """
  xor.b32 r1, i, 31;
  mul.wide.u32 q1, r1, 4;
  add.s64 q1, q1, x;
  ld.global.u32 r1, [q1];""",
        traffic(6, 768, 768, 24, 24, 24),
    ),
    "eight_lanes": (
        "  setp.lt.u32 p0, lane, 8;\n  @p0 ld.global.u32 r1, [xi];",
        traffic(6, 192, 192, 6, 6, 6),
    ),
    "no_lanes": ("  setp.gt.u32 p0, lane, 31;\n  @p0 ld.global.u32 r1, [xi];", NOTHING),
    "by_a_generic_address": ("  ld.u32 r1, [xi];", traffic(6, 768, 768, 24, 24, 24)),
    "asynchronous": (
        """
  .shared .align 16 .b8 tile[256];
  mov.u32 r1, tile;
  mad.lo.s32 r1, tid, 4, r1;
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.wait_all;""",
        traffic(6, 768, 768, 24, 24, 24),
    ),
}


@pytest.mark.parametrize("name", READS)
def test_reads(name):
    body, expected = READS[name]
    tensors = count(body)["tensors"]
    assert tensors["x"]["read"] == expected
    assert tensors["x"]["write"] == tensors["x"]["atomic"] == NOTHING
    assert tensors["y"]["read"] == tensors["y"]["write"] == NOTHING


def test_writes():
    body = "  st.global.u32 [yi], i;\n  st.global.u16 [yi], 1;"
    y = count(body)["tensors"]["y"]
    # 16-bit stores 4 bytes apart use half of the same sectors.
    assert y["write"] == traffic(12, 768 + 384, 768 + 384, 48, 24, 24)
    assert y["read"] == NOTHING


def test_atomics():
    body = """
  red.global.add.u32 [yi], 1;
  atom.global.add.u32 r1, [y], 1;"""
    y = count(body)["tensors"]["y"]
    # [y] is in a sector that its own block has touched already, but for two blocks.
    assert y["atomic"] == traffic(12, 1536, 768 + 24, 30, 24 + 2, 24)
    assert y["read"] == y["write"] == NOTHING


def test_a_request_over_two_tensors():
    body = """
  setp.lt.u32 p0, lane, 16;
  selp.b64 q1, xi, yi, p0;
  ld.global.u32 r1, [q1];"""
    tensors = count(body)["tensors"]
    half = traffic(6, 384, 384, 12, 12, 12)
    assert tensors["x"]["read"] == tensors["y"]["read"] == half


def test_regions_name_what_is_counted():
    def regions(x, y):
        return (
            Region("weights", x.address, 128, True, False),
            Region("bias", x.address + 128, 65536 - 128, True, False),
            y.region("output", "w"),
        )

    body = "  ld.global.u32 r1, [xi];\n  st.global.u32 [yi], r1;"
    counts = count(body, regions)
    assert list(counts["tensors"]) == ["weights", "bias", "output"]
    assert counts["tensors"]["weights"]["bytes"] == 128
    assert counts["tensors"]["weights"]["read"] == traffic(1, 128, 128, 4, 4, 4)
    assert counts["tensors"]["bias"]["read"] == traffic(5, 640, 640, 20, 20, 20)
    assert counts["tensors"]["output"]["write"] == traffic(6, 768, 768, 24, 24, 24)


def test_undeclared_allocations_are_named_by_their_addresses():
    body = "  ld.global.u32 r1, [xi];\n  ld.const.u32 r2, [table];\n  st.global.u32 [yi], r1;"
    counts = count(body, lambda x, y: (), declarations=".const .u32 table[2] = {1, 2};")
    tensors = counts["tensors"]
    assert sorted(tensors) == sorted(f"{t['base']:#x}+{t['bytes']}" for t in tensors.values())
    bases = [t["base"] for t in tensors.values()]
    assert bases == sorted(bases)
    by_size = {t["bytes"]: t["read"] for t in tensors.values() if t["read"]["requests"]}
    assert by_size[8] == traffic(6, 768, 24, 6, 3, 1)
    assert by_size[65536] == traffic(6, 768, 768, 24, 24, 24)


def test_each_launch_is_counted_anew():
    """What one launch fetched from DRAM the next one fetches again."""
    with Device("ptx", threads=1) as device:
        x, y = device.upload(np.zeros(64, np.uint32)), device.upload(np.zeros(64, np.uint32))
        function = device.load(kernel("  ld.global.u32 r1, [xi];")).kernel("kernel")
        for _ in range(2):
            device.launch(Launch(function, (1,), (64,), 0, (x, y, 1), (x.region("x"),)))
        device.synchronize()
        first, second = device.take_counts()
        assert device.take_counts() == []
    assert first["tensors"] == second["tensors"]
    assert first["tensors"][0]["read"] == traffic(2, 256, 256, 8, 8, 8)


# ---- shared memory: one warp --------------------------------------------------------------------

_TILE = """
  .shared .align 128 .b8 tile[8192];
  mov.u32 r1, tile;
  mad.lo.s32 r1, lane, {stride}, r1;
"""


def shared(requests, wavefronts, ideal_wavefronts, bytes):
    return {
        "requests": requests,
        "wavefronts": wavefronts,
        "ideal_wavefronts": ideal_wavefronts,
        "bytes": bytes,
    }


# Stride in bytes, type, and wavefronts: as they are and as they could be.
SHARED = {
    "stride_1": (4, "u32", 1, 1),
    "stride_2": (8, "u32", 2, 1),
    "stride_3": (12, "u32", 1, 1),
    "stride_4": (16, "u32", 4, 1),
    "stride_32": (128, "u32", 32, 1),
    "stride_32_padded": (132, "u32", 1, 1),
    "broadcast": (0, "u32", 1, 1),
    "halves": (2, "u16", 1, 1),
    "halves_stride_2": (4, "u16", 1, 1),
    "bytes": (1, "u8", 1, 1),
    # 16 lanes at a time
    "eight_bytes": (8, "u64", 2, 2),
    "eight_bytes_stride_2": (16, "u64", 4, 2),
    "eight_bytes_stride_16": (128, "u64", 32, 2),
    "eight_bytes_padded": (136, "u64", 2, 2),
    "two_words": (8, "v2.u32", 2, 2),
    # 8 lanes at a time
    "four_words": (16, "v4.u32", 4, 4),
    "four_words_stride_2": (32, "v4.u32", 8, 4),
    "four_words_stride_8": (128, "v4.u32", 32, 4),
    "four_words_padded": (144, "v4.u32", 4, 4),
}
_REGISTERS = {"u64": "q5", "u16": "h1", "u8": "h1", "v2.u32": "{i, i}", "v4.u32": "{i, i, i, i}"}
_LOADED = {"v2.u32": "{r5, r6}", "v4.u32": "{r5, r6, r7, r8}", "u32": "r5"}
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "v2.u32": 8, "v4.u32": 16}


@pytest.mark.parametrize("name", SHARED)
def test_bank_conflicts(name):
    stride, of_type, wavefronts, ideal = SHARED[name]
    source = _REGISTERS.get(of_type, "i") if stride else "n"
    body = (
        _TILE.format(stride=stride)
        + f"""
  mov.u64 q5, 0;
  mov.u16 h1, 0;
  st.shared.{of_type} [r1], {source};
  bar.warp.sync -1;
  ld.shared.{of_type} {_LOADED.get(of_type, source)}, [r1];"""
    )
    counts = count(body, grid=1, block=32)
    expected = shared(1, wavefronts, ideal, 32 * _SIZES[of_type])
    assert counts["shared_store"] == expected
    assert counts["shared_load"] == expected
    assert counts["shared_bytes"] == 8192


@pytest.mark.parametrize(
    "matrices, pitch, wavefronts",
    # Rows of 64 halves lie in the same banks; 8 more per row, and they do not.
    [("x1", 16, 1), ("x4", 16, 4), ("x4", 128, 32), ("x4", 144, 4), ("x2", 128, 16), ("x4", 80, 4)],
)
def test_matrices(matrices, pitch, wavefronts):
    number = int(matrices[1])
    registers = ", ".join(f"r{10 + i}" for i in range(number))
    body = (
        _TILE.format(stride=pitch)
        + f"""
  st.shared.v4.u32 [r1], {{i, i, i, i}};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.{matrices}.shared.b16 {{{registers}}}, [r1];"""
    )
    counts = count(body, grid=1, block=32)
    expected = shared(1, wavefronts, number, 128 * number)
    assert counts["shared_load"] == expected
    body = (
        _TILE.format(stride=pitch)
        + f"""
  stmatrix.sync.aligned.m8n8.{matrices}.shared.b16 [r1], {{{", ".join(["i"] * number)}}};"""
    )
    counts = count(body, grid=1, block=32, target=90)
    assert counts["shared_store"] == expected
    assert classes(counts)["shared_store"] == (1, 32)


def test_half_a_warp_and_atomics():
    body = (
        _TILE.format(stride=128)
        + """
  setp.lt.u32 p0, lane, 5;
  @p0 st.shared.u32 [r1], i;
  @p0 atom.shared.add.u32 r2, [r1], 1;
  @p0 ld.shared.u32 r3, [r1];
  setp.gt.u32 p1, lane, 31;
  @p1 ld.shared.u32 r3, [r1];"""
    )
    counts = count(body, grid=1, block=32)
    assert counts["shared_store"] == shared(2, 10, 2, 40)
    assert counts["shared_load"] == shared(1, 5, 1, 20)


def test_variables_side_by_side_have_the_banks_of_the_hardware():
    """What the machine puts between them moves no bank: 96 bytes further, 24 banks further."""
    body = """
  .shared .align 4 .b8 first[96];
  .shared .align 4 .b8 second[128];
  mov.u32 r1, second;
  mad.lo.s32 r1, lane, 4, r1;
  mov.u32 r2, first;
  st.shared.u32 [r2], n;
  st.shared.u32 [r1], i;"""
    counts = count(body, grid=1, block=32)
    assert counts["shared_store"] == shared(2, 2, 2, 256)
    assert counts["shared_bytes"] == 224


# ---- instructions -------------------------------------------------------------------------------

# What every kernel of ptx_kernels has.
_COMMON = {"param": 3, "move": 3, "integer": 4, "logic": 2, "branch": 1}


def classes(counts):
    return {name: (c["warp"], c["thread"]) for name, c in counts["classes"].items() if c["warp"]}


def test_classes():
    body = """
  .shared .align 16 .b8 tile[1024];
  .local .align 4 .b8 depot[8];
  mov.u32 r1, tile;
  mad.lo.s32 r1, tid, 16, r1;
  mov.b32 f0, 0f3F800000;
  add.f32 f1, f0, f0;
  fma.rn.f32 f1, f1, f0, f0;
  mov.b32 r2, 0x3C003C00;
  fma.rn.f16x2 r2, r2, r2, r2;
  cvt.f64.f32 q1, f1;
  add.f64 q1, q1, q1;
  ex2.approx.ftz.f32 f2, f1;
  rcp.approx.f32 f2, f2;
  cvt.rn.f16.f32 h1, f1;
  setp.lt.s32 p0, i, 5;
  selp.b32 r3, r2, i, p0;
  shl.b32 r3, r3, 2;
  st.shared.v4.u32 [r1], {r2, r2, r2, r2};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r4, r5, r6, r7}, [r1];
  ld.shared.u32 r8, [r1];
  mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f4, f5, f6, f7}, {r4, r5, r6, r7}, {r4, r5}, \
{f0, f0, f0, f0};
  ld.global.u32 r9, [xi];
  st.global.u32 [yi], r9;
  st.local.u32 [depot], r9;
  ld.local.u32 r9, [depot];
  red.global.add.u32 [yi], 1;
  bar.warp.sync -1;
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.commit_group;
  cp.async.wait_group 0;
  shfl.sync.bfly.b32 r9, r9, 1, 31, -1;
  vote.sync.any.pred p1, p0, -1;
  bar.sync 0;
  membar.gl;
  bra next;
next:"""
    extra = {
        "move": 4,  # mov three times, selp
        "integer": 1,
        "float": 2,
        "half": 1,
        "double": 1,
        "special": 2,
        "convert": 2,
        "compare": 1,
        "logic": 1,
        "shared_store": 1,
        "shared_load": 2,
        "tensor": 1,
        "global_load": 1,
        "global_store": 1,
        "local": 2,
        "atomic": 1,
        "async_copy": 3,
        "warp": 2,
        "barrier": 4,
        "branch": 1,
    }
    counts = count(body)
    expected = {name: _COMMON.get(name, 0) + extra.get(name, 0) for name in {**_COMMON, **extra}}
    assert classes(counts) == {name: (6 * n, 192 * n) for name, n in expected.items()}
    assert counts["branches"] == 12
    assert counts["divergent_branches"] == 0


def test_opcodes_are_listed_with_the_most_frequent_first():
    counts = count("  add.s32 r1, i, i;\n  add.s32 r1, i, i;\n  setp.lt.u32 p0, lane, 3;")
    opcodes = {o["name"]: (o["warp"], o["thread"]) for o in counts["opcodes"]}
    assert opcodes["add.s32"] == (12, 384)
    assert opcodes["add.s64"] == (12, 384)
    assert opcodes["mov.u32"] == (18, 576)
    assert opcodes["setp.lt.u32"] == (6, 192)
    threads = [o["thread"] for o in counts["opcodes"]]
    assert threads == sorted(threads, reverse=True)
    assert sum(threads) == sum(c["thread"] for c in counts["classes"].values())


def test_active_lanes_under_divergence():
    """Of a branch to both sides, each lane is counted where it is."""
    body = """
  setp.lt.u32 p0, lane, 8;
  @p0 bra few;
  add.f32 f1, f1, f1;
  add.f32 f1, f1, f1;
  bra meet;
few:
  rcp.approx.f32 f1, f1;
meet:
  shl.b32 r1, i, 1;
  @p0 ex2.approx.f32 f1, f1;
  @!p0 sin.approx.f32 f1, f1;"""
    counts = count(body)
    found = classes(counts)
    assert found["float"] == (12, 2 * 6 * 24)
    assert found["special"] == (6 + 6 + 6, 6 * (8 + 8 + 24))
    assert found["logic"] == (6 * 3, 192 * 3)  # with the common ones
    assert found["branch"] == (6 + 6 + 6, 6 * (8 + 24 + 32))
    assert counts["divergent_branches"] == 6


def test_a_loop_with_as_many_turns_as_the_lane():
    """The warp runs as often as its last lane: 32 times; lanes leave one by one."""
    body = """
  mov.u32 r1, 0;
again:
  min.u32 r2, r1, r1;
  add.u32 r1, r1, 1;
  setp.le.u32 p1, r1, lane;
  @p1 bra again;
  shl.b32 r1, r1, 1;"""
    counts = count(body, grid=1, block=32)
    found = classes(counts)
    assert found["compare"] == (32, 32 * 33 // 2)
    assert found["branch"] == (32 + 1, 31 * 32 // 2 + 32)
    assert found["logic"] == (3, 96)
    assert counts["divergent_branches"] == 31


def test_a_warp_that_is_not_whole():
    found = classes(count("  shl.b32 r1, i, 1;", block=40))
    assert found["logic"] == (3 * 2 * 3, 3 * 40 * 3)


def test_the_launch_is_named():
    counts = count("", grid=5, block=96)
    assert counts["kernel"] == "kernel"
    assert counts["grid"] == [5, 1, 1]
    assert counts["block"] == [96, 1, 1]
    assert counts["seconds"] > 0
