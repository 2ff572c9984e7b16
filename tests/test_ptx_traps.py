"""What the PTX machine stops: each wrong kernel is caught, the right one beside it runs."""

import numpy as np
import pytest
from ptx_kernels import Case, kernel

from effnet_fast.errors import GpuError, KernelFault
from effnet_fast.gpu import Device, Launch, Region

# One host thread in order first: only then it is known which block and thread are stopped.
SCHEDULES = [
    {"threads": 1},
    {"threads": 2},
    {"threads": 1, "shuffle": True, "seed": 1},
    {"threads": 1, "shuffle": True, "seed": 2},
    {"threads": 2, "shuffle": True, "seed": 3},
    {"threads": 2, "shuffle": True, "seed": 4},
]

X_TO_Y = "  ld.global.u32 r1, [xi];\n  st.global.u32 [yi], r1;"


def of_x(i, x):
    return x


def neighbour(distance):
    return lambda i, x: i ^ distance


# ---- out of bounds ------------------------------------------------------------------------------

OUT_OF_BOUNDS = [
    Case(
        "past_the_end",
        "out of bounds",
        """
  ld.global.u32 r1, [xi+4];  // wrong trap
  ld.global.u32 r1, [xi];  // right
  st.global.u32 [yi], r1;""",
        ("read of 4 bytes", "0 bytes past the end of an allocation of 256 bytes"),
        of_x,
        where="block (1, 0, 0), thread (31, 0, 0)",
    ),
    Case(
        "before_the_start",
        "out of bounds",
        """
  st.global.u32 [yi-4], i;  // wrong trap
  st.global.u32 [yi], i;  // right""",
        ("write of 4 bytes", "4 bytes before an allocation of 256 bytes"),
        lambda i, x: i,
        where="block (0, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "half_past_the_end",
        "out of bounds",
        """
  and.b32 r0, i, 15;
  mul.wide.u32 q0, r0, 16;
  add.s64 q1, x, q0;
  ld.global.v4.u32 {r1, r2, r3, r4}, [q1+16];  // wrong trap
  ld.global.v4.u32 {r1, r2, r3, r4}, [q1];  // right
  st.global.u32 [yi], r4;""",
        ("read of 16 bytes", "the last 8 bytes are past the end of an allocation of 264 bytes"),
        lambda i, x: 3 * (4 * (i % 16) + 3) + 1,
        x_bytes=264,
        where="block (0, 0, 0), thread (15, 0, 0)",
    ),
    Case(
        "between_allocations",
        "out of bounds",
        """
  ld.global.u32 r1, [xi+1000000];  // wrong trap
  ld.global.u32 r1, [xi];  // right
  st.global.u32 [yi], r1;""",
        ("read of 4 bytes", "bytes before an allocation"),
        of_x,
    ),
    Case(
        "null_pointer",
        "out of bounds",
        """
  mov.u64 xi, 0;  // wrong
  ld.global.u32 r1, [xi];  // trap
  st.global.u32 [yi], r1;""",
        ("read of 4 bytes at 0x0", "in no allocation"),
        of_x,
    ),
    Case(
        "end_of_the_address_space",
        "out of bounds",
        """
  mov.u64 yi, -4;  // wrong
  st.global.u32 [yi], i;  // trap""",
        ("write of 4 bytes at 0xfffffffffffffffc", "in no allocation"),
        lambda i, x: i,
    ),
    Case(
        "end_of_the_address_space_after_an_access",
        "out of bounds",
        """
  mov.u32 r1, 0;
again:
  ld.global.u32 r2, [xi];  // trap
  add.s32 r1, r1, 1;
  mov.u64 xi, -4;  // wrong
  setp.lt.u32 p0, r1, 2;
  @p0 bra again;
  st.global.u32 [yi], r2;""",
        ("read of 4 bytes at 0xfffffffffffffffc",),
        of_x,
    ),
    Case(
        "atomic_past_the_end",
        "out of bounds",
        """
  red.global.add.u32 [yi+4], 7;  // wrong trap
  red.global.add.u32 [yi], 7;  // right""",
        ("write of 4 bytes", "past the end of an allocation"),
        lambda i, x: 7,
    ),
    Case(
        "past_a_module_variable",
        "out of bounds",
        """
  and.b32 r0, lane, 3;
  add.s32 r0, r0, 1;  // wrong
  mul.wide.u32 q0, r0, 4;
  mov.u64 q1, table;
  add.s64 q1, q1, q0;
  ld.const.u32 r1, [q1];  // trap
  st.global.u32 [yi], r1;""",
        ("read of 4 bytes", "0 bytes past the end of an allocation of 16 bytes"),
        lambda i, x: 10 + i % 4,
        declarations=".const .align 4 .u32 table[4] = {10, 11, 12, 13};",
        where="block (0, 0, 0), thread (3, 0, 0)",
    ),
    Case(
        "into_the_next_shared_variable",
        "out of bounds",
        """
  .shared .align 4 .b8 first[128];
  .shared .align 4 .b8 second[128];
  mov.u32 r1, first;
  shl.b32 r2, lane, 2;
  add.s32 r1, r1, r2;
  st.shared.u32 [r1+4], i;  // wrong trap
  st.shared.u32 [r1], i;  // right
  ld.shared.u32 r3, [r1];
  st.shared.u32 [second], 0;
  st.global.u32 [yi], r3;""",
        ("shared first + 128 is past the end of the variable",),
        lambda i, x: i,
        where="block (0, 0, 0), thread (31, 0, 0)",
    ),
    Case(
        "vector_past_a_short_shared_variable",
        "out of bounds",
        """
  .shared .align 16 .b8 first[20];
  .shared .align 16 .b8 second[16];
  st.shared.v4.u32 [first+16], {n, n, n, n};  // wrong trap
  st.shared.v4.u32 [first], {n, n, n, n};  // right
  st.shared.v4.u32 [second], {n, n, n, n};
  st.global.u32 [yi], n;""",
        ("shared first + ", "past the end of the variable"),
        lambda i, x: 1,
    ),
    Case(
        "before_the_first_shared_variable",
        "out of bounds",
        """
  .shared .align 4 .b8 tile[128];
  mov.u32 r1, tile;
  st.shared.u32 [r1-4], n;  // wrong trap
  st.shared.u32 [r1], n;  // right
  st.global.u32 [yi], n;""",
        ("4 bytes at shared address",),
        lambda i, x: 1,
    ),
    Case(
        "past_dynamic_shared",
        "out of bounds",
        """
  mov.u32 r1, dynamic;
  shl.b32 r2, lane, 2;
  add.s32 r1, r1, r2;
  st.shared.u32 [r1+4], i;  // wrong trap
  st.shared.u32 [r1], i;  // right
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("4 bytes at shared address 0x80", "the block has 128 bytes"),
        lambda i, x: i,
        declarations=".extern .shared .align 16 .b8 dynamic[];",
        shared=128,
        where="block (0, 0, 0), thread (31, 0, 0)",
    ),
    Case(
        "past_dynamic_shared_by_a_generic_address",
        "out of bounds",
        """
  mov.u64 q1, dynamic;
  cvta.shared.u64 q1, q1;
  mul.wide.u32 q2, lane, 4;
  add.s64 q1, q1, q2;
  st.u32 [q1+4], i;  // wrong trap
  st.u32 [q1], i;  // right
  ld.u32 r3, [q1];
  st.global.u32 [yi], r3;""",
        ("4 bytes at shared address 0x80", "the block has 128 bytes"),
        lambda i, x: i,
        declarations=".extern .shared .align 16 .b8 dynamic[];",
        shared=128,
    ),
    Case(
        "matrix_row_past_shared",
        "out of bounds",
        """
  mov.u32 r1, dynamic;
  shl.b32 r2, lane, 4;
  add.s32 r1, r1, r2;
  st.shared.v4.u32 [r1], {i, i, i, i};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r2, r3, r4, r5}, [r1+16];  // wrong trap
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r2, r3, r4, r5}, [r1];  // right
  st.global.u32 [yi], r2;""",
        ("16 bytes at shared address 0x200",),
        lambda i, x: 32 * (i // 32) + i % 32 // 4,
        declarations=".extern .shared .align 16 .b8 dynamic[];",
        shared=512,
    ),
    Case(
        "stored_matrix_row_past_shared",
        "out of bounds",
        """
  mov.u32 r1, dynamic;
  shl.b32 r2, lane, 4;
  add.s32 r1, r1, r2;
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1+16], {i, i, i, i};  // wrong trap
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1], {i, i, i, i};  // right
  bar.warp.sync -1;
  ld.shared.u32 r2, [r1];
  st.global.u32 [yi], r2;""",
        ("16 bytes at shared address 0x200", "the block has 512 bytes"),
        lambda i, x: 32 * (i // 32) + 4 * (i % 8),
        declarations=".extern .shared .align 16 .b8 dynamic[];",
        shared=512,
        where="block (0, 0, 0), thread (31, 0, 0)",
        target=90,
    ),
    Case(
        "stored_matrix_row_past_a_variable",
        "out of bounds",
        """
  .shared .align 16 .b8 tile[128];
  .shared .align 16 .b8 other[128];
  mov.u32 r1, tile;
  mov.u32 r2, other;
  mad.lo.s32 r1, lane, 16, r1;
  stmatrix.sync.aligned.m8n8.x2.shared.b16 [r1], {i, i};  // wrong trap
  stmatrix.sync.aligned.m8n8.x1.shared.b16 [r1], {i};  // right
  bar.warp.sync -1;
  and.b32 r3, lane, 7;
  mov.u32 r1, tile;
  mad.lo.s32 r1, r3, 16, r1;
  st.shared.u32 [r2], 5;
  ld.shared.u32 r4, [r1];
  st.global.u32 [yi], r4;""",
        ("shared tile + 128 is past the end of the variable",),
        lambda i, x: 32 * (i // 32) + 4 * (i % 8),
        where="block (0, 0, 0), thread (8, 0, 0)",
        target=90,
    ),
    Case(
        "async_copy_from_past_the_end",
        "out of bounds",
        """
  .shared .align 16 .b8 tile[128];
  mov.u32 r1, tile;
  shl.b32 r2, lane, 2;
  add.s32 r1, r1, r2;
  cp.async.ca.shared.global [r1], [xi+4], 4;  // wrong trap
  cp.async.ca.shared.global [r1], [xi], 4;  // right
  cp.async.wait_all;
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("read of 4 bytes", "past the end of an allocation"),
        of_x,
    ),
    Case(
        "async_copy_to_past_shared",
        "out of bounds",
        """
  .shared .align 16 .b8 tile[128];
  mov.u32 r1, tile;
  shl.b32 r2, lane, 2;
  add.s32 r1, r1, r2;
  cp.async.ca.shared.global [r1+4], [xi], 4;  // wrong trap
  cp.async.ca.shared.global [r1], [xi], 4;  // right
  cp.async.wait_all;
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("past the end of the variable",),
        of_x,
        where="thread (31, 0, 0)",
    ),
    Case(
        "past_local",
        "out of bounds",
        """
  .local .align 4 .b8 depot[16];
  mov.u32 r1, 0;
again:
  mov.u64 q1, depot;
  mul.wide.u32 q2, r1, 4;
  add.s64 q1, q1, q2;
  st.local.u32 [q1], i;  // trap
  add.s32 r1, r1, 1;
  setp.lt.u32 p0, r1, 5;  // wrong
  setp.lt.u32 p0, r1, 4;  // right
  @p0 bra again;
  ld.local.u32 r2, [depot+12];
  st.global.u32 [yi], r2;""",
        ("4 bytes at local address 0x10", "a thread has 16 bytes"),
        lambda i, x: i,
    ),
    Case(
        "past_the_parameters",
        "out of bounds",
        """
  ld.param.u32 r1, [n_arg+4];  // wrong trap
  ld.param.u32 r1, [n_arg];  // right
  st.global.u32 [yi], r1;""",
        ("parameter bytes at 20 of 20",),
        lambda i, x: 9,
        n=9,
    ),
]

# ---- outside what the launch declares -----------------------------------------------------------


def half_of_x(x, y):
    return Region("input", x.address, x.bytes // 2), y.region("output")


def both(x, y):
    return x.region("input", "r"), y.region("output", "w")


def updated(x, y):
    return x.region("input", "r"), y.region("output", "rw")


UNDECLARED = [
    Case(
        "outside_the_regions",
        "undeclared access",
        "  ld.global.u32 r1, [xi];  // trap\n  st.global.u32 [yi], r1;",
        ("read of 4 bytes", "in no region that the launch declares", "0 bytes past input"),
        of_x,
        regions=both,
        wrong_regions=half_of_x,
        where="block (1, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "writes_its_input",
        "undeclared access",
        """
  ld.global.u32 r1, [xi];
  st.global.u32 [xi], r1;  // wrong trap
  st.global.u32 [yi], r1;""",
        ("write of 4 bytes", "in input, which the launch declares read-only"),
        of_x,
        regions=both,
    ),
    Case(
        "reads_its_output",
        "undeclared access",
        """
  ld.global.u32 r1, [xi];
  ld.global.u32 r2, [yi];  // wrong trap
  st.global.u32 [yi], r1;""",
        ("read of 4 bytes", "in output, which the launch declares write-only"),
        of_x,
        regions=both,
    ),
    Case(
        "atomic_on_its_input",
        "undeclared access",
        """
  red.global.add.u32 [xi], 1;  // wrong trap
  red.global.add.u32 [yi], 1;  // right""",
        ("write of 4 bytes", "in input, which the launch declares read-only"),
        lambda i, x: 1,
        regions=updated,
    ),
    Case(
        "atomic_on_an_output_that_is_not_read",
        "undeclared access",
        "  red.global.add.u32 [yi], 1;  // trap",
        ("in output, which the launch declares write-only",),
        lambda i, x: 1,
        regions=updated,
        wrong_regions=both,
    ),
    Case(
        "atomic_on_a_parameter",
        "undeclared access",
        """
  mov.u64 q1, n_arg;
  cvta.param.u64 q1, q1;
  red.add.u32 [q1], 1;  // wrong trap
  ld.u32 r1, [q1];
  st.global.u32 [yi], r1;""",
        ("atomics are of global and shared memory",),
        lambda i, x: 5,
        n=5,
    ),
    Case(
        "writes_a_parameter",
        "undeclared access",
        """
  mov.u64 q1, n_arg;
  cvta.param.u64 q1, q1;
  st.u32 [q1], 1;  // wrong trap
  ld.u32 r1, [q1];
  st.global.u32 [yi], r1;""",
        ("parameters cannot be written",),
        lambda i, x: 5,
        n=5,
    ),
    Case(
        "writes_a_constant",
        "undeclared access",
        """
  mov.u64 q1, table;
  st.global.u32 [q1], 5;  // wrong trap
  ld.const.u32 r1, [table];
  st.global.u32 [yi], r1;""",
        ("write of 4 bytes", "constant"),
        lambda i, x: 5,
        declarations=".const .align 4 .u32 table[1] = {5};",
    ),
]

