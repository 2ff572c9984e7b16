"""The machine and a kernel's own check notice mechanical mistakes in kernels nobody here wrote."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from foreign_kernels import KERNELS
from ptx_mutants import Survivor, mutants, survivors

# Mutants that behave as the kernel does: (kernel, kind, what the statement matches, how many, why).
EQUIVALENT = [
    (
        "triton_layer_norm",
        "bounds predicate removed",
        r"st\.global\.b32 \[ %rd2[56] ",
        2,
        "every thread of the block stores the same mean, or the same rstd",
    ),
    (
        "cub_block_reduce",
        "bounds branch removed",
        r"@%p5 bra",
        1,
        "every lane of a warp stores the warp's sum, which redux gave them all",
    ),
    (
        "cub_block_reduce",
        "bounds branch removed",
        r"@%p6 bra",
        1,
        "every thread adds up the warps' sums; the result of thread 0 alone is used",
    ),
    (
        "cub_block_scan",
        "bounds branch removed",
        r"@%p6 bra",
        1,
        "every thread stores the same count of valid items",
    ),
    (
        "cub_block_histogram",
        "bounds branch removed",
        r"@%p2 bra",
        1,
        "it skips threads from 256 on, and the block has 128",
    ),
    (
        "cutlass_simt_gemm",
        "bounds branch removed",
        r"@%p7 bra",
        1,
        "a block beyond the last tile has no valid row: it loads zeros and stores nothing",
    ),
    (
        "cutlass_simt_gemm",
        "bounds branch removed",
        r"@%p28 bra",
        1,
        "with K = 0 the main loop adds products of zeros once",
    ),
    (
        "cutlass_tensor_op_gemm",
        "bounds branch removed",
        r"@%p(5|19) bra",
        2,
        "blocks beyond the last tile, and K = 0, which this kernel does not support",
    ),
    (
        "cutlass_tensor_op_gemm",
        "wait removed",
        r"cp\.async\.wait_all",
        1,
        "the last iterations of the main loop copy nothing: no copy is pending",
    ),
    (
        "cutlass_tensor_op_gemm",
        "barrier removed",
        r"bar\.sync",
        3,
        "the main loop ends with a barrier and the epilogue begins with one: either is enough",
    ),
]


def explained(kernel: str, survived: list[Survivor]) -> set[int]:
    """Lines of the survivors that are known to be equivalent."""
    lines: list[int] = []
    for name, kind, pattern, most, _ in EQUIVALENT:
        matching = [s.mutant for s in survived if (name, kind) == (kernel, s.mutant.kind)]
        lines += [m.line for m in matching if re.search(pattern, m.before)][:most]
    return set(lines)


def test_mutants_of_foreign_kernels_are_caught():
    made, alive, unexplained = Counter(), 0, []
    for kernel in KERNELS:
        kinds, survived = survivors(kernel.ptx(80), kernel.check)
        made += kinds
        alive += len(survived)
        known = explained(kernel.name, survived)
        unexplained += [f"{kernel.name} {s}" for s in survived if s.mutant.line not in known]
    assert not unexplained, "\n".join(unexplained)
    total = sum(made.values())
    assert total > 800 and alive <= 0.05 * total, f"{alive} of {total} survive"
    assert set(made) >= {
        "barrier removed",
        "wait removed",
        "wait for one group less",
        "bounds predicate removed",
        "bounds branch removed",
        "source size removed",
        "offset moved",
        "atomic made plain",
    }


ATOMIC = """
    .reg .b32 %r<9>;
    atom.global.add.u32 %r1, [%rd1], %r2;
    @%p1 red.shared.max.s32 [%r3+4], %r4;
"""


def test_atomics_are_made_plain():
    plain = [m for m in mutants(ATOMIC) if m.kind == "atomic made plain"]
    assert [m.line for m in plain] == [3, 4]
    assert "add.u32 %mutant_new, %mutant_old, %r2;" in plain[0].after
    assert "mov.u32 %r1, %mutant_old;" in plain[0].after
    assert "@%p1 st.shared.s32 [%r3+4], %mutant_new;" in plain[1].after


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("bar.sync 0;", [("barrier removed", "")]),
        ("bar.warp.sync -1;", [("barrier removed", "")]),
        (
            "cp.async.wait_group 1;",
            [("wait removed", ""), ("wait for one group less", "cp.async.wait_group 2;")],
        ),
        (
            "@%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8];",
            [
                ("bounds predicate removed", "ld.global.v2.f32 {%f1, %f2}, [%rd1+8];"),
                ("offset moved", "@%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+12];"),
            ],
        ),
        ("ld.param.u64 %rd1, [p+8];", []),
        ("add.s32 %r1, %r2, %r3;", []),
    ],
)
def test_changes_are_mechanical(statement: str, expected: list[tuple[str, str]]):
    found = [(m.kind, " ".join(m.after.split())) for m in mutants(statement)]
    assert found == expected
