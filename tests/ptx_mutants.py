"""Mechanical mistakes in PTX: what a test of a kernel must notice.

Every barrier, wait and bounds predicate removed, every constant offset moved by one element, every
atomic made plain. A mutant is caught when the machine reports a fault or the result is wrong.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from effnet_fast.errors import GpuError, KernelFault
from effnet_fast.gpu.device import Device

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
# Registers that the plain form of an atomic needs; declared in a scope of their own.
PLAIN_ATOMIC = """\
{{ .reg .{type} %mutant_old, %mutant_new;
{guard} ld.{space}.{type} %mutant_old, {address};
{guard} {operation} %mutant_new, %mutant_old, {value};
{guard} st.{space}.{type} {address}, %mutant_new;
{result} }}"""


@dataclass(frozen=True)
class Mutant:
    """One change of a PTX text."""

    kind: str
    line: int  # from 1
    before: str
    after: str
    ptx: str


def mutants(ptx: str) -> Iterator[Mutant]:
    """Every mutant of a module's kernels, in the order of their lines."""
    lines = ptx.splitlines()
    types = register_types(ptx)
    for i, line in enumerate(lines):
        statement = line.strip()
        if statement.startswith((".", "//", "$")) or not statement.endswith(";"):
            continue
        for kind, after in changes(statement, lines[i + 1 :], types):
            text = "\n".join([*lines[:i], after, *lines[i + 1 :]])
            yield Mutant(kind, i + 1, statement, after, text)


def register_types(ptx: str) -> dict[str, str]:
    return {name: kind for kind, name in re.findall(r"\.reg \.(\w+)\s+(%\w+)<", ptx)}


def changes(statement: str, following: list[str], types: dict[str, str]):
    """The mutants of one statement: (kind, new text)."""
    guard, opcode, operands = parts_of(statement)
    if re.match(r"(bar|barrier)\.(\w+\.)*sync", opcode):
        yield "barrier removed", ""
    if opcode.startswith("cp.async.wait"):
        yield "wait removed", ""
    if opcode == "cp.async.wait_group":
        yield "wait for one group less", f"{opcode} {int(operands) + 1};"
    if guard and re.match(r"(ld|st|atom|red|cp\.async)\b", opcode):
        yield "bounds predicate removed", f"{opcode} {operands};"
    if guard and opcode.startswith("bra") and guards_memory(operands, following):
        yield "bounds branch removed", ""
    if re.match(r"cp\.async\.c[ag]", opcode) and operands.count(",") >= 3:
        head, _, _ = operands.rpartition(",")
        yield "source size removed", f"{guard}{opcode} {head};"
    accesses = r"(ld|st|atom|red|cp\.async\.c[ag]|ldmatrix|stmatrix)\b"
    if re.match(accesses, opcode) and ".param" not in opcode:
        size = element_size(opcode)
        for match in re.finditer(r"\[([^\]]+?)(?:\s*\+\s*(-?\d+))?\]", operands):
            moved = f"[{match[1]}+{int(match[2] or 0) + size}]"
            rest = operands[: match.start()] + moved + operands[match.end() :]
            yield "offset moved", f"{guard}{opcode} {rest};"
    if re.match(r"(atom|red)\b", opcode):
        plain = plain_atomic(guard, opcode, operands)
        if plain:
            yield "atomic made plain", plain


def parts_of(statement: str) -> tuple[str, str, str]:
    match = re.match(r"(@!?%\w+\s+)?([\w.:]+)\s*(.*);$", statement)
    return (match[1] or "", match[2], match[3].strip()) if match else ("", "", "")


def guards_memory(label: str, following: list[str]) -> bool:
    """Does a branch to the label skip an access to memory?"""
    skipped = list(itertools.takewhile(lambda s: not s.strip().startswith(f"{label}:"), following))
    if len(skipped) == len(following):
        return False  # backwards: a loop
    return any(re.search(r"(^|\s)(ld|st|atom|red|cp\.async)\.(?!param)", line) for line in skipped)


def element_size(opcode: str) -> int:
    # Of a matrix row or an asynchronous copy, the bytes that its alignment asks for.
    if opcode.startswith(("ldmatrix", "stmatrix", "cp.async")):
        return 16
    return SIZES[re.search(r"\.[busf](\d+)(?!.*\.[busf]\d)", opcode)[1]]


def plain_atomic(guard: str, opcode: str, operands: str) -> str | None:
    match = re.match(r"(?:(%\w+)\s*,\s*)?(\[[^\]]+\])\s*,\s*([^,]+)$", operands)
    parts = opcode.split(".")
    operation = next((p for p in parts if p in ("add", "min", "max", "and", "or", "xor")), None)
    if match is None or operation is None:
        return None
    space = "global" if "global" in parts else "shared"
    result = f"{guard} mov.{parts[-1]} {match[1]}, %mutant_old;" if match[1] else ""
    return PLAIN_ATOMIC.format(
        type=parts[-1], guard=guard.strip(), space=space, address=match[2], value=match[3],
        operation=f"{operation}.{parts[-1]}", result=result,
    )  # fmt: skip


# ---- running them -------------------------------------------------------------------------------


@dataclass
class Survivor:
    """A mutant that nothing noticed."""

    mutant: Mutant

    def __str__(self) -> str:
        m = self.mutant
        return f"line {m.line}: {m.kind}: {m.before!r} -> {m.after!r}"


def survivors(
    ptx: str, check: Callable[[Device, str], None], index: int = 0
) -> tuple[Counter, list[Survivor]]:
    """How many mutants of each kind there are, and those that `check` and the machine let pass.

    `check` runs a module on a device and raises AssertionError where its results are wrong.
    """
    kinds: Counter = Counter()
    alive = []
    for mutant in mutants(ptx):
        kinds[mutant.kind] += 1
        if not any(is_caught(mutant, check, index, order) for order in ORDERS):
            alive.append(Survivor(mutant))
    return kinds, alive


# Of blocks and warps: some mistakes show in some orders only.
ORDERS = [{}, *({"shuffle": True, "seed": seed} for seed in range(4))]


def is_caught(
    mutant: Mutant, check: Callable[[Device, str], None], index: int, order: dict
) -> bool:
    with Device("ptx", index, threads=1, max_instructions=20_000_000, **order) as device:
        try:
            check(device, mutant.ptx)
        except (KernelFault, AssertionError):
            return True
        except GpuError as error:
            raise AssertionError(f"a mutant is no PTX: {mutant.after}: {error}") from error
    return False