# ---- misaligned ---------------------------------------------------------------------------------

MISALIGNED = [
    Case(
        "global_word",
        "misaligned",
        """
  add.s64 xi, xi, 2;  // wrong
  ld.global.u32 r1, [xi];  // trap
  st.global.u32 [yi], r1;""",
        ("is not a multiple of 4 bytes",),
        of_x,
    ),
    Case(
        "global_vector",
        "misaligned",
        """
  and.b32 r0, i, 7;
  mul.wide.u32 q0, r0, 16;
  add.s64 q0, q0, x;
  add.s64 q0, q0, 8;  // wrong
  ld.global.v4.u32 {r1, r2, r3, r4}, [q0];  // trap
  st.global.u32 [yi], r2;""",
        ("is not a multiple of 16 bytes",),
        lambda i, x: 3 * (4 * (i % 8) + 1) + 1,
    ),
    Case(
        "global_atomic",
        "misaligned",
        """
  atom.global.add.u64 q2, [y+4], 1;  // wrong trap
  atom.global.add.u64 q2, [y+8], 1;  // right""",
        ("is not a multiple of 8 bytes",),
        lambda i, x: np.where(i == 2, 64, 0),
    ),
    Case(
        "shared_word",
        "misaligned",
        """
  .shared .align 16 .b8 tile[128];
  mov.u32 r1, tile;
  shl.b32 r2, lane, 2;
  shl.b32 r2, lane, 1;  // wrong
  add.s32 r1, r1, r2;
  st.shared.u32 [r1], i;  // trap
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("address 0x2 is not a multiple of 4 bytes",),
        lambda i, x: i,
        where="block (0, 0, 0), thread (1, 0, 0)",
    ),
    Case(
        "shared_vector",
        "misaligned",
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r1, tile;
  mad.lo.s32 r1, lane, 20, r1;  // wrong
  mad.lo.s32 r1, lane, 32, r1;  // right
  st.shared.v4.u32 [r1], {i, i, i, i};  // trap
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("address 0x14 is not a multiple of 16 bytes",),
        lambda i, x: i,
        where="block (0, 0, 0), thread (1, 0, 0)",
    ),
    Case(
        "local_double",
        "misaligned",
        """
  .local .align 8 .b8 depot[24];
  st.local.u64 [depot+4], q0;  // wrong trap
  st.local.u64 [depot+8], xi;
  ld.local.u64 q1, [depot+8];
  ld.global.u32 r1, [q1];
  st.global.u32 [yi], r1;""",
        ("address 0x4 is not a multiple of 8 bytes",),
        of_x,
    ),
    Case(
        "matrix_row",
        "misaligned",
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r1, tile;
  mad.lo.s32 r2, lane, 24, r1;  // wrong
  mad.lo.s32 r2, lane, 32, r1;  // right
  mad.lo.s32 r3, lane, 32, r1;
  st.shared.v4.u32 [r3], {i, i, i, i};
  st.shared.v4.u32 [r3+16], {i, i, i, i};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r4}, [r2];  // trap
  st.global.u32 [yi], r4;""",
        ("address 0x18 is not a multiple of 16 bytes",),
        lambda i, x: 32 * (i // 32) + i % 32 // 4,
    ),
    Case(
        "stored_matrix_row",
        "misaligned",
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r1, tile;
  mad.lo.s32 r2, lane, 24, r1;  // wrong
  mad.lo.s32 r2, lane, 32, r1;  // right
  stmatrix.sync.aligned.m8n8.x1.shared.b16 [r2], {i};  // trap
  bar.warp.sync -1;
  and.b32 r3, lane, 7;
  mad.lo.s32 r3, r3, 32, r1;
  ld.shared.u32 r4, [r3];
  st.global.u32 [yi], r4;""",
        ("address 0x18 is not a multiple of 16 bytes",),
        lambda i, x: 32 * (i // 32) + 4 * (i % 8),
        where="block (0, 0, 0), thread (1, 0, 0)",
        target=90,
    ),
    Case(
        "stored_matrix_row_with_an_undefined_element",
        "misaligned",
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r1, tile;
  mad.lo.s32 r2, lane, 24, r1;  // wrong
  mad.lo.s32 r2, lane, 32, r1;  // right
  setp.ne.u32 p0, lane, 9;
  @p0 mov.u32 r3, i;
  stmatrix.sync.aligned.m8n8.x1.shared.b16 [r2], {r3};  // trap
  bar.warp.sync -1;
  and.b32 r3, lane, 7;
  mad.lo.s32 r3, r3, 32, r1;
  ld.shared.u32 r4, [r3];
  st.global.u32 [yi], r4;""",
        ("address 0x18 is not a multiple of 16 bytes",),
        lambda i, x: 32 * (i // 32) + 4 * (i % 8),
        target=90,
    ),
    Case(
        "async_copy_of_16_bytes",
        "misaligned",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r1, tile;
  mad.lo.s32 r1, lane, 16, r1;
  and.b32 r0, i, 7;
  mul.wide.u32 q0, r0, 16;
  add.s64 q0, q0, x;
  add.s64 q0, q0, 4;  // wrong
  cp.async.cg.shared.global [r1], [q0], 16;  // trap
  cp.async.wait_all;
  ld.shared.u32 r3, [r1+8];
  st.global.u32 [yi], r3;""",
        ("is not a multiple of 16 bytes",),
        lambda i, x: 3 * (4 * (i % 8) + 2) + 1,
    ),
]

# ---- uninitialised ------------------------------------------------------------------------------

_TILE = """
  .shared .align 16 .b8 tile[512];
  mov.u32 r1, tile;
  shl.b32 r2, lane, 2;
  add.s32 r1, r1, r2;"""
_FILL = "\n  st.shared.u32 [r1], lane;  // right"
_FROM = "was read from shared tile + 0"
# A's rows are 1, B's columns 2: products over K = 16 are 32.
_MMA = """
  .shared .align 16 .b8 tile[512];
  mov.u32 r1, tile;
  mad.lo.s32 r1, lane, 16, r1;
  mov.u32 r2, 0x3C003C00;
  st.shared.v4.u32 [r1], {r2, r2, r2, r2};  // right
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r4, r5, r6, r7}, [r1];
  mov.u32 r8, 0x40004000;
  mov.b32 f0, 0;
  mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f1, f2, f3, f4}, {r4, r5, r6, r7}, """

# Lane 9 has no value.
_STORED_MATRIX = """
  .shared .align 16 .b8 tile[512];
  mov.u32 r1, tile;
  mad.lo.s32 r1, lane, 16, r1;
  setp.ne.u32 p0, lane, 9;
  @!p0 mov.u32 r2, lane;  // right
  @p0 mov.u32 r2, lane;
  stmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 [r1], {{r2}};
  bar.warp.sync -1;
  setp.lt.u32 p1, lane, 8;"""

UNINITIALIZED = [
    Case(
        "global_never_written",
        "uninitialized",
        """
  mov.u64 xi, yi;  // right
  ld.global.u32 r1, [xi];  // trap
  st.global.u32 [yi], 4;""",
        ("read of 4 bytes", "which nothing has written"),
        lambda i, x: 4,
        x_written=False,
    ),
    Case(
        "global_written_in_part",
        "uninitialized",
        """
  setp.lt.u32 p0, lane, 31;
  setp.lt.u32 p0, lane, 32;  // right
  @p0 st.global.u16 [xi], 7;
  ld.global.u16 h1, [xi];  // trap
  st.global.u16 [yi], h1;""",
        ("read of 2 bytes", "which nothing has written"),
        lambda i, x: 7,
        x_written=False,
        where="block (0, 0, 0), thread (31, 0, 0)",
    ),
    Case(
        "global_atomic_never_written",
        "uninitialized",
        """
  red.global.add.u32 [xi], 3;  // wrong trap
  red.global.add.u32 [yi], 3;""",
        ("read of 4 bytes", "which nothing has written"),
        lambda i, x: 3,
        x_written=False,
    ),
    Case(
        "shared_to_a_store",
        "uninitialized",
        _TILE
        + _FILL
        + """
  ld.shared.u32 r3, [r1];
  add.s32 r3, r3, 1;
  st.global.u32 [yi], r3;  // trap""",
        ("the value that it stores was never set", _FROM, "ld.shared.u32 r3, [r1];"),
        lambda i, x: i % 32 + 1,
        where="block (0, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "shared_to_an_address",
        "uninitialized",
        _TILE
        + _FILL
        + """
  ld.shared.u32 r3, [r1];
  mul.wide.u32 q1, r3, 4;
  add.s64 q1, q1, x;
  ld.global.u32 r4, [q1];  // trap
  st.global.u32 [yi], r4;""",
        ("its address was never set", _FROM),
        lambda i, x: 3 * (i % 32) + 1,
    ),
    Case(
        "shared_to_a_predicate",
        "uninitialized",
        _TILE
        + _FILL
        + """
  ld.shared.u32 r3, [r1];
  setp.gt.u32 p0, r3, 7;
  @p0 st.global.u32 [yi], 1;  // trap""",
        ("its predicate was never set", _FROM),
        lambda i, x: i % 32 > 7,
    ),
    Case(
        "shared_to_a_branch",
        "uninitialized",
        _TILE
        + _FILL
        + """
  ld.shared.u32 r3, [r1];
  setp.gt.u32 p0, r3, 7;
  @!p0 bra skip;  // trap
  st.global.u32 [yi], 1;
skip:""",
        ("its predicate was never set", _FROM),
        lambda i, x: i % 32 > 7,
    ),
    Case(
        "shared_to_an_atomic",
        "uninitialized",
        _TILE
        + _FILL
        + """
  ld.shared.u32 r3, [r1];
  red.global.add.u32 [yi], r3;  // trap""",
        ("its operand was never set", _FROM),
        lambda i, x: i % 32,
    ),
    Case(
        "atomic_on_shared",
        "uninitialized",
        _TILE
        + _FILL
        + """
  atom.shared.add.u32 r3, [r1], 5;  // trap
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("atomic on shared tile + 0, which holds no defined value",),
        lambda i, x: i % 32 + 5,
    ),
    # nvcc packs registers that nothing writes, to look at the other half alone.
    Case(
        "half_of_a_register",
        "uninitialized",
        """
  setp.eq.u32 p1, n, 0;
  @p1 mov.u32 r3, 5;  // wrong
  mov.b64 q3, {lane, r3};
  cvt.u32.u64 r4, q3;
  st.global.u32 [yi], r4;  // trap""",
        ("the value that it stores was never set",),
        lambda i, x: i % 32,
    ),
    Case(
        "shared_to_an_mma",
        "uninitialized",
        _MMA
        + """{r8, r8}, {f0, f0, f0, f0};
  cvt.rzi.s32.f32 r9, f4;
  st.global.u32 [yi], r9;  // trap""",
        ("the value that it stores was never set", "was read from shared tile + "),
        lambda i, x: 32,
    ),
    # Lane 9 has the second pair of row 2; transposed, the third element of rows 2 and 3.
    Case(
        "shared_from_a_matrix",
        "uninitialized",
        _STORED_MATRIX.format(trans="")
        + """
  @p1 ld.shared.u32 r4, [r1+4];
  @p1 st.global.u32 [yi], r4;  // trap""",
        ("the value that it stores was never set", "shared tile + 36"),
        lambda i, x: np.where(i % 32 < 8, 4 * (i % 32) + 1, 0),
        where="block (0, 0, 0), thread (2, 0, 0)",
        target=90,
    ),
    Case(
        "shared_from_a_transposed_matrix",
        "uninitialized",
        _STORED_MATRIX.format(trans=".trans")
        + """
  @p1 ld.shared.u16 r4, [r1+4];
  @p1 st.global.u32 [yi], r4;  // trap""",
        ("the value that it stores was never set", "shared tile + 36"),
        lambda i, x: np.where(i % 32 < 8, np.where(i % 2, 0, 8 + i % 32 // 2), 0),
        where="block (0, 0, 0), thread (2, 0, 0)",
        target=90,
    ),
    Case(
        "address_of_a_stored_matrix",
        "uninitialized",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r1, tile;
  setp.lt.u32 p0, lane, 7;  // wrong
  setp.lt.u32 p0, lane, 8;  // right
  @p0 mad.lo.s32 r2, lane, 16, r1;
  stmatrix.sync.aligned.m8n8.x1.shared.b16 [r2], {lane};  // trap
  bar.warp.sync -1;
  ld.shared.u32 r3, [r1+16];
  st.global.u32 [yi], r3;""",
        ("its address was never set",),
        lambda i, x: 4,
        where="block (0, 0, 0), thread (7, 0, 0)",
        target=90,
    ),
    Case(
        "pair_of_floats",
        "uninitialized",
        """
  mov.b32 f0, 0f3F800000;
  setp.ne.u32 p0, lane, 9;  // wrong
  setp.ne.u32 p0, lane, 99;  // right
  @p0 mov.b32 f1, 0f40000000;
  mov.b64 q1, {f0, f0};
  mov.b64 q2, {f0, f1};
  fma.rn.f32x2 q1, q1, q2, q1;
  mov.b64 {f2, f3}, q1;
  cvt.rzi.s32.f32 r1, f3;
  st.global.u32 [yi], r1;  // trap""",
        ("the value that it stores was never set",),
        lambda i, x: 3,
        where="block (0, 0, 0), thread (9, 0, 0)",
        target=120,
    ),
    Case(
        "shared_through_a_shuffle",
        "uninitialized",
        _TILE
        + """
  setp.ne.u32 p0, lane, 9;  // wrong
  setp.ne.u32 p0, lane, 99;  // right
  @p0 st.shared.u32 [r1], lane;
  ld.shared.u32 r3, [r1];
  shfl.sync.bfly.b32 r4, r3, 1, 31, -1;
  st.global.u32 [yi], r4;  // trap""",
        ("the value that it stores was never set", "shared tile + 36"),
        lambda i, x: i % 32 ^ 1,
        where="block (0, 0, 0), thread (8, 0, 0)",
    ),
    Case(
        "shared_through_shared",
        "uninitialized",
        _TILE
        + _FILL
        + """
  ld.shared.u32 r3, [r1];
  st.shared.u32 [r1+256], r3;
  ld.shared.u32 r4, [r1+256];
  st.global.u32 [yi], r4;  // trap""",
        ("the value that it stores was never set",),
        lambda i, x: i % 32,
    ),
    Case(
        "shared_of_the_block_before",
        "uninitialized",
        _TILE
        + """
  setp.eq.u32 p0, cta, 0;
  setp.lt.u32 p0, cta, 2;  // right
  @p0 st.shared.u32 [r1], lane;
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;  // trap""",
        ("the value that it stores was never set", _FROM),
        lambda i, x: i % 32,
        where="block (1, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "local_never_written",
        "uninitialized",
        """
  .local .align 8 .b8 depot[16];
  st.local.u32 [depot], i;
  st.local.u32 [depot+4], cta;  // right
  ld.local.u64 q1, [depot];
  cvt.u32.u64 r1, q1;
  st.global.u32 [yi], r1;  // trap""",
        ("the value that it stores was never set", "local address 0x0"),
        lambda i, x: i,
    ),
    Case(
        "register_never_set",
        "uninitialized",
        """
  mov.u32 r9, 3;  // right
  add.s32 r10, r9, i;
  st.global.u32 [yi], r10;  // trap""",
        ("the value that it stores was never set",),
        lambda i, x: i + 3,
    ),
    Case(
        "register_set_by_some_lanes",
        "uninitialized",
        """
  setp.lt.u32 p0, lane, 16;
  @p0 mov.u32 r9, 3;
  @!p0 mov.u32 r9, 4;  // right
  st.global.u32 [yi], r9;  // trap""",
        ("the value that it stores was never set",),
        lambda i, x: np.where(i % 32 < 16, 3, 4),
        where="block (0, 0, 0), thread (16, 0, 0)",
    ),
    Case(
        "predicate_never_set",
        "uninitialized",
        """
  setp.eq.u32 p5, n, 1;  // right
  @p5 st.global.u32 [yi], 2;  // trap""",
        ("its predicate was never set",),
        lambda i, x: 2,
    ),
    Case(
        "address_never_set",
        "uninitialized",
        """
  mov.u64 q5, yi;  // right
  st.global.u32 [q5], 2;  // trap""",
        ("its address was never set",),
        lambda i, x: 2,
    ),
    Case(
        "lane_of_a_shuffle_never_set",
        "uninitialized",
        """
  mov.u32 r9, 0;  // right
  shfl.sync.idx.b32 r10, i, r9, 31, -1;  // trap
  st.global.u32 [yi], r10;""",
        ("its lane was never set",),
        lambda i, x: i // 32 * 32,
    ),
    Case(
        "vote_never_set",
        "uninitialized",
        """
  setp.eq.u32 p5, n, 1;  // right
  vote.sync.ballot.b32 r10, p5, -1;  // trap
  st.global.u32 [yi], r10;""",
        ("its predicate was never set",),
        lambda i, x: 0xFFFFFFFF,
    ),
    Case(
        "from_a_lane_that_has_left",
        "uninitialized",
        """
  setp.ge.u32 p0, lane, 16;
  @p0 st.global.u32 [yi], lane;
  @p0 ret;  // wrong
  shfl.sync.down.b32 r10, lane, 1, 31, 0x0000FFFF;  // wrong
  shfl.sync.down.b32 r10, lane, 1, 31, -1;  // right
  @!p0 st.global.u32 [yi], r10;  // trap""",
        ("the value that it stores was never set",),
        lambda i, x: i % 32 + (i % 32 < 16),
        where="block (0, 0, 0), thread (15, 0, 0)",
    ),
]

# ---- races in shared memory ---------------------------------------------------------------------

# Its own word at r1, that of the thread at a distance at r2.
_WORDS = """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, tid, 4, r0;
  xor.b32 r2, tid, {distance};
  mad.lo.s32 r2, r2, 4, r0;
  st.shared.u32 [r1], 0;
  bar.sync 0;"""
_OTHER = _WORDS.format(distance=32)
_LANE = _WORDS.format(distance=1)

SHARED_RACES = [
    Case(
        "write_then_read",
        "shared race",
        _OTHER
        + """
  st.shared.u32 [r1], i;  // trap
  bar.sync 0;  // right
  ld.shared.u32 r3, [r2];  // trap
  st.global.u32 [yi], r3;""",
        ("of shared tile + ", "which thread (", "no barrier in between"),
        neighbour(32),
        block=64,
    ),
    Case(
        "read_then_write",
        "shared race",
        _OTHER
        + """
  st.shared.u32 [r1], i;
  bar.sync 0;
  ld.shared.u32 r3, [r2];  // trap
  bar.sync 0;  // right
  st.shared.u32 [r1], 0;  // trap
  st.global.u32 [yi], r3;""",
        ("of shared tile + ", "no barrier in between"),
        neighbour(32),
        block=64,
    ),
    Case(
        "write_then_write",
        "shared race",
        _OTHER
        + """
  mad.lo.s32 r3, lane, 4, r0;  // wrong
  mov.u32 r3, r1;  // right
  st.shared.u32 [r3], tid;  // trap
  st.global.u32 [yi], tid;""",
        ("write of shared tile + ", " wrote with no barrier in between"),
        lambda i, x: i % 64,
        block=64,
    ),
    Case(
        "write_then_read_in_a_warp",
        "shared race",
        _LANE
        + """
  st.shared.u32 [r1], i;
  bar.warp.sync -1;  // right
  ld.shared.u32 r3, [r2];  // trap
  st.global.u32 [yi], r3;""",
        ("read of shared tile + 4", "which thread (1, 0, 0) wrote"),
        neighbour(1),
        where="block (0, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "read_then_write_in_a_warp",
        "shared race",
        _LANE
        + """
  st.shared.u32 [r1], i;
  bar.warp.sync -1;
  ld.shared.u32 r3, [r2];
  bar.warp.sync -1;  // right
  st.shared.u32 [r1], 0;  // trap
  st.global.u32 [yi], r3;""",
        ("write of shared tile + 0", "which thread (1, 0, 0) read"),
        neighbour(1),
        where="block (0, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "write_then_write_in_a_warp",
        "shared race",
        _LANE
        + """
  shr.u32 r4, lane, 1;  // wrong
  mov.u32 r4, lane;  // right
  mad.lo.s32 r4, r4, 4, r0;
  st.shared.u32 [r4], lane;  // trap
  st.global.u32 [yi], lane;""",
        ("write of shared tile + 0", "which thread (0, 0, 0) wrote"),
        lambda i, x: i % 32,
        where="block (0, 0, 0), thread (1, 0, 0)",
    ),
    Case(
        "after_a_branch",
        "shared race",
        _LANE
        + """
  setp.lt.u32 p0, lane, 16;
  @!p0 bra meet;
  st.shared.u32 [r1], lane;
meet:
  bar.warp.sync -1;  // right
  and.b32 r4, lane, 15;
  mad.lo.s32 r4, r4, 4, r0;
  ld.shared.u32 r3, [r4];  // trap
  st.global.u32 [yi], r3;""",
        ("read of shared tile + 0", "which thread (0, 0, 0) wrote"),
        lambda i, x: i % 16,
        where="block (0, 0, 0), thread (16, 0, 0)",
    ),
    Case(
        "warp_barrier_of_other_lanes",
        "shared race",
        _LANE
        + """
  setp.lt.u32 p0, lane, 16;
  st.shared.u32 [r1], i;
  @p0 bar.warp.sync 0x0000FFFF;
  @!p0 bar.warp.sync 0xFFFF0000;
  xor.b32 r4, lane, 16;  // wrong
  xor.b32 r4, lane, 8;  // right
  mad.lo.s32 r4, r4, 4, r0;
  ld.shared.u32 r3, [r4];  // trap
  st.global.u32 [yi], r3;""",
        ("read of shared tile + ",),
        neighbour(8),
    ),
    Case(
        "named_barrier_of_another_pair_of_warps",
        "shared race",
        _OTHER
        + """
  st.shared.u32 [r1], i;
  shr.u32 r4, warp, 1;
  add.s32 r4, r4, 1;
  bar.sync r4, 64;
  xor.b32 r5, tid, 64;  // wrong
  mad.lo.s32 r2, r5, 4, r0;  // wrong
  ld.shared.u32 r3, [r2];  // trap
  st.global.u32 [yi], r3;""",
        ("of shared tile + ", "no barrier in between"),
        neighbour(32),
        block=128,
    ),
    Case(
        "producer_that_arrives_too_early",
        "shared race",
        _OTHER
        + """
  setp.eq.u32 p0, warp, 0;
  @!p0 bra consume;
  bar.arrive 1, 64;  // wrong
  st.shared.u32 [r1], lane;  // trap
  bar.arrive 1, 64;  // right
  bra done;
consume:
  bar.sync 1, 64;
  ld.shared.u32 r3, [r2];  // trap
  st.global.u32 [yi], r3;
done:""",
        ("of shared tile + ",),
        lambda i, x: np.where(i % 64 < 32, 0, i % 32),
        block=64,
    ),
    Case(
        "producer_that_does_not_wait_for_the_consumer",
        "shared race",
        _OTHER
        + """
  setp.eq.u32 p0, warp, 0;
  @!p0 bra consume;
  st.shared.u32 [r1], lane;
  bar.arrive 1, 64;
  bar.sync 2, 64;  // right
  st.shared.u32 [r1], 7;  // trap
  bra done;
consume:
  bar.sync 1, 64;
  ld.shared.u32 r3, [r2];  // trap
  bar.arrive 2, 64;  // right
  st.global.u32 [yi], r3;
done:""",
        ("of shared tile + ",),
        lambda i, x: np.where(i % 64 < 32, 0, i % 32),
        block=64,
    ),
    Case(
        "read_again_after_the_named_barrier",
        "shared race",
        _OTHER
        + """
  st.shared.u32 [r1], lane;
  bar.sync 0;
  setp.eq.u32 p0, warp, 0;
  @!p0 bra reader;
  bar.sync 1, 64;
  st.shared.u32 [r1], 7;  // trap
  bra done;
reader:
  ld.shared.u32 r3, [r2];
  bar.arrive 1, 64;
  ld.shared.u32 r3, [r2];  // wrong trap
  st.global.u32 [yi], r3;
done:""",
        ("of shared tile + ",),
        lambda i, x: np.where(i % 64 < 32, 0, i % 32),
        block=64,
    ),
    Case(
        "atomic_then_read",
        "shared race",
        _OTHER
        + """
  st.shared.u32 [r1], 0;
  bar.sync 0;
  atom.shared.add.u32 r3, [tile], 1;
  bar.sync 0;  // right
  ld.shared.u32 r3, [tile];  // trap
  st.global.u32 [yi], r3;""",
        ("of shared tile + 0",),
        lambda i, x: 64,
        block=64,
    ),
    Case(
        "read_then_atomic",
        "shared race",
        _OTHER
        + """
  st.shared.u32 [r1], 0;
  bar.sync 0;
  atom.shared.add.u32 r3, [tile], 1;
  bar.sync 0;
  ld.shared.u32 r3, [tile];  // trap
  bar.sync 0;  // right
  atom.shared.add.u32 r4, [tile], 1;  // trap
  st.global.u32 [yi], r3;""",
        ("of shared tile + 0",),
        lambda i, x: 64,
        block=64,
    ),
    Case(
        "write_then_atomic",
        "shared race",
        _OTHER
        + """
  setp.eq.u32 p0, tid, 0;
  @p0 st.shared.u32 [tile], 0;
  bar.sync 0;  // right
  atom.shared.add.u32 r3, [tile], 1;  // trap
  bar.sync 0;
  ld.shared.u32 r3, [tile];
  st.global.u32 [yi], r3;""",
        ("of shared tile + 0",),
        lambda i, x: 64,
        block=64,
    ),
    Case(
        "write_and_atomics_of_one_thread_first",
        "shared race",
        _OTHER
        + """
  setp.eq.u32 p0, tid, 0;
  @p0 st.shared.u32 [tile], 5;
  @p0 atom.shared.add.u32 r3, [tile], 1;  // trap
  bar.sync 0;  // right
  @!p0 atom.shared.add.u32 r3, [tile], 1;  // trap
  bar.sync 0;
  ld.shared.u32 r3, [tile];
  st.global.u32 [yi], r3;""",
        ("of shared tile + 0", "which thread (0, 0, 0) wrote"),
        lambda i, x: 69,
        block=64,
    ),
    Case(
        "write_after_atomics_by_the_last_lane",
        "shared race",
        _OTHER
        + """
  atom.shared.add.u32 r3, [tile], 1;
  bar.sync 0;  // right
  setp.eq.u32 p0, tid, 31;
  @p0 st.shared.u32 [tile], 5;  // trap
  st.global.u32 [yi], tid;""",
        ("of shared tile + 0", "which several threads wrote"),
        lambda i, x: i % 32,
    ),
    Case(
        "halves_of_a_word",
        "shared race",
        _LANE
        + """
  cvt.u16.u32 h1, lane;
  mad.lo.s32 r4, lane, 2, r0;
  st.shared.u16 [r4], h1;
  bar.warp.sync -1;
  shr.u32 r5, lane, 1;
  mad.lo.s32 r5, r5, 4, r0;
  ld.shared.u32 r6, [r5];
  bar.warp.sync -1;  // right
  st.shared.u16 [r4], 9;  // trap
  shr.u32 r6, r6, 16;
  st.global.u32 [yi], r6;""",
        ("of shared tile + 0", "which thread (1, 0, 0) read"),
        lambda i, x: i % 32 | 1,
    ),
    Case(
        "matrices_before_the_barrier",
        "shared race",
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r0, tile;
  mad.lo.s32 r1, tid, 16, r0;
  xor.b32 r2, tid, 32;
  mad.lo.s32 r2, r2, 16, r0;
  st.shared.v4.u32 [r1], {n, n, n, n};
  bar.sync 0;
  st.shared.v4.u32 [r1], {i, i, i, i};  // trap
  bar.sync 0;  // right
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r4, r5, r6, r7}, [r2];  // trap
  st.global.u32 [yi], r4;""",
        ("of shared tile + ",),
        lambda i, x: (i // 32 ^ 1) * 32 + i % 32 // 4,
        block=64,
    ),
    Case(
        "stored_matrices_before_the_barrier",
        "shared race",
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r0, tile;
  mad.lo.s32 r1, tid, 16, r0;
  xor.b32 r2, tid, 32;
  mad.lo.s32 r2, r2, 16, r0;
  st.shared.v4.u32 [r1], {n, n, n, n};
  bar.sync 0;
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1], {i, i, i, i};  // trap
  bar.sync 0;  // right
  ld.shared.u32 r4, [r2];  // trap
  st.global.u32 [yi], r4;""",
        ("of shared tile + ",),
        lambda i, x: (i // 32 ^ 1) * 32 + 4 * (i % 8),
        block=64,
        target=90,
    ),
    Case(
        "stored_matrices_in_a_warp",
        "shared race",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  xor.b32 r2, lane, 1;
  mad.lo.s32 r2, r2, 16, r0;
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1], {i, i, i, i};
  bar.warp.sync -1;  // right
  ld.shared.u32 r4, [r2];  // trap
  st.global.u32 [yi], r4;""",
        ("read of shared tile + 16, which thread (1, 0, 0) wrote",),
        lambda i, x: 32 * (i // 32) + 4 * (i % 8 ^ 1),
        where="block (0, 0, 0), thread (0, 0, 0)",
        target=90,
    ),
    Case(
        "stored_matrices_over_what_was_read",
        "shared race",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  xor.b32 r2, lane, 1;
  mad.lo.s32 r2, r2, 16, r0;
  st.shared.v4.u32 [r1], {i, i, i, i};
  bar.warp.sync -1;
  ld.shared.u32 r4, [r2];
  bar.warp.sync -1;  // right
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1], {n, n, n, n};  // trap
  st.global.u32 [yi], r4;""",
        ("write of shared tile + 0, which thread (1, 0, 0) read",),
        neighbour(1),
        where="block (0, 0, 0), thread (0, 0, 0)",
        target=90,
    ),
    Case(
        "stored_matrix_rows_at_one_place",
        "shared race",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  shr.u32 r1, lane, 1;  // wrong
  mov.u32 r1, lane;  // right
  mad.lo.s32 r1, r1, 16, r0;
  stmatrix.sync.aligned.m8n8.x1.shared.b16 [r1], {lane};  // trap
  bar.warp.sync -1;
  ld.shared.u32 r2, [r0+16];
  st.global.u32 [yi], r2;""",
        ("write of shared tile + 0, which thread (0, 0, 0) wrote",),
        lambda i, x: 4,
        where="block (0, 0, 0), thread (1, 0, 0)",
        target=90,
    ),
]

# ---- races in global memory ---------------------------------------------------------------------

_COUNTER = ".global .align 4 .u32 counter = 0;"
# The last block to arrive sums y into y[0]; `publish` is what goes before its counting.
_LAST_BLOCK = """
  .shared .align 4 .b8 last[4];
  ld.global.u32 r1, [xi];
  st.global.u32 [yi], r1;
{publish}
  setp.ne.u32 p0, tid, 0;
  @p0 bra wait;
{count}
  mov.u32 r3, %nctaid.x;
  sub.s32 r3, r3, 1;
  setp.eq.u32 p1, r2, r3;
  selp.u32 r4, 1, 0, p1;
  st.shared.u32 [last], r4;
wait:
  bar.sync 0;
  ld.shared.u32 r4, [last];
  setp.eq.u32 p2, r4, 0;
  @p2 ret;
  @p0 ret;
  mov.u32 r5, 0;
  mov.u32 r6, 0;
  mov.u32 r7, %nctaid.x;
  mov.u32 r8, %ntid.x;
  mul.lo.s32 r7, r7, r8;
sum:
  mul.wide.u32 q1, r6, 4;
  add.s64 q1, q1, y;
  ld.global.u32 r9, [q1];  // trap
  add.s32 r5, r5, r9;
  add.s32 r6, r6, 1;
  setp.lt.u32 p3, r6, r7;
  @p3 bra sum;
  st.global.u32 [y], r5;
  st.global.u32 [counter], 0;"""


def last_block(i, x):
    return np.where(i == 0, x.sum(), x)


_OTHER_Y = """
  xor.b32 r2, i, {distance};
  mul.wide.u32 q1, r2, 4;
  add.s64 q2, q1, x;
  add.s64 q1, q1, y;"""

GLOBAL_RACES = [
    Case(
        "blocks_write_the_same",
        "global race",
        """
  mul.wide.u32 q1, tid, 4;  // wrong
  add.s64 yi, y, q1;  // wrong
  st.global.u32 [yi], i;  // trap""",
        ("write of 0x", "thread (0, 0, 0) of block (0, 0, 0) wrote", "nothing that orders the two"),
        lambda i, x: i,
        where="block (1, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "blocks_write_and_read",
        "global race",
        _OTHER_Y.format(distance=32)
        + """
  st.global.u32 [yi], i;  // trap
  ld.global.u32 r3, [q1];  // wrong trap
  ld.global.u32 r3, [q2];  // right""",
        ("of 0x", "of block (", "nothing that orders the two"),
        lambda i, x: i,
    ),
    Case(
        "blocks_read_and_write",
        "global race",
        _OTHER_Y.format(distance=32)
        + """
  ld.global.u32 r3, [q2];  // trap
  st.global.u32 [xi], r3;  // wrong trap
  st.global.u32 [yi], r3;""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: 3 * (i ^ 32) + 1,
    ),
    Case(
        "many_blocks_read_and_one_writes",
        "global race",
        """
  ld.global.u32 r3, [x];  // trap
  setp.eq.u32 p0, cta, 3;
  @p0 st.global.u32 [x], 5;  // wrong trap
  st.global.u32 [yi], r3;""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: 1,
        grid=6,
    ),
    Case(
        "atomic_and_plain",
        "global race",
        """
  setp.eq.u32 p0, tid, 0;
  setp.eq.and.u32 p1, cta, 1, p0;
  @p0 red.global.add.u32 [y], 1;  // trap
  @p1 st.global.u32 [y], 1;  // wrong trap
  @p1 red.global.add.u32 [y], 1;  // right""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: np.where(i == 0, 3, 0),
    ),
    Case(
        "write_before_the_atomics",
        "global race",
        """
  setp.eq.u32 p0, tid, 0;
  setp.eq.and.u32 p1, cta, 1, p0;
  @p1 st.global.u32 [y], 5;  // wrong trap
  @p0 red.global.add.u32 [y], 1;  // trap""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: np.where(i == 0, 4, 0),
        grid=4,
    ),
    Case(
        "read_between_the_atomics",
        "global race",
        """
  setp.eq.u32 p0, tid, 0;
  setp.eq.and.u32 p1, cta, 2, p0;
  @p0 red.global.add.u32 [y], 1;  // trap
  @p1 ld.global.u32 r1, [y];  // wrong trap
  @p0 red.global.add.u32 [y], 1;  // trap""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: np.where(i == 0, 8, 0),
        grid=4,
    ),
    Case(
        "atomic_and_read",
        "global race",
        """
  setp.eq.u32 p0, tid, 0;
  @p0 red.global.add.u32 [y], 1;  // trap
  ld.global.u32 r1, [y];  // wrong trap
  ld.relaxed.gpu.global.u32 r1, [y];  // right""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: np.where(i == 0, 2, 0),
    ),
    Case(
        "last_block_without_a_fence",
        "global race",
        _LAST_BLOCK.format(
            publish="  membar.gl;  // right\n  bar.sync 0;",
            count="  atom.global.add.u32 r2, [counter], 1;",
        ),
        ("read of 0x", "of block (", "wrote", "nothing that orders the two"),
        last_block,
        declarations=_COUNTER,
        grid=5,
        block=64,
        counts_vary=True,  # which block is the last
    ),
    Case(
        "last_block_without_a_barrier",
        "global race",
        _LAST_BLOCK.format(
            publish="  membar.gl;\n  bar.sync 0;  // right",
            count="  atom.global.inc.u32 r2, [counter], 100;",
        ),
        ("read of 0x", "wrote", "nothing that orders the two"),
        last_block,
        declarations=_COUNTER,
        grid=5,
        block=64,
        counts_vary=True,  # which block is the last
    ),
    Case(
        "last_block_fenced_by_one_thread_too_early",
        "global race",
        _LAST_BLOCK.format(
            publish="""
  setp.eq.u32 p4, tid, 0;
  @p4 fence.acq_rel.gpu;  // wrong
  bar.sync 0;
  @p4 fence.acq_rel.gpu;  // right""",
            count="  atom.global.add.u32 r2, [counter], 1;",
        ),
        ("read of 0x", "wrote", "nothing that orders the two"),
        last_block,
        declarations=_COUNTER,
        grid=5,
        block=64,
        counts_vary=True,  # which block is the last
    ),
    Case(
        "last_block_with_a_relaxed_atomic",
        "global race",
        _LAST_BLOCK.format(
            publish="  bar.sync 0;",
            count="  atom.relaxed.gpu.global.add.u32 r2, [counter], 1;  // wrong\n"
            "  atom.acq_rel.gpu.global.add.u32 r2, [counter], 1;  // right",
        ),
        ("read of 0x", "wrote", "nothing that orders the two"),
        last_block,
        declarations=_COUNTER,
        grid=5,
        block=64,
        counts_vary=True,  # which block is the last
    ),
    Case(
        "last_block_fenced_before_it_writes",
        "global race",
        _LAST_BLOCK.replace(
            "  st.global.u32 [yi], r1;\n", "{publish}\n  st.global.u32 [yi], r1;\n", 1
        )
        .replace("{publish}", "  membar.gl;  // wrong", 1)
        .format(
            publish="  membar.gl;  // right\n  bar.sync 0;",
            count="  atom.global.add.u32 r2, [counter], 1;",
        ),
        ("read of 0x", "wrote", "nothing that orders the two"),
        last_block,
        declarations=_COUNTER,
        grid=5,
        block=64,
        counts_vary=True,  # which block is the last
    ),
    Case(
        "last_block_fenced_for_its_own_block_only",
        "global race",
        _LAST_BLOCK.format(
            publish="  membar.cta;  // wrong\n  membar.gl;  // right\n  bar.sync 0;",
            count="  atom.global.add.u32 r2, [counter], 1;",
        ),
        ("read of 0x", "wrote", "nothing that orders the two"),
        last_block,
        declarations=_COUNTER,
        grid=5,
        block=64,
        counts_vary=True,  # which block is the last
    ),
    Case(
        "warps_write_then_read",
        "global race",
        _OTHER_Y.format(distance=32)
        + """
  st.global.u32 [xi], i;  // trap
  bar.sync 0;  // right
  ld.global.u32 r3, [q2];  // trap
  st.global.u32 [yi], r3;""",
        ("of 0x", "which thread (", "nothing that orders the two"),
        neighbour(32),
        block=64,
    ),
    Case(
        "warps_read_then_write",
        "global race",
        _OTHER_Y.format(distance=32)
        + """
  ld.global.u32 r3, [q2];  // trap
  bar.sync 0;  // right
  st.global.u32 [xi], i;  // trap
  st.global.u32 [yi], r3;""",
        ("of 0x", "which thread (", "nothing that orders the two"),
        lambda i, x: 3 * (i ^ 32) + 1,
        block=64,
    ),
    Case(
        "lanes_write_then_read",
        "global race",
        _OTHER_Y.format(distance=1)
        + """
  st.global.u32 [xi], i;
  bar.warp.sync -1;  // right
  ld.global.u32 r3, [q2];  // trap
  st.global.u32 [yi], r3;""",
        ("read of 0x", "which thread (1, 0, 0) wrote"),
        neighbour(1),
    ),
    Case(
        "lanes_update_in_place",
        "global race",
        _OTHER_Y.format(distance=1)
        + """
  ld.global.u32 r3, [q2];
  ld.global.u32 r4, [xi];
  bar.warp.sync -1;  // right
  st.global.u32 [xi], 0;  // trap
  st.global.u32 [yi], r3;""",
        ("write of 0x", "read"),
        lambda i, x: 3 * (i ^ 1) + 1,
    ),
    Case(
        "warps_update_in_place",
        "global race",
        _OTHER_Y.format(distance=32)
        + """
  ld.global.u32 r3, [q2];  // trap
  ld.global.u32 r4, [xi];  // trap
  bar.sync 0;  // right
  st.global.u32 [xi], 0;  // trap
  st.global.u32 [yi], r3;""",
        ("of 0x", "nothing that orders the two"),
        lambda i, x: 3 * (i ^ 32) + 1,
        block=64,
    ),
    Case(
        "bytes_of_a_word",
        "global race",
        """
  cvt.u64.u32 q1, i;
  add.s64 q1, q1, x;
  ld.global.u32 r3, [xi];
  st.global.u8 [q1], 7;  // wrong trap
  st.global.u32 [yi], r3;""",
        ("write of 0x", "read"),
        of_x,
    ),
]

# ---- copies that were not waited for ------------------------------------------------------------

_COPY = """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r0, tile;
  mad.lo.s32 r1, tid, 4, r0;
  xor.b32 r2, tid, 32;
  mad.lo.s32 r2, r2, 4, r0;
  st.shared.u32 [r1], 0;
  bar.sync 0;
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.commit_group;"""

ASYNC_COPIES = [
    Case(
        "no_wait",
        "missing cp.async wait",
        _COPY
        + """
  cp.async.wait_group 0;  // right
  ld.shared.u32 r3, [r1];  // trap
  st.global.u32 [yi], r3;""",
        ("shared tile + 0 is being copied to by cp.async of thread (0, 0, 0)",),
        of_x,
        where="block (0, 0, 0), thread (0, 0, 0)",
    ),
    Case(
        "waits_for_too_few_groups",
        "missing cp.async wait",
        _COPY
        + """
  cp.async.ca.shared.global [r1+512], [xi], 4;
  cp.async.commit_group;
  cp.async.wait_group 1;  // wrong
  cp.async.wait_group 0;  // right
  ld.shared.u32 r3, [r1];
  ld.shared.u32 r4, [r1+512];  // trap
  st.global.u32 [yi], r4;""",
        ("shared tile + 512 is being copied to",),
        of_x,
    ),
    Case(
        "a_group_that_is_not_committed",
        "missing cp.async wait",
        _COPY
        + """
  cp.async.ca.shared.global [r1+512], [xi], 4;
  cp.async.commit_group;  // right
  cp.async.wait_group 0;
  ld.shared.u32 r4, [r1+512];  // trap
  st.global.u32 [yi], r4;""",
        ("shared tile + 512 is being copied to",),
        of_x,
    ),
    Case(
        "a_barrier_is_no_wait",
        "missing cp.async wait",
        _COPY
        + """
  cp.async.wait_all;  // right
  bar.sync 0;
  ld.shared.u32 r3, [r2];  // trap
  st.global.u32 [yi], r3;""",
        ("is being copied to by cp.async of thread (",),
        lambda i, x: 3 * (i ^ 32) + 1,
        block=64,
    ),
    Case(
        "a_wait_is_no_barrier",
        "shared race",
        _COPY.replace("4;\n", "4;  // trap\n")
        + """
  cp.async.wait_all;
  bar.sync 0;  // right
  ld.shared.u32 r3, [r2];  // trap
  st.global.u32 [yi], r3;""",
        (),  # or the other warp has not even waited
        lambda i, x: 3 * (i ^ 32) + 1,
        block=64,
    ),
    Case(
        "written_while_it_is_copied_to",
        "missing cp.async wait",
        _COPY
        + """
  cp.async.wait_all;  // right
  st.shared.u32 [r1], 5;  // trap
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        ("shared tile + 0 is being copied to",),
        lambda i, x: 5,
    ),
    Case(
        "copied_over_what_is_read",
        "shared race",
        _COPY
        + """
  cp.async.wait_all;
  bar.sync 0;
  ld.shared.u32 r3, [r2];  // trap
  bar.sync 0;  // right
  cp.async.ca.shared.global [r1], [yi], 4;  // trap
  cp.async.wait_all;
  st.global.u32 [yi], r3;""",
        (),
        lambda i, x: 3 * (i ^ 32) + 1,
        block=64,
    ),
    Case(
        "matrices_of_a_copy",
        "missing cp.async wait",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  and.b32 r2, lane, 7;
  mul.wide.u32 q1, r2, 16;
  add.s64 q1, q1, x;
  cp.async.cg.shared.global [r1], [q1], 16;
  cp.async.wait_all;  // right
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r4, r5, r6, r7}, [r1];  // trap
  st.global.u32 [yi], r4;""",
        ("is being copied to by cp.async of thread (0, 0, 0)",),
        lambda i, x: 3 * (4 * (i % 32 // 4) + i % 4) + 1,
    ),
    Case(
        "stored_matrices_over_a_copy",
        "missing cp.async wait",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  and.b32 r2, lane, 7;
  mul.wide.u32 q1, r2, 16;
  add.s64 q1, q1, x;
  cp.async.cg.shared.global [r1], [q1], 16;
  cp.async.wait_all;  // right
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1], {i, i, i, i};  // trap
  bar.warp.sync -1;
  cp.async.wait_all;
  ld.shared.u32 r4, [r1];
  st.global.u32 [yi], r4;""",
        ("is being copied to by cp.async of thread (0, 0, 0)",),
        lambda i, x: 32 * (i // 32) + 4 * (i % 8),
        target=90,
    ),
]

# ---- barriers -----------------------------------------------------------------------------------

BARRIERS = [
    Case(
        "in_a_divergent_branch",
        "divergent barrier",
        """
  setp.lt.u32 p0, lane, 16;
  @p0 bar.sync 0;  // wrong trap
  bar.sync 0;  // right
  st.global.u32 [yi], 1;""",
        ("thread (16, 0, 0) of the warp is not here",),
        lambda i, x: 1,
    ),
    Case(
        "on_both_sides_of_a_branch",
        "divergent barrier",
        """
  setp.lt.u32 p0, lane, 16;
  setp.lt.u32 p0, warp, 1;  // right
  @!p0 bra other;
  bar.sync 0;  // trap
  bra done;
other:
  bar.sync 0;
done:
  st.global.u32 [yi], 1;""",
        ("of the warp is not here",),
        lambda i, x: 1,
        block=64,
    ),
    Case(
        "a_warp_at_another_barrier",
        "divergent barrier",
        """
  setp.eq.u32 p0, warp, 1;
  mov.u32 r1, 0;
  @p0 mov.u32 r1, 1;  // wrong
  bar.sync r1;  // trap
  st.global.u32 [yi], 1;""",
        ("waits at barrier", "threads that never come"),
        lambda i, x: 1,
        block=64,
    ),
    Case(
        "a_warp_that_has_left",
        "divergent barrier",
        """
  setp.eq.u32 p0, warp, 1;
  st.global.u32 [yi], 1;
  @p0 ret;  // wrong
  bar.sync 1, 64;  // trap""",
        ("warp 0 waits at barrier 1", "threads that never come"),
        lambda i, x: 1,
        block=64,
    ),
    Case(
        "more_threads_than_the_block_has",
        "divergent barrier",
        """
  bar.sync 1, 96;  // wrong trap
  bar.sync 1, 64;  // right
  st.global.u32 [yi], 1;""",
        ("waits at barrier 1", "threads that never come"),
        lambda i, x: 1,
        block=64,
    ),
    Case(
        "different_counts",
        "divergent barrier",
        """
  mov.u32 r1, 128;
  setp.eq.u32 p0, warp, 2;
  @p0 mov.u32 r1, 64;  // wrong
  bar.sync 1, r1;  // trap
  st.global.u32 [yi], 1;""",
        ("barrier 1 is already waiting for ", " threads, not "),
        lambda i, x: 1,
        block=128,
    ),
    Case(
        "count_of_half_a_warp",
        "divergent barrier",
        """
  bar.sync 1, 48;  // wrong trap
  bar.sync 1, 32;  // right
  st.global.u32 [yi], 1;""",
        ("its thread count 48 is not a multiple of 32",),
        lambda i, x: 1,
    ),
    Case(
        "a_seventeenth_barrier",
        "divergent barrier",
        """
  mov.u32 r1, 16;  // wrong
  mov.u32 r1, 15;  // right
  bar.sync r1;  // trap
  st.global.u32 [yi], 1;""",
        ("there are 16 barriers",),
        lambda i, x: 1,
    ),
    Case(
        "two_barriers_in_a_warp",
        "divergent barrier",
        """
  mov.u32 r1, warp;
  and.b32 r1, lane, 1;  // wrong
  bar.sync r1, 32;  // trap
  st.global.u32 [yi], 1;""",
        ("its barrier differs within the warp",),
        lambda i, x: 1,
        block=64,
    ),
    Case(
        "arrives_twice",
        "divergent barrier",
        """
  setp.eq.u32 p0, warp, 0;
  @!p0 bra consume;
  bar.arrive 1, 96;  // wrong
  bar.arrive 1, 96;  // wrong trap
  bar.arrive 1, 64;  // right
  bra done;
consume:
  bar.sync 1, 96;  // wrong trap
  bar.sync 1, 64;  // right
done:
  st.global.u32 [yi], 1;""",
        ("barrier 1",),
        lambda i, x: 1,
        block=64,
    ),
    Case(
        "shuffle_with_lanes_that_never_come",
        "divergent barrier",
        """
  setp.lt.u32 p0, lane, 16;
  @p0 bra skip;
  shfl.sync.bfly.b32 r1, lane, 1, 31, -1;  // wrong trap
  shfl.sync.bfly.b32 r1, lane, 1, 31, 0xFFFF0000;  // right
  st.global.u32 [yi], r1;
skip:
  bar.warp.sync -1;""",
        ("wait elsewhere",),
        lambda i, x: np.where(i % 32 < 16, 0, i % 32 ^ 1),
    ),
    Case(
        "shuffle_without_itself",
        "divergent barrier",
        """
  shfl.sync.bfly.b32 r1, lane, 1, 31, 0x7FFFFFFF;  // wrong trap
  shfl.sync.bfly.b32 r1, lane, 1, 31, -1;  // right
  st.global.u32 [yi], r1;""",
        ("the thread is not in the member mask that it gives",),
        lambda i, x: i % 32 ^ 1,
        where="block (0, 0, 0), thread (31, 0, 0)",
    ),
    Case(
        "vote_with_lanes_that_never_come",
        "divergent barrier",
        """
  setp.lt.u32 p0, lane, 16;
  @p0 bra skip;
  vote.sync.ballot.b32 r1, p0, -1;  // wrong trap
  vote.sync.ballot.b32 r1, !p0, 0xFFFF0000;  // right
  st.global.u32 [yi], r1;
skip:
  bar.warp.sync -1;""",
        ("wait elsewhere",),
        lambda i, x: np.where(i % 32 < 16, 0, 0xFFFF0000),
    ),
    Case(
        "warp_barrier_with_lanes_that_never_come",
        "divergent barrier",
        """
  setp.lt.u32 p0, lane, 16;
  @p0 bra skip;
  bar.warp.sync -1;  // wrong trap
  bar.warp.sync 0xFFFF0000;  // right
  st.global.u32 [yi], 1;
skip:
  shfl.sync.bfly.b32 r1, lane, 1, 31, -1;""",
        ("wait elsewhere",),
        lambda i, x: i % 32 >= 16,
    ),
    Case(
        "matrices_with_part_of_the_warp",
        "divergent barrier",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  st.shared.v4.u32 [r1], {i, i, i, i};
  bar.warp.sync -1;
  mov.u32 r4, 0;
  setp.lt.u32 p0, lane, 24;
  @p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r4}, [r1];  // wrong trap
  ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r4}, [r1];  // right
  st.global.u32 [yi], r4;""",
        ("not all 32 threads of the warp are here",),
        lambda i, x: i // 32 * 32 + i % 32 // 4,
    ),
    Case(
        "stored_matrices_with_part_of_the_warp",
        "divergent barrier",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  setp.lt.u32 p0, lane, 24;
  @p0 stmatrix.sync.aligned.m8n8.x1.shared.b16 [r1], {i};  // wrong trap
  stmatrix.sync.aligned.m8n8.x1.shared.b16 [r1], {i};  // right
  bar.warp.sync -1;
  ld.shared.u32 r4, [r0+32];
  st.global.u32 [yi], r4;""",
        ("not all 32 threads of the warp are here",),
        lambda i, x: i // 32 * 32 + 8,
        target=90,
    ),
    Case(
        "products_with_part_of_the_warp",
        "divergent barrier",
        """
  mov.u32 r1, 0x3C003C00;
  mov.b32 f0, 0;
  mov.b32 f1, 0;
  setp.lt.u32 p0, lane, 24;
  @!p0 bra skip;  // wrong
  mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {f1, f2, f3, f4}, {r1, r1}, {r1}, """
        """{f0, f0, f0, f0};  // trap
skip:
  cvt.rzi.s32.f32 r2, f1;
  st.global.u32 [yi], r2;""",
        ("not all 32 threads of the warp are here",),
        lambda i, x: 8,
    ),
    Case(
        "last_warp_is_not_whole",
        "divergent barrier",
        """
  mov.u32 r1, 0x3C003C00;
  movmatrix.sync.aligned.m8n8.trans.b16 r1, r1;  // wrong trap
  st.global.u32 [yi], r1;""",
        ("not all 32 threads of the warp are here",),
        lambda i, x: 0x3C003C00,
        block=40,
        where="block (0, 0, 0), thread (32, 0, 0)",
    ),
]

# ---- loops and traps ----------------------------------------------------------------------------

OTHERS = [
    Case(
        "a_loop_without_an_end",
        "endless loop",
        """
  mov.u32 r1, 0;
again:
  add.s32 r1, r1, n;  // trap
  setp.lt.s32 p0, r1, 100;  // trap
  @p0 bra again;  // right
  bra again;  // wrong trap
  st.global.u32 [yi], r1;""",
        ("the block has run 50000 instructions",),
        lambda i, x: 100,
        options={"max_instructions": 50000},
    ),
    Case(
        "waiting_for_a_flag_that_nobody_sets",
        "endless loop",
        """
  .shared .align 4 .b8 flag[4];
  setp.eq.u32 p0, tid, 0;
  @p0 st.volatile.shared.u32 [flag], 0;
  bar.sync 0;
  setp.eq.u32 p1, tid, 32;
  @p1 st.volatile.shared.u32 [flag], 1;  // right
again:
  ld.volatile.shared.u32 r1, [flag];  // trap
  setp.eq.u32 p2, r1, 0;  // trap
  @p2 bra again;  // trap
  st.global.u32 [yi], r1;""",
        ("the block has run 3000000 instructions",),
        lambda i, x: 1,
        block=64,
        options={"max_instructions": 3000000},
        counts_vary=True,
    ),
    Case(
        "its_own_trap",
        "device trap",
        """
  setp.eq.u32 p0, i, 37;
  setp.eq.u32 p0, n, 37;  // right
  @p0 trap;  // trap
  st.global.u32 [yi], 1;""",
        ("the kernel stopped itself",),
        lambda i, x: 1,
        where="block (1, 0, 0), thread (5, 0, 0)",
    ),
]

WRONG_AND_RIGHT = [
    *OUT_OF_BOUNDS,
    *UNDECLARED,
    *MISALIGNED,
    *UNINITIALIZED,
    *SHARED_RACES,
    *GLOBAL_RACES,
    *ASYNC_COPIES,
    *BARRIERS,
    *OTHERS,
]

# ---- right as they are --------------------------------------------------------------------------

RIGHT = [
    Case(
        "undefined_values_that_nobody_uses",
        "",
        _TILE
        + """
  .local .align 4 .b8 depot[8];
  ld.shared.u32 r3, [r1];
  ld.local.u32 r4, [depot];
  add.s32 r5, r3, r4;
  mul.lo.s32 r6, r5, r20;
  shfl.sync.bfly.b32 r7, r6, 1, 31, -1;
  setp.eq.s32 p1, r7, 3;
  setp.eq.u32 p2, n, 1;
  selp.b32 r8, i, r7, p2;
  st.shared.u32 [r1+128], r7;
  st.local.u32 [depot+4], r7;
  st.global.u32 [yi], r8;""",
        result=lambda i, x: i,
    ),
    Case(
        "undefined_values_that_are_overwritten",
        "",
        _TILE
        + """
  st.shared.u32 [r1], r20;
  st.shared.u32 [r1], 5;
  ld.shared.u32 r3, [r1];
  add.s32 r4, r21, 1;
  mov.u32 r4, r3;
  st.global.u32 [yi], r4;""",
        result=lambda i, x: 5,
    ),
    Case(
        "equal_values_written_by_all",
        "",
        _OTHER
        + """
  st.shared.u32 [tile], n;
  st.global.u32 [y], n;
  bar.sync 0;
  ld.shared.u32 r3, [tile];
  setp.ne.u32 p0, i, 0;
  @p0 st.global.u32 [yi], r3;""",
        result=lambda i, x: 1,
        block=128,
    ),
    Case(
        "atomics_of_all_blocks",
        "",
        """
  and.b32 r1, i, 3;
  mul.wide.u32 q1, r1, 4;
  add.s64 q1, q1, y;
  red.global.add.u32 [q1], 1;
  atom.global.max.u32 r2, [y+16], i;
  red.relaxed.gpu.global.add.u32 [y+20], 2;
  atom.global.cas.b32 r3, [y+24], 0, 9;""",
        result=lambda i, x: np.select(
            [i < 4, i == 4, i == 5, i == 6], [x.size // 4, x.size - 1, 2 * x.size, 9]
        ),
        grid=7,
        block=96,
    ),
    Case(
        "volatile_words_without_barriers",
        "",
        _LANE
        + """
  st.volatile.shared.u32 [r1], lane;
  ld.volatile.shared.u32 r3, [r2];
  st.global.u32 [yi], r3;""",
        result=lambda i, x: i % 32 ^ 1,
    ),
    Case(
        "equal_counts_of_different_barriers",
        "",
        """
  setp.lt.u32 p0, warp, 1;
  bar.red.popc.u32 r1, 0, p0;
  barrier.sync 1;
  bar.red.and.pred p1, 2, 128, p0;
  bar.red.or.pred p2, 3, !p0;
  selp.u32 r2, 1000, 0, p1;
  selp.u32 r3, 100, 0, p2;
  add.s32 r1, r1, r2;
  add.s32 r1, r1, r3;
  st.global.u32 [yi], r1;""",
        result=lambda i, x: 132,
        block=128,
    ),
    Case(
        "a_barrier_that_need_not_be_reached_together",
        "",
        _OTHER
        + """
  setp.lt.u32 p0, lane, 10;
  @p0 bra meet;
  st.shared.u32 [r1+256], i;
meet:
  st.shared.u32 [r1], i;
  barrier.sync 0;
  ld.shared.u32 r3, [r2];
  st.global.u32 [yi], r3;""",
        result=neighbour(32),
        block=64,
    ),
    Case(
        "a_shuffle_reached_from_below",
        "",
        """
  mov.u32 r1, 0;
  setp.lt.u32 p0, lane, 16;
  @p0 bra late;
early:
  shfl.sync.bfly.b32 r2, i, 16, 31, -1;
  st.global.u32 [yi], r2;
  ret;
late:
  add.s32 r1, r1, 1;
  setp.lt.u32 p1, r1, 5;
  @p1 bra late;
  bra early;""",
        result=neighbour(16),
    ),
    Case(
        "a_loop_with_as_many_turns_as_the_lane",
        "",
        """
  mov.u32 r1, 0;
again:
  add.s32 r1, r1, 1;
  setp.le.u32 p1, r1, lane;
  @p1 bra again;
  shfl.sync.bfly.b32 r2, r1, 3, 31, -1;
  st.global.u32 [yi], r2;""",
        result=lambda i, x: (i % 32 ^ 3) + 1,
    ),
    Case(
        "threads_that_have_left",
        "",
        _OTHER
        + """
  st.shared.u32 [r1], i;
  setp.ge.u32 p0, tid, 70;
  @p0 st.global.u32 [yi], 1;
  @p0 ret;
  bar.sync 0;
  xor.b32 r2, tid, 64;
  setp.lt.u32 p1, r2, 70;
  selp.u32 r2, r2, tid, p1;
  mad.lo.s32 r2, r2, 4, r0;
  ld.shared.u32 r3, [r2];
  st.global.u32 [yi], r3;""",
        result=lambda i, x: np.where(i % 128 >= 70, 1, np.where((i % 128 ^ 64) < 70, i ^ 64, i)),
        block=128,
    ),
    Case(
        "a_producer_and_a_consumer_in_turns",
        "",
        _OTHER
        + """
  mov.u32 r4, 0;
  mov.u32 r5, 0;
  setp.eq.u32 p0, warp, 0;
  @!p0 bra consume;
produce:
  st.shared.u32 [r1], r4;
  bar.arrive 1, 64;
  bar.sync 2, 64;
  add.s32 r4, r4, 1;
  setp.lt.u32 p1, r4, 5;
  @p1 bra produce;
  bra done;
consume:
  bar.sync 1, 64;
  ld.shared.u32 r3, [r2];
  bar.arrive 2, 64;
  add.s32 r5, r5, r3;
  add.s32 r4, r4, 1;
  setp.lt.u32 p1, r4, 5;
  @p1 bra consume;
done:
  st.global.u32 [yi], r5;""",
        result=lambda i, x: np.where(i % 64 < 32, 0, 10),
        block=64,
    ),
    Case(
        "copies_two_groups_ahead",
        "",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, tid, 4, r0;
  xor.b32 r2, tid, 32;
  mad.lo.s32 r2, r2, 4, r0;
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.commit_group;
  mov.u32 r4, 0;
  mov.u32 r5, 0;
again:
  xor.b32 r1, r1, 256;
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.commit_group;
  cp.async.wait_group 1;
  bar.sync 0;
  ld.shared.u32 r3, [r2];
  bar.sync 0;
  xor.b32 r2, r2, 256;
  add.s32 r5, r5, r3;
  add.s32 r4, r4, 1;
  setp.lt.u32 p0, r4, 4;
  @p0 bra again;
  st.global.u32 [yi], r5;""",
        result=lambda i, x: 4 * (3 * (i ^ 32) + 1),
        block=64,
    ),
    Case(
        "copies_filled_with_zeros",
        "",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  mad.lo.s32 r1, lane, 16, r0;
  setp.lt.u32 p0, i, 8;
  selp.u32 r3, 12, 0, p0;
  mul.wide.u32 q1, i, 16;
  add.s64 q1, q1, x;
  cp.async.cg.shared.global [r1], [q1+16000000], 16, 0;
  cp.async.wait_all;
  cp.async.cg.shared.global [r1], [q1], 16, r3;
  cp.async.wait_all;
  ld.shared.v4.u32 {r4, r5, r6, r7}, [r1];
  mad.lo.s32 r7, r7, 1000, r6;
  st.global.u32 [yi], r7;""",
        result=lambda i, x: np.where(i < 8, 3 * (4 * i + 2) + 1, 0),
    ),
    Case(
        "generic_addresses",
        "",
        _TILE
        + """
  .local .align 4 .b8 depot[8];
  cvt.u64.u32 q1, r1;
  cvta.shared.u64 q1, q1;
  mov.u64 q2, depot;
  cvta.local.u64 q2, q2;
  cvta.global.u64 q3, xi;
  setp.lt.u32 p0, lane, 10;
  setp.lt.u32 p1, lane, 20;
  selp.b64 q4, q2, q3, p1;
  selp.b64 q4, q1, q4, p0;
  st.u32 [q1], 1;
  st.u32 [q2], 2;
  ld.u32 r3, [q4];
  st.global.u32 [yi], r3;""",
        result=lambda i, x: np.where(i % 32 < 10, 1, np.where(i % 32 < 20, 2, x)),
    ),
    Case(
        "negative_offsets",
        "",
        _TILE
        + """
  sub.s32 r3, r1, 64;
  st.shared.u32 [r3+64], i;
  ld.shared.u32 r4, [r3+64];
  sub.s64 q1, yi, 4096;
  st.global.u32 [q1+4096], r4;""",
        result=lambda i, x: i,
    ),
    Case(
        "elements_beside_an_undefined_one",
        "",
        _STORED_MATRIX.format(trans="").replace("// right", "// wrong")
        + """
  @p1 ld.shared.u32 r4, [r1];
  @p1 st.global.u32 [yi], r4;""",
        result=lambda i, x: np.where(i % 32 < 8, 4 * (i % 32), 0),
        target=90,
    ),
    Case(
        "the_same_matrix_row_twice",
        "",
        """
  .shared .align 16 .b8 tile[512];
  mov.u32 r0, tile;
  shr.u32 r1, lane, 1;
  mad.lo.s32 r1, r1, 16, r0;
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [r1], {n, n, n, n};
  bar.warp.sync -1;
  ld.shared.u32 r2, [r1];
  st.global.u32 [yi], r2;""",
        result=lambda i, x: 1,
        target=90,
    ),
]

CASES = [pytest.param(case, id=case.name) for case in WRONG_AND_RIGHT]
RIGHT_CASES = [pytest.param(case, id=case.name) for case in WRONG_AND_RIGHT + RIGHT]


def test_names_are_different():
    names = [case.name for case in WRONG_AND_RIGHT + RIGHT]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_the_wrong_kernel_is_stopped(case):
    """By its trap, in whatever order blocks and warps run; in the plain order, where expected."""
    for schedule in SCHEDULES:
        with pytest.raises(KernelFault) as stopped:
            case.run(wrong=True, **schedule)
        message = str(stopped.value)
        assert stopped.value.trap == case.trap, (schedule, message)
        assert f"{case.trap}: kernel {case.name}, block (" in message
        if schedule != SCHEDULES[0]:
            continue
        assert case.where in message
        assert any(place in message for place in case.stopped_at()), (case.stopped_at(), message)
        for part in case.cause:
            assert part in message


@pytest.mark.parametrize("case", RIGHT_CASES)
def test_the_right_kernel_runs(case):
    """With the right values and the same counts, in whatever order blocks and warps run."""
    counts = []
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(case.run(False, counts, **schedule), case.expected())
    if case.counts_vary:
        return
    for other in counts[1:]:
        assert other == counts[0]


# ---- what one kernel does not show --------------------------------------------------------------


def fault(device, text, name, arguments, block=32):
    """Run a kernel that is stopped; returns the error."""
    launch = Launch(device.load(text).kernel(name), (1,), (block,), 0, arguments)
    with pytest.raises(KernelFault) as stopped:
        device.launch(launch)
        device.synchronize()
    return stopped.value


def test_freed_memory():
    with Device("ptx", threads=1) as device:
        x, y = device.upload(np.ones(32, np.uint32)), device.empty(128)
        address = np.uint64(x.address)
        del x
        error = fault(device, kernel(X_TO_Y), "kernel", (address, y, 1))
        assert error.trap == "out of bounds"
        assert "in an allocation of 128 bytes that was freed" in str(error)


def test_memory_is_uninitialized_again_after_poison():
    with Device("ptx", threads=1) as device:
        x, y = device.upload(np.ones(32, np.uint32)), device.empty(128)
        copy = Launch(device.load(kernel(X_TO_Y)).kernel("kernel"), (1,), (32,), 0, (x, y, 1))
        device.launch(copy)
        np.testing.assert_array_equal(device.download(y, np.uint32), 1)
        x.poison()
        error = fault(device, kernel(X_TO_Y), "kernel", (x, y, 1))
        assert error.trap == "uninitialized"


def test_what_an_earlier_launch_wrote_is_no_race():
    """Each block reads, in the second launch, what all blocks wrote in the first."""
    body = _OTHER_Y.format(distance=32) + "  ld.global.u32 r3, [q2];\n  st.global.u32 [yi], r3;"
    for threads in (1, 2):
        with Device("ptx", threads=threads) as device:
            x = device.upload(np.arange(128, dtype=np.uint32))
            y, z = device.empty(512), device.empty(512)
            swap = device.load(kernel(body)).kernel("kernel")
            for source, target in ((x, y), (y, z), (z, y)):
                device.launch(Launch(swap, (4,), (32,), 0, (source, target, 1)))
            expected = np.arange(128) ^ 32
            np.testing.assert_array_equal(device.download(y, np.uint32), expected)
            np.testing.assert_array_equal(device.download(z, np.uint32), np.arange(128))


def test_an_opcode_that_is_not_executed_is_refused_when_loaded():
    """With the whole instruction, its line and what is unknown about it."""
    refused = {
        "tcgen05.ld.b32 r1, [r2];": "not executed here",
        "add.frob.s32 r1, r1, r2;": ".frob is not executed here",
        "wgmma.fence.sync.aligned;": "not executed here",
        "mov.u32 r1, %pm0;": "special register %pm0 is not known here",
        "add.s32 r1, r2;": "it has 2 operands; expected 3",
        "add.s32 r1, q1, r2;": "register q1 has 64 bits; expected 32",
        "ld.global.v4.u32 {r1, r2}, [q1];": "the number of registers is not that of its vector",
        "call.uni (r1), f, (r2);": "not executed here",
    }
    with Device("ptx") as device:
        for instruction, reason in refused.items():
            text = kernel("  " + instruction)
            line = next(n for n, row in enumerate(text.splitlines(), 1) if instruction in row)
            with pytest.raises(GpuError) as refusal:
                device.load(text)
            assert refusal.value.result == "CUDA_ERROR_INVALID_PTX"
            message = f'unknown opcode: kernel kernel, PTX line {line}: "{instruction}": {reason}'
            assert message in str(refusal.value)


def test_text_that_is_no_ptx_is_refused_with_its_line():
    broken = {
        "  add.s32 r1, r1, r99;": "unknown name r99",
        "  bra nowhere;": "unknown name nowhere",
        "  ld.global.u32 r1, [xi;": "expected ']'",
        "  mov.u32 r1, 0x1FFFFFFFFFFFFFFFF;": "bad integer literal",
        "  @r1 bra done;\ndone:": "a guard is not a predicate",
        "again:\nagain:": "label again is defined twice",
    }
    with Device("ptx") as device:
        for line, reason in broken.items():
            with pytest.raises(GpuError, match="PTX line ") as refusal:
                device.load(kernel(line))
            assert reason in str(refusal.value)


def test_texts_that_ask_for_too_much_are_refused():
    """Before anything is allocated for them."""
    bodies = {
        ".reg .b32 %r<2000000>;": "a register count is not between 0 and 1048576",
        ".reg .b32 %r<1000000>; .reg .b64 %q<1000000>;": "too many registers",
        ".shared .b8 tile[2000000];": "too much shared memory",
        ".shared .b8 tile[1000000][1000000];": "an array is too large",
        ".local .b8 depot[600000];": "more local memory than the 512 KB",
        ".shared .b8 tile[99999999999];": "an array's size is not between",
    }
    outside = {
        ".global .b8 big[4294967296];": "no memory for variable big",
        ".global .b32 few[2] = {1, 2, 3};": "more values than the variable holds",
        ".visible .entry f(.param .b8 a[32000], .param .b8 b[800]) { ret; }": "too many parameters",
    }
    texts = [(kernel(body), reason) for body, reason in bodies.items()]
    texts += [(kernel("", declarations=line), reason) for line, reason in outside.items()]
    with Device("ptx", capacity=1 << 30) as device:
        for text, reason in texts:
            with pytest.raises(GpuError) as refusal:
                device.load(text)
            assert refusal.value.result == "CUDA_ERROR_INVALID_PTX"
            assert reason in str(refusal.value)


def test_the_line_of_the_source_is_named():
    text = kernel(
        """
  .loc 2 41 3
  mov.u32 r1, 7;
  .loc 1 42 5
  st.global.u32 [yi+4096], r1;
  .loc 2 43 0
  st.global.u32 [yi], r1;""",
        declarations='.file 1 "/home/me/kernels/depthwise_conv.cu"\n.file 2 "other.cuh"',
    )
    with Device("ptx", threads=1) as device:
        x, y = device.empty(128), device.empty(128)
        error = fault(device, text, "kernel", (x, y, 1))
        assert '"st.global.u32 [yi+4096], r1;" (depthwise_conv.cu:42): write of' in str(error)


def test_kernels_are_named_as_they_were_written():
    names = {
        "_Z4saxpPfS_i": "kernel saxp(float*, float*, int), block",
        "_ZN6effnet13depthwiseConvINS_4TileILi8ELi16ELi32EEEfEEvPT0_NS_20DepthwiseConvGeometryEi": (
            "kernel effnet::depthwiseConv<...>, block"
        ),
    }
    for name, expected in names.items():
        with Device("ptx", threads=1) as device:
            x, y = device.empty(128), device.empty(128)
            error = fault(device, kernel("  trap;", name=name), name, (x, y, 1))
            assert expected in str(error)


def test_threads_and_blocks_are_named_in_three_dimensions():
    text = kernel(
        """
  mov.u32 r1, %tid.z;
  mov.u32 r2, %ctaid.y;
  setp.eq.u32 p0, r1, 1;
  setp.eq.and.u32 p0, r2, 2, p0;
  @p0 trap;"""
    )
    with Device("ptx", threads=1) as device:
        x, y = device.empty(128), device.empty(128)
        launch = Launch(device.load(text).kernel("kernel"), (2, 3, 2), (4, 3, 2), 0, (x, y, 1))
        device.launch(launch)
        with pytest.raises(KernelFault) as stopped:
            device.synchronize()
        assert "block (0, 2, 0), thread (0, 0, 1)" in str(stopped.value)


def test_a_region_must_lie_in_one_allocation():
    with Device("ptx") as device:
        x, y = device.empty(128), device.empty(128)
        regions = (Region("input", x.address, 132),)
        copy = device.load(kernel(X_TO_Y)).kernel("kernel")
        with pytest.raises(GpuError, match="region 'input'"):
            device.launch(Launch(copy, (1,), (32,), 0, (x, y, 1), regions))
