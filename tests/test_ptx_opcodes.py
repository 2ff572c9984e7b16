"""Each opcode form that the PTX machine accepts, against what the ISA says; and what it refuses."""

import ast
import inspect
import math
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from ptx_forms import FORMS
from ptx_kernels import Case, kernel
from ptx_opcodes import FORMATS, LANES, Form, header

from effnet_fast.errors import GpuError, KernelFault
from effnet_fast.gpu import Device, Launch

SOURCES = Path(__file__).parents[1] / "csrc" / "ptx_machine"
FULL = 0xFFFFFFFF
WARPS = 48  # of a test of what warps do


@pytest.fixture(scope="module")
def devices():
    """By their index, once one is asked for; those that a kernel broke are replaced."""
    devices = {}
    yield devices
    for device in devices.values():
        device.close()


@pytest.fixture
def device(devices):
    yield from usable(devices, 1)


@pytest.fixture
def newest(devices):
    """The sm_120, of instructions that came after the sm_89."""
    yield from usable(devices, 2)


def usable(devices, index):
    if index not in devices:
        devices[index] = Device("ptx", index, threads=1, approx="exact")
    yield devices[index]
    try:
        devices[index].synchronize()
    except KernelFault:
        devices.pop(index).close()


# ---- one lane at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_form(request, form):
    form.check(request.getfixturevalue("device" if form.target < 90 else "newest"))


# ---- approximations -----------------------------------------------------------------------------


def ulp(y, kind="f32", digits=None):
    """The distance of a format's numbers at what y is rounded to."""
    form = FORMATS[kind]
    digits = digits or form.digits
    fraction, exponent = np.frexp(np.where(np.isfinite(y), y, 1.0))
    exponent = exponent - (np.round(np.ldexp(abs(fraction), digits)) < 2.0**digits)
    return np.ldexp(1.0, np.maximum(exponent, form.lowest) - digits + 1)


INF, NAN = math.inf, math.nan
TINY = 2.0**-140  # a denormal


def sine_error(x, y):
    return np.select([abs(x) <= 2 * np.pi, abs(x) <= 100 * np.pi], [2**-20.5, 2**-14.7], 2.0)


def logarithm_error(x, y):
    return 2**-22 * np.where((x > 0.5) & (x < 2), 1.0, abs(y))


def relative(exponent):
    return lambda x, y: 2.0**exponent * abs(y)


@dataclass(frozen=True)
class Approximation:
    """An instruction whose results may be off.

    Parameters
    ----------
    value : callable
        The exact result of a float64 operand.
    error : callable
        Of the operand and the exact result, how far from it the result may be: the ISA's figure.
    table : tuple
        Pairs of an operand and the result, where the ISA leaves no choice.
    span : float
        Operands are drawn from [-span, span], too.
    """

    name: str
    value: object
    error: object
    table: tuple
    span: float = 16.0

    def __str__(self):
        return self.name

    @property
    def kind(self):
        return self.name.rpartition(".")[2]

    @property
    def format(self):
        return FORMATS[self.kind.removesuffix("x2")]

    @property
    def flushes(self):
        return ".ftz" in self.name

    def operands(self):
        """Bits: the table's, edges, any, and those of the span."""
        form, rng = self.format, np.random.default_rng(5)
        count = LANES * (2 if self.kind.endswith("x2") else 1)
        bits = np.zeros(count, f"u{form.bits // 8}")
        edges = Form("", f"= {form.name}", None).operands()[0]
        spread = rng.uniform(-self.span, self.span, count).astype(f"f{form.bits // 8}")
        bits[:] = np.where(
            rng.random(count) < 0.4, np.resize(edges, count), spread.view(bits.dtype)
        )
        bits[: len(self.table)] = form.encode([x for x, _ in self.table])
        return bits

    def run(self, bits, **options):
        """The results' bits."""
        words = bits.view(np.uint32) if self.kind.endswith("x2") else bits
        with Device("ptx", 0, threads=1, **options) as device:
            form = Form(f"{self.name} d, a", f"{self.kind} = {self.kind}", None)
            return form.run(device, [words])[0].view(bits.dtype)

    def check(self, bits, results, error):
        form = self.format
        x, r = form.decode(bits), form.decode(results)
        if self.kind == "f64":  # the lower half is not looked at, and not written
            x = form.decode(bits & np.uint64(FULL << 32))
            assert not (results & np.uint64(FULL)).any()
        if self.flushes:
            x = np.where(abs(x) < form.smallest, np.copysign(0.0, x), x)
        with np.errstate(all="ignore"):
            y = self.value(x)
            bound = error(x, y)
            near = abs(r - y) <= bound
            near |= np.isnan(r) & np.isnan(y) | (r == y)
            near |= np.isinf(r) & (np.sign(r) == np.sign(y)) & (abs(y) + bound > form.largest)
            if self.flushes:
                near |= (r == 0) & (abs(y) - bound < form.smallest)
        for i in np.flatnonzero(~near)[:1]:
            raise AssertionError(f"{self.name} of {x[i]!r}: {r[i]!r}, {y[i]!r} within {bound[i]!r}")
        exact = form.encode([result for _, result in self.table])
        if self.kind == "f64":
            exact[exact == form.nan] = np.uint64(0x7FFFFFFF << 32)
        assert (results[: exact.size] == exact).all()
        with np.errstate(invalid="ignore"):
            return np.nanmax(np.where(np.isfinite(r) & (bound > 0), abs(r - y) / bound, 0.0))


EX2 = ((-INF, 0.0), (-0.0, 1.0), (0.0, 1.0), (INF, INF), (NAN, NAN))
LG2 = ((-INF, NAN), (-1.0, NAN), (-0.0, -INF), (0.0, -INF), (INF, INF), (NAN, NAN))
RCP = ((-INF, -0.0), (-0.0, -INF), (0.0, INF), (INF, 0.0), (NAN, NAN))
SQRT = ((-INF, NAN), (-1.0, NAN), (-0.0, -0.0), (0.0, 0.0), (INF, INF), (NAN, NAN))
RSQRT = ((-INF, NAN), (-1.0, NAN), (-0.0, -INF), (0.0, INF), (INF, 0.0), (NAN, NAN))
SIN = ((-INF, NAN), (-0.0, -0.0), (0.0, 0.0), (INF, NAN), (NAN, NAN))
COS = ((-INF, NAN), (-0.0, 1.0), (0.0, 1.0), (INF, NAN), (NAN, NAN))
TANH = ((-INF, -1.0), (-0.0, -0.0), (0.0, 0.0), (INF, 1.0), (NAN, NAN))


def flushed(table):
    """The table with denormals, which are zeros."""
    return (*table, *((math.copysign(TINY, x), y) for x, y in table if x == 0))


APPROXIMATIONS = [
    Approximation("ex2.approx.f32", np.exp2, lambda x, y: 2 * ulp(y), EX2, 150.0),
    Approximation("ex2.approx.ftz.f32", np.exp2, lambda x, y: 2 * ulp(y), flushed(EX2), 150.0),
    Approximation("lg2.approx.f32", np.log2, logarithm_error, LG2),
    Approximation("lg2.approx.ftz.f32", np.log2, logarithm_error, flushed(LG2)),
    Approximation("rcp.approx.f32", np.reciprocal, lambda x, y: ulp(y), RCP),
    Approximation("rcp.approx.ftz.f32", np.reciprocal, lambda x, y: ulp(y), flushed(RCP)),
    Approximation("sqrt.approx.f32", np.sqrt, relative(-23), SQRT),
    Approximation("sqrt.approx.ftz.f32", np.sqrt, relative(-23), flushed(SQRT)),
    Approximation("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), relative(-22.9), RSQRT),
    Approximation(
        "rsqrt.approx.ftz.f32", lambda x: 1 / np.sqrt(x), relative(-22.9), flushed(RSQRT)
    ),
    Approximation("sin.approx.f32", np.sin, sine_error, SIN, 6.28),
    Approximation("sin.approx.ftz.f32", np.sin, sine_error, flushed(SIN), 314.0),
    Approximation("cos.approx.f32", np.cos, sine_error, COS, 6.28),
    Approximation("cos.approx.ftz.f32", np.cos, sine_error, flushed(COS), 314.0),
    Approximation(
        "tanh.approx.f32", np.tanh, relative(-11), (*TANH, (TINY, TINY), (-TINY, -TINY)), 4.0
    ),
    Approximation("ex2.approx.f16", np.exp2, lambda x, y: 2**-9.9 * abs(y) + 2.0**-25, EX2, 14.0),
    Approximation("ex2.approx.f16x2", np.exp2, lambda x, y: 2**-9.9 * abs(y) + 2.0**-25, EX2, 14.0),
    Approximation("tanh.approx.f16", np.tanh, lambda x, y: 2**-10.987, TANH, 4.0),
    Approximation("tanh.approx.f16x2", np.tanh, lambda x, y: 2**-10.987, TANH, 4.0),
    # The ISA gives no figure: the last of the 20 bits of mantissa may be wrong.
    Approximation("rcp.approx.ftz.f64", np.reciprocal, relative(-20), RCP),
    Approximation("rsqrt.approx.ftz.f64", lambda x: 1 / np.sqrt(x), relative(-20), RSQRT),
]


@pytest.mark.parametrize("op", APPROXIMATIONS, ids=str)
def test_approximation(op):
    bits = op.operands()
    right = op.run(bits, approx="exact")
    digits = 21 if op.kind == "f64" else None

    def one_ulp(x, y):
        return ulp(y, op.format.name, digits)

    op.check(bits, right, one_ulp)
    moved = op.run(bits, seed=1)
    # It uses what it is allowed, and no more.
    assert op.check(bits, moved, op.error) > 0.8
    assert (moved != right).mean() > 0.1
    assert (op.run(bits, seed=1) == moved).all()
    other = op.run(bits, seed=2)
    op.check(bits, other, op.error)
    assert (other != moved).mean() > 0.1


def test_approximations_are_perturbed_by_default():
    op = APPROXIMATIONS[0]
    bits = op.operands()
    assert (op.run(bits) == op.run(bits, approx="perturbed", seed=0)).all()
    assert (op.run(bits) != op.run(bits, approx="exact")).any()


@pytest.mark.parametrize("options", [{"approx": "exact"}, {"seed": 1}, {"seed": 2}], ids=str)
@pytest.mark.parametrize("name", ["approx", "approx.ftz", "full", "full.ftz"])
def test_approximate_division(name, options):
    form = Form(f"div.{name}.f32 d, a, b", "f32 = f32 f32", None)
    f32 = FORMATS["f32"]
    a, b = form.operands()
    b[::3] = f32.encode(np.float32(np.linspace(-9, 9, b[::3].size)))
    with Device("ptx", 0, threads=1, **options) as device:
        r = f32.decode(form.run(device, [a, b])[0])
    x, d = f32.decode(a), f32.decode(b)
    if ".ftz" in name:
        x, d = (np.where(abs(v) < f32.smallest, np.copysign(0.0, v), v) for v in (x, d))
    with np.errstate(all="ignore"):
        y = x / d
        if "approx" in name:  # a times the reciprocal, which underflows or overflows
            large = (abs(d) > 2.0**126) & np.isfinite(d)
            y = np.where(large, x * np.copysign(0.0, d), y)
            y = np.where(abs(d) <= 2.0**-128, x * np.copysign(INF, d), y)
        bound = (1 if options == {"approx": "exact"} else 2) * ulp(y)
        near = abs(r - y) <= bound
        near |= (r == y) | (np.isnan(r) & np.isnan(y))
        near |= np.isinf(r) & (np.sign(r) == np.sign(y)) & (abs(y) + bound > f32.largest)
        if ".ftz" in name:
            near |= (r == 0) & (abs(y) - bound < f32.smallest)
    assert near.all(), [(x[i], d[i], r[i], y[i]) for i in np.flatnonzero(~near)[:3]]
    zeros = (r == 0) & (y == 0)
    assert (np.signbit(r) == np.signbit(y))[zeros].all()
    exact = np.isfinite(y) & (y != 0) & (abs(y) > f32.smallest)
    with np.errstate(over="ignore"):
        share = (r != f32.decode(f32.encode(np.float32(y))))[exact].mean()
    assert share == 0 if options == {"approx": "exact"} else share > 0.2


# ---- warps --------------------------------------------------------------------------------------


def run_words(device, body, words, results=1, declarations="", block=32, shared=0, target=80):
    """Run a kernel body, of ptx_kernels, for a row of `words` per thread.

    It finds its row at q1 and leaves its own `results` words at q2; returns the rows of all.
    """
    words = np.ascontiguousarray(words, np.uint32)
    threads = len(words)
    at = f"""
  mul.wide.u32 q1, i, {4 * words[0].size};
  add.s64 q1, x, q1;
  mul.wide.u32 q2, i, {4 * results};
  add.s64 q2, y, q2;"""
    x = device.upload(words)
    y = device.upload(np.zeros((threads, results), np.uint32))
    module = device.load(kernel(at + body, declarations, target=target))
    launch = Launch(module.kernel("kernel"), (threads // block,), (block,), shared, (x, y, 0))
    device.launch(launch)
    return device.download(y, np.uint32, (threads, results))


def by_warp(rows):
    return rows.reshape(-1, 32, *rows.shape[1:])


def lane_masks(rng):
    """For each lane of WARPS warps the lanes it works with: all, or those of its own group."""
    masks = np.full((WARPS, 32), FULL, np.uint32)
    for warp in range(WARPS // 4, WARPS):
        group = int(rng.integers(1, FULL))
        inside = (group >> np.arange(32) & 1).astype(bool)
        masks[warp] = np.where(inside, group, FULL ^ group)
    return masks


def bits_set(mask):
    return [lane for lane in range(32) if mask >> lane & 1]


def shuffled_from(mode, lane, b, c):
    """The lane that is read, and whether it is in range: the ISA's text."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    most, least = (lane & segment) | (clamp & ~segment), lane & segment
    j = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": least | (b & ~segment),
    }[mode]
    inside = j >= most if mode == "up" else j <= most
    return (j, True) if inside else (lane, False)


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(device, mode):
    rng = np.random.default_rng(1)
    a = rng.integers(0, FULL, (WARPS, 32), np.uint32)
    b = rng.integers(0, 64, (WARPS, 32), np.uint32)
    b[: WARPS // 2] = rng.integers(0, 33, (WARPS // 2, 1))
    segments = rng.choice([0, 0x10, 0x18, 0x1C, 0x1E, 0x1F, 0x15], (WARPS, 1))
    clamps = rng.choice([0, 31, 7, 3, 16], (WARPS, 1))
    c = np.broadcast_to(segments << 8 | clamps, a.shape)
    rows = run_words(
        device,
        f"""
  ld.global.v2.u32 {{r1, r2}}, [q1];
  ld.global.u32 r3, [q1+8];
  shfl.sync.{mode}.b32 r4|p1, r1, r2, r3, -1;
  shfl.sync.{mode}.b32 r5, r1, r2, r3, 0xffffffff;
  shfl.sync.{mode}.b32 _|p2, r1, r2, r3, 0xffffffff;
  selp.u32 r6, 1, 0, p1;
  selp.u32 r7, 1, 0, p2;
  st.global.v4.u32 [q2], {{r4, r5, r6, r7}};""",
        np.stack([a, b, c], -1).reshape(-1, 3).repeat([1, 1, 2], 1),
        4,
    )
    for warp, got in enumerate(by_warp(rows)):
        for lane in range(32):
            j, inside = shuffled_from(mode, lane, int(b[warp, lane]), int(c[warp, lane]))
            assert got[lane].tolist() == [a[warp, j], a[warp, j], inside, inside], (warp, lane)


def test_shfl_of_some_lanes(device):
    rng = np.random.default_rng(2)
    masks = lane_masks(rng)
    a = rng.integers(0, FULL, (WARPS, 32), np.uint32)
    b = np.array([[rng.choice(bits_set(int(m))) for m in row] for row in masks])
    rows = run_words(
        device,
        """
  ld.global.v4.u32 {r1, r2, r3, r4}, [q1];
  shfl.sync.idx.b32 r5, r1, r2, 31, r3;
  st.global.u32 [q2], r5;""",
        np.stack([a, b, masks, masks], -1).reshape(-1, 4),
    )
    expected = np.take_along_axis(a, b, 1)
    assert (by_warp(rows)[..., 0] == expected).all()


def test_shfl_in_two_branches(device):
    lanes = np.arange(64, dtype=np.uint32)
    rows = run_words(
        device,
        """
  ld.global.u32 r1, [q1];
  setp.lt.u32 p1, lane, 16;
  @p1 bra low;
  shfl.sync.down.b32 r2, r1, 3, 31, 0xffff0000;
  bra.uni join;
low:
  shfl.sync.up.b32 r2, r1, 2, 0, 0x0000ffff;
join:
  st.global.u32 [q2], r2;""",
        1000 + lanes[:, None],
    )
    lane = lanes % 32
    low, high = np.where(lane >= 2, lanes - 2, lanes), np.where(lane <= 28, lanes + 3, lanes)
    assert (rows[:, 0] == 1000 + np.where(lane < 16, low, high)).all()


def of_groups(masks, values, f):
    """f(values of the group, mask) for each lane."""
    result = np.zeros(masks.shape, np.uint64)
    for warp, row in enumerate(masks):
        for mask in set(row.tolist()):
            lanes = bits_set(mask)
            result[warp, lanes] = f([int(v) for v in values[warp, lanes]], lanes)
    return result


VOTES = {
    "all": ("pred", all),
    "any": ("pred", any),
    "uni": ("pred", lambda p: all(p) or not any(p)),
}


@pytest.mark.parametrize("negated", ["", "!"])
@pytest.mark.parametrize("mode", [*VOTES, "ballot"])
def test_vote(device, mode, negated):
    rng = np.random.default_rng(3)
    masks = lane_masks(rng)
    p = (rng.random((WARPS, 32)) < rng.choice([0, 0.02, 0.5, 0.98, 1], (WARPS, 1))).astype(int)
    if mode == "ballot":
        vote = f"vote.sync.ballot.b32 r3, {negated}p1, r2;"
    else:
        vote = f"vote.sync.{mode}.pred p2, {negated}p1, r2;\n  selp.u32 r3, 1, 0, p2;"
    rows = run_words(
        device,
        f"""
  ld.global.v2.u32 {{r1, r2}}, [q1];
  setp.ne.u32 p1, r1, 0;
  {vote}
  st.global.u32 [q2], r3;""",
        np.stack([p, masks], -1).reshape(-1, 2),
    )

    def result(values, lanes):
        values = [bool(v) != bool(negated) for v in values]
        if mode == "ballot":
            return sum(v << lane for v, lane in zip(values, lanes, strict=True))
        return VOTES[mode][1](values)

    assert (by_warp(rows)[..., 0] == of_groups(masks, p, result)).all()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("mode", ["any", "all", "all with a predicate"])
def test_match(device, mode, bits):
    rng = np.random.default_rng(4)
    masks = lane_masks(rng)
    values = rng.integers(0, rng.choice([1, 2, 40], (WARPS, 1)), (WARPS, 32))
    # Of 64 bits the upper half makes the difference.
    words = [values, values * 0 + 7] if bits == 32 else [values * 0 + 7, values]
    to = "r5|p1" if "predicate" in mode else "r5"
    rows = run_words(
        device,
        f"""
  setp.eq.u32 p1, r0, r0;
  ld.global.v4.u32 {{r1, r2, r3, r4}}, [q1];
  mov.b64 q3, {{r1, r2}};
  match.{mode[:3]}.sync.b{bits} {to}, {"r1" if bits == 32 else "q3"}, r3;
  selp.u32 r6, 1, 0, p1;
  st.global.v2.u32 [q2], {{r5, r6}};""",
        np.stack([*words, masks, masks], -1).reshape(-1, 4),
        2,
    )

    def result(values, lanes):
        whole = sum(1 << lane for lane in lanes)
        if mode != "any":
            return whole if len(set(values)) == 1 else 0
        return [
            sum(1 << lane for other, lane in zip(values, lanes, strict=True) if other == value)
            for value in values
        ]

    got, expected = by_warp(rows), of_groups(masks, values, result)
    assert (got[..., 0] == expected).all()
    if "predicate" in mode:
        assert (got[..., 1] == (expected != 0)).all()


REDUCTIONS = {
    "add.u32": sum,
    "add.s32": sum,
    "min.u32": min,
    "max.u32": max,
    "min.s32": min,
    "max.s32": max,
    "and.b32": lambda v: np.bitwise_and.reduce(v),
    "or.b32": lambda v: np.bitwise_or.reduce(v),
    "xor.b32": lambda v: np.bitwise_xor.reduce(v),
}


@pytest.mark.parametrize("op", REDUCTIONS)
def test_redux(device, op):
    rng = np.random.default_rng(5)
    masks = lane_masks(rng)
    values = rng.integers(0, 1 << 32, (WARPS, 32)) | rng.integers(0, 1 << 32, (WARPS, 1))
    rows = run_words(
        device,
        f"""
  ld.global.v2.u32 {{r1, r2}}, [q1];
  redux.sync.{op} r3, r1, r2;
  st.global.u32 [q2], r3;""",
        np.stack([values, masks], -1).reshape(-1, 2),
    )

    def result(values, lanes):
        if "s32" in op:
            values = [v - (1 << 32) if v >> 31 else v for v in values]
        return int(REDUCTIONS[op](values)) % (1 << 32)

    assert (by_warp(rows)[..., 0] == of_groups(masks, values, result)).all()


# ---- barriers and control -----------------------------------------------------------------------


@pytest.mark.parametrize("negated", ["", "!"])
@pytest.mark.parametrize("count", ["", "96, "])
@pytest.mark.parametrize(
    "name", ["bar", "bar.cta", "barrier", "barrier.cta", "barrier.cta.aligned"]
)
def test_barrier_reduction(device, name, count, negated):
    """Three warps of a block; of 96 threads some, none or all have the predicate."""
    name, _, aligned = name.partition(".aligned")
    aligned = ".aligned" if name == "barrier.cta" and not count else aligned
    rng = np.random.default_rng(6)
    p = (rng.random((8, 96)) < np.linspace(0, 1, 8)[:, None]).astype(np.uint32)
    rows = run_words(
        device,
        f"""
  ld.global.u32 r1, [q1];
  setp.ne.u32 p1, r1, 0;
  mov.u32 r5, 3;
  {name}.red{aligned}.popc.u32 r2, 0, {count}{negated}p1;
  {name}.red{aligned}.and.pred p2, r5, {count}{negated}p1;
  {name}.red{aligned}.or.pred p3, 15, {count}{negated}p1;
  selp.u32 r3, 1, 0, p2;
  selp.u32 r4, 1, 0, p3;
  st.global.u32 [q2], r2;
  st.global.u32 [q2+4], r3;
  st.global.u32 [q2+8], r4;""",
        p.reshape(-1, 1),
        3,
        block=96,
    ).reshape(8, 96, 3)
    p = p == 0 if negated else p != 0
    assert (rows[..., 0] == p.sum(1)[:, None]).all()
    assert (rows[..., 1] == p.all(1)[:, None]).all()
    assert (rows[..., 2] == p.any(1)[:, None]).all()


def test_barrier_reduction_counts_the_threads_that_exist(device):
    """The third warp of 80 threads is half a warp."""
    rows = run_words(
        device,
        """
  setp.ge.u32 p1, tid, 70;
  bar.red.popc.u32 r1, 0, p1;
  setp.lt.u32 p1, tid, 80;
  bar.red.and.pred p2, 0, p1;
  selp.u32 r2, 1, 0, p2;
  st.global.v2.u32 [q2], {r1, r2};""",
        np.zeros((80, 1)),
        2,
        block=80,
    )
    assert (rows == [10, 1]).all()


SHARED_TILE = "  .shared .align 4 .b8 tile[1024];\n"
OWN_PLACE = """
  mov.u32 r1, tile;
  shl.b32 r2, tid, 2;
  add.u32 r1, r1, r2;
  mov.u32 r3, tile;
  xor.b32 r4, tid, 77;
  shl.b32 r4, r4, 2;
  add.u32 r3, r3, r4;"""


def exchange(barrier):
    """Each thread reads what another one of its 128 wrote."""
    return (
        SHARED_TILE
        + OWN_PLACE
        + f"""
  st.shared.u32 [r1], i;
  {barrier}
  ld.shared.u32 r5, [r3];
  st.global.u32 [yi], r5;"""
    )


def program(name, body, result, grid=2, block=128, **options):
    name = re.sub(r"\W+", "_", name).strip("_")
    return Case(name, "", body, (), result, grid=grid, block=block, **options)


def collatz(x):
    steps = 0
    while x != 1:
        x, steps = (3 * x + 1 if x % 2 else x // 2), steps + 1
    return steps


PROGRAMS = [
    *(
        program(f"exchange at {barrier}", exchange(barrier), lambda i, x: i ^ 77)
        for barrier in (
            "bar.sync 0;",
            "bar.cta.sync 5;",
            "bar.sync 0, 128;",
            "mov.u32 r6, 9; bar.sync r6;",
            "mov.u32 r6, 128; bar.sync 2, r6;",
            "barrier.sync 0;",
            "barrier.cta.sync 0;",
            "barrier.sync.aligned 0;",
            "barrier.cta.sync.aligned 1, 128;",
        )
    ),
    *(
        # The first two warps write and go on, the other two wait for them.
        program(
            f"{arrive} before {wait}",
            SHARED_TILE
            + OWN_PLACE
            + f"""
  mov.u32 r6, i;
  setp.ge.u32 p1, tid, 64;
  @p1 bra reader;
  st.shared.u32 [r1], i;
  {arrive}
  bra.uni done;
reader:
  {wait}
  xor.b32 r4, tid, 64;
  shl.b32 r4, r4, 2;
  mov.u32 r3, tile;
  add.u32 r3, r3, r4;
  ld.shared.u32 r6, [r3];
done:
  st.global.u32 [yi], r6;""",
            lambda i, x: np.where(i % 128 < 64, i, i ^ 64),
        )
        for arrive, wait in (
            ("bar.arrive 1, 128;", "bar.sync 1, 128;"),
            ("bar.cta.arrive 2, 128;", "barrier.cta.sync 2, 128;"),
            ("barrier.arrive 3, 128;", "bar.cta.sync 3, 128;"),
            ("barrier.cta.arrive.aligned 4, 128;", "barrier.sync.aligned 4, 128;"),
        )
    ),
    *(
        program(
            f"bar.warp.sync {mask}",
            SHARED_TILE
            + OWN_PLACE
            + f"""
  st.shared.u32 [r1], i;
  bar.warp.sync {mask};
  xor.b32 r4, tid, 5;
  shl.b32 r4, r4, 2;
  mov.u32 r3, tile;
  add.u32 r3, r3, r4;
  ld.shared.u32 r5, [r3];
  st.global.u32 [yi], r5;""",
            lambda i, x: i ^ 5,
        )
        for mask in ("-1", "0xffffffff")
    ),
    program(
        "bar.warp.sync in two branches",
        SHARED_TILE
        + OWN_PLACE
        + """
  setp.lt.u32 p1, lane, 13;
  st.shared.u32 [r1], i;
  @p1 bra low;
  bar.warp.sync 0xffffffff;
  bra.uni join;
low:
  bar.warp.sync 0xffffffff;
join:
  mov.u32 r3, tile;
  xor.b32 r4, tid, 31;
  shl.b32 r4, r4, 2;
  add.u32 r3, r3, r4;
  ld.shared.u32 r5, [r3];
  st.global.u32 [yi], r5;""",
        lambda i, x: i ^ 31,
    ),
    program(
        "activemask",
        """
  and.b32 r1, lane, 3;
  setp.eq.u32 p1, r1, 0;
  activemask.b32 r2;
  @p1 bra other;
  activemask.b32 r3;
  bra.uni join;
other:
  activemask.b32 r3;
join:
  activemask.b32 r4;
  xor.b32 r5, r2, r4;
  not.b32 r5, r5;
  popc.b32 r5, r5;
  setp.eq.u32 p2, r5, 32;
  selp.b32 r3, r3, 0, p2;
  st.global.u32 [yi], r3;""",
        lambda i, x: np.where(i % 4 == 0, 0x11111111, 0xEEEEEEEE),
    ),
    program(
        "nested ifs",
        """
  mov.u32 r1, 0;
  and.b32 r2, i, 1;
  setp.eq.u32 p1, r2, 0;
  and.b32 r2, i, 2;
  setp.eq.u32 p2, r2, 0;
  and.b32 r2, i, 4;
  setp.eq.u32 p3, r2, 0;
  @p1 bra even;
  @p2 bra odd_low;
  add.u32 r1, r1, 1;
  @!p3 bra odd_end;
  add.u32 r1, r1, 10;
odd_end:
  bra odd_join;
odd_low:
  add.u32 r1, r1, 100;
odd_join:
  add.u32 r1, r1, 1000;
  bra join;
even:
  @!p3 bra even_join;
  add.u32 r1, r1, 20000;
even_join:
  add.u32 r1, r1, 200000;
join:
  vote.sync.ballot.b32 r2, p1, 0xffffffff;
  popc.b32 r2, r2;
  mad.lo.u32 r1, r2, 1000000, r1;
  st.global.u32 [yi], r1;""",
        lambda i, x: (
            16000000
            + np.where(
                i & 1,
                1000 + np.where(i & 2, 1 + np.where(i & 4, 0, 10), 100),
                200000 + np.where(i & 4, 0, 20000),
            )
        ),
    ),
    program(
        "loops of different lengths",
        """
  mov.u32 r1, 0;
  add.u32 r2, i, 1;
again:
  setp.eq.u32 p1, r2, 1;
  @p1 bra done;
  add.u32 r1, r1, 1;
  and.b32 r3, r2, 1;
  setp.eq.u32 p2, r3, 0;
  @p2 shr.u32 r2, r2, 1;
  @!p2 mad.lo.u32 r2, r2, 3, 1;
  bra again;
done:
  st.global.u32 [yi], r1;""",
        lambda i, x: np.vectorize(collatz)(i + 1),
    ),
    program(
        "a loop in a loop",
        """
  and.b32 r1, i, 7;
  mov.u32 r4, 0;
outer:
  mov.u32 r2, 0;
inner:
  setp.ge.u32 p1, r2, r1;
  @p1 bra inner_done;
  add.u32 r4, r4, r2;
  add.u32 r2, r2, 1;
  bra.uni inner;
inner_done:
  setp.eq.u32 p1, r1, 0;
  add.s32 r1, r1, -1;
  @!p1 bra outer;
  st.global.u32 [yi], r4;""",
        lambda i, x: np.vectorize(lambda n: sum(r * (r - 1) // 2 for r in range(n + 1)))(i % 8),
    ),
    *(
        program(
            f"early {leave}",
            f"""
  setp.eq.u32 p1, lane, 7;
  st.global.u32 [yi], 1;
  @p1 {leave};
  setp.gt.u32 p2, lane, 20;
  @!p2 bra more;
  st.global.u32 [yi], 2;
  {leave};
more:
  vote.sync.ballot.b32 r1, p1, 0x001fff7f;
  activemask.b32 r1;
  st.global.u32 [yi], r1;""",
            lambda i, x: np.where(i % 32 == 7, 1, np.where(i % 32 > 20, 2, 0x1FFF7F)),
        )
        for leave in ("ret", "exit", "ret.uni")
        if leave != "ret.uni"
    ),
    program(
        "a barrier after some have left",
        """
  st.global.u32 [yi], 1;
  setp.lt.u32 p1, tid, 32;
  @p1 exit;
  bar.sync 0;
  st.global.u32 [yi], 2;
  ret.uni;""",
        lambda i, x: np.where(i % 128 < 32, 1, 2),
    ),
    program(
        "guards",
        """
  and.b32 r1, i, 1;
  setp.eq.u32 p1, r1, 0;
  mov.u32 r2, 5;
  @p1 mov.u32 r2, 6;
  @!p1 add.u32 r2, r2, 10;
  @p1 st.global.u32 [yi], r2;
  @!p1 st.global.u32 [yi], r2;""",
        lambda i, x: np.where(i % 2, 15, 6),
    ),
    program(
        "what changes no value",
        """
  membar.cta;
  membar.gl;
  membar.sys;
  fence.cta;
  fence.sc.gpu;
  fence.acq_rel.sys;
  fence.acquire.gpu;
  fence.release.cta;
  nanosleep.u32 100;
  nanosleep.u32 i;
  prefetch.global.L1 [xi];
  prefetch.global.L2 [xi];
  prefetch.global.L2::evict_last [xi];
  prefetch.global.L2::evict_normal [xi];
  prefetch.L2 [xi];
  prefetch.local.L1 [0];
  prefetchu.L1 [xi];
  createpolicy.fractional.L2::evict_first.b64 q1, 0.25;
  createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 q1, 0f3F000000;
  createpolicy.fractional.L2::evict_normal.b64 q1;
  createpolicy.fractional.L2::evict_unchanged.L2::evict_first.b64 q1;
  st.global.u32 [yi], i;""",
        lambda i, x: i,
    ),
    program(
        "groups of copies",
        """
  .shared .align 16 .b8 tile[4096];
  mov.u32 r1, tile;
  shl.b32 r2, tid, 4;
  add.u32 r1, r1, r2;
  st.shared.v4.u32 [r1], {n, n, n, n};
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.commit_group;
  cp.async.ca.shared.global [r1+4], [xi], 4;
  cp.async.commit_group;
  cp.async.commit_group;
  cp.async.ca.shared.global [r1+8], [xi], 4;
  cp.async.wait_group 2;
  ld.shared.u32 r3, [r1];
  cp.async.wait_group 0;
  ld.shared.u32 r4, [r1+4];
  cp.async.commit_group;
  cp.async.wait_group 0;
  ld.shared.u32 r5, [r1+8];
  cp.async.ca.shared.global [r1+12], [xi], 4;
  cp.async.wait_all;
  ld.shared.u32 r6, [r1+12];
  add.u32 r3, r3, r4;
  add.u32 r3, r3, r5;
  add.u32 r3, r3, r6;
  st.global.u32 [yi], r3;""",
        lambda i, x: 4 * x,
    ),
    program(
        "a copy that is not waited for",
        """
  .shared .align 16 .b8 tile[4096];
  mov.u32 r1, tile;
  shl.b32 r2, tid, 4;
  add.u32 r1, r1, r2;
  cp.async.ca.shared.global [r1], [xi], 4;
  cp.async.commit_group;
  cp.async.ca.shared.global [r1+4], [xi], 4;
  cp.async.commit_group;
  cp.async.wait_group 1;
  ld.shared.u32 r3, [r1];
  st.global.u32 [yi], r3;""",
        lambda i, x: x,
    ),
    program(
        "lanes that add to one word",
        """
  red.global.add.u32 [y], 1;
  atom.global.max.u32 r1, [y+4], i;
  atom.global.inc.u32 r1, [y+8], 9;
  atom.global.or.b32 r1, [y+12], i;
  red.global.xor.b32 [y+16], x0;
  red.global.min.s32 [y+20], r2;""".replace("x0", "i").replace("r2", "-5"),
        lambda i, x: np.select(
            [i == 0, i == 1, i == 2, i == 3, i == 5],
            [256, 255, 256 % 10, 255, -5 % 2**32],
            0,
        ),
    ),
    program(
        "each lane exchanges once",
        """
  .shared .align 4 .b8 cell[8];
  setp.eq.u32 p1, tid, 0;
  @p1 st.shared.u32 [cell], 500;
  @p1 st.shared.u32 [cell+4], 0;
  bar.sync 0;
  atom.shared.exch.b32 r1, [cell], tid;
  atom.shared.add.u32 r2, [cell+4], r1;
  bar.sync 0;
  ld.shared.u32 r3, [cell];
  ld.shared.u32 r4, [cell+4];
  add.u32 r4, r4, r3;
  st.global.u32 [yi], r4;""",
        lambda i, x: 500 + 127 * 128 // 2 + 0 * i,
    ),
    program(
        "a lock by compare and swap",
        """
  .shared .align 4 .b8 sum[4];
  setp.eq.u32 p1, tid, 0;
  @p1 st.shared.u32 [sum], 0;
  bar.sync 0;
again:
  ld.volatile.shared.u32 r1, [sum];
  add.u32 r2, r1, tid;
  atom.shared.cas.b32 r3, [sum], r1, r2;
  setp.ne.u32 p2, r3, r1;
  @p2 bra again;
  bar.sync 0;
  ld.shared.u32 r4, [sum];
  st.global.u32 [yi], r4;""",
        lambda i, x: 127 * 128 // 2 + 0 * i,
    ),
]


@pytest.mark.parametrize("case", PROGRAMS, ids=str)
def test_program(case):
    assert case.run(wrong=False, approx="exact").tolist() == case.expected().tolist()


@pytest.mark.parametrize("instruction", ["trap", "brkpt"])
def test_a_kernel_stops_itself(instruction):
    with Device("ptx", 0, threads=1) as device:
        body = f"\n  setp.eq.u32 p1, lane, 9;\n  @p1 {instruction};\n  st.global.u32 [q2], 1;"
        with pytest.raises(KernelFault, match=rf"thread \(9, 0, 0\).*{instruction}"):
            run_words(device, body, np.zeros((32, 1)))


# ---- addresses, parameters, special registers ---------------------------------------------------


def test_address_windows(device):
    """A generic address is of one space, and leads back to the variable's own."""
    rows = run_words(
        device,
        """
  .shared .align 8 .b8 tile[64];
  .local .align 8 .b8 stack[64];
  mov.u32 r1, 0;
  mov.u64 q3, tile;
  mov.u64 q4, stack;
  mov.u64 q5, table;
  cvta.shared.u64 q6, q3;
  cvta.local.u64 q7, q4;
  cvta.global.u64 q8, y;
  cvta.const.u64 q9, q5;
  mov.u64 q10, n_arg;
  cvta.param.u64 q10, q10;
  cvta.to.shared.u64 q11, q6;
  setp.eq.u64 p1, q11, q3;
  @p1 or.b32 r1, r1, 1;
  cvta.to.local.u64 q11, q7;
  setp.eq.u64 p1, q11, q4;
  @p1 or.b32 r1, r1, 2;
  cvta.to.global.u64 q11, q8;
  setp.eq.u64 p1, q11, y;
  @p1 or.b32 r1, r1, 4;
  cvta.to.const.u64 q11, q9;
  ld.const.u32 r3, [q11+4];
  setp.eq.u32 p1, r3, 22;
  @p1 or.b32 r1, r1, 8;
  cvta.to.shared::cta.u64 q11, q6;
  cvta.shared::cta.u64 q11, q11;
  setp.eq.u64 p1, q11, q6;
  @p1 or.b32 r1, r1, 16;
  ld.u32 r3, [q10];
  setp.eq.u32 p1, r3, n;
  @p1 or.b32 r1, r1, 32;
  st.global.u32 [q2], r1;
  mov.u32 r2, 0;"""
        + "".join(
            f"""
  isspacep.{space} p1, q{register};
  @p1 or.b32 r2, r2, {1 << (5 * k + j)};"""
            for j, space in enumerate(("shared", "shared::cta", "local", "global", "param"))
            for k, register in enumerate((6, 7, 8, 10))
        )
        + "\n  st.global.u32 [q2+4], r2;",
        np.zeros((32, 1)),
        2,
        declarations=".const .align 4 .u32 table[2] = {11, 22};",
    )
    in_shared, in_local, in_global, in_param = 0b00011, 0b00100, 0b01000, 0b10000
    spaces = in_shared | in_local << 5 | in_global << 10 | in_param << 15
    assert (rows == [63, spaces]).all()


def test_constants_of_every_width(device):
    """ld.const at a symbol, at a symbol with an offset and at a register."""
    data = np.random.default_rng(7).integers(0, 256, 64, np.uint8)
    initial = ", ".join(map(str, data))
    body = """
  mov.u64 q3, table;
  cvta.const.u64 q4, q3;
  ld.const.u8 r1, [table];
  ld.const.s8 r2, [table+5];
  ld.const.u16 r3, [table+6];
  ld.const.s16 r4, [q3+8];
  ld.const.v4.u32 {r5, r6, r7, r8}, [table+16];
  ld.const.ca.v2.b64 {q5, q6}, [q3+32];
  ld.u32 r9, [q4+48];
  ld.const.f32 f1, [table+52];
  mov.b64 {r10, r11}, q5;
  mov.b64 {r12, r13}, q6;
  st.global.v4.u32 [q2], {r1, r2, r3, r4};
  st.global.v4.u32 [q2+16], {r5, r6, r7, r8};
  st.global.v4.u32 [q2+32], {r10, r11, r12, r13};
  st.global.u32 [q2+48], r9;
  st.global.f32 [q2+52], f1;"""
    declarations = f".const .align 16 .b8 table[64] = {{{initial}}};"
    rows = run_words(device, body, np.zeros((32, 1)), 16, declarations)
    words = data.view(np.uint32)
    short = [int(data[0]), int(np.int8(data[5])), int(data.view(np.uint16)[3])]
    short.append(int(data.view(np.int16)[4]))
    expected = [v % 2**32 for v in short] + words[4:12].tolist() + words[12:14].tolist() + [0, 0]
    assert (rows == expected).all()


def test_parameters_of_every_width(device):
    """ld.param of scalars and of bytes in an array."""
    text = (
        header(80)
        + """
.visible .entry kernel(
  .param .u64 y_arg, .param .u8 a_arg, .param .s16 b_arg, .param .f32 c_arg,
  .param .f64 d_arg, .param .align 16 .b8 e_arg[32])
{
  .reg .b32 r<8>;
  .reg .b64 q<8>, y;
  ld.param.u64 y, [y_arg];
  ld.param.u8 r0, [a_arg];
  ld.param.s16 r1, [b_arg];
  ld.param.f32 r2, [c_arg];
  ld.param.f64 q0, [d_arg];
  ld.param.v4.u32 {r3, r4, r5, r6}, [e_arg+16];
  ld.param.s8 q1, [e_arg+3];
  st.global.v4.u32 [y], {r0, r1, r2, r3};
  st.global.v2.b64 [y+16], {q0, q1};
  st.global.v4.u32 [y+32], {r3, r4, r5, r6};
  ret;
}
"""
    )
    data = bytes(range(240, 256)) + bytes(range(16))
    y = device.upload(np.zeros(12, np.uint32))
    arguments = (y, np.uint8(200), np.int16(-300), np.float32(1.5), np.float64(-0.1), data)
    device.launch(Launch(device.load(text).kernel("kernel"), (1,), (1,), 0, arguments))
    expected = np.concatenate(
        [
            np.array([200, -300 % 2**32, 0x3FC00000, 0x03020100], np.uint32),
            np.array([-0.1]).view(np.uint32),
            np.array([243 - 256], np.int64).view(np.uint32),
            np.frombuffer(data[16:], np.uint32),
        ]
    )
    assert device.download(y, np.uint32).tolist() == expected.tolist()


def special_values(block, grid):
    """Each special register, for all threads of all blocks."""
    threads = math.prod(block)
    t = np.arange(threads)
    tid = [t % block[0], t // block[0] % block[1], t // (block[0] * block[1])]
    lane = t % 32
    values = {}
    for axis, name in enumerate("xyz"):
        values[f"tid.{name}"] = tid[axis]
        values[f"ntid.{name}"] = block[axis]
        values[f"nctaid.{name}"] = grid[axis]
    values["laneid"], values["warpid"], values["nwarpid"] = lane, t // 32, -(-threads // 32)
    bit = 1 << lane
    values["lanemask_eq"], values["lanemask_lt"] = bit, bit - 1
    values["lanemask_le"], values["lanemask_gt"] = 2 * bit - 1, FULL - (2 * bit - 1)
    values["lanemask_ge"] = FULL - (bit - 1)
    values["dynamic_smem_size"], values["total_smem_size"] = 48, 48 + 20
    return {name: np.broadcast_to(value, threads) for name, value in values.items()}


def test_special_registers(device):
    block, grid = (5, 3, 4), (2, 3, 2)
    expected = special_values(block, grid)
    blocks, threads = math.prod(grid), math.prod(block)
    names = [*expected, "ctaid.x", "ctaid.y", "ctaid.z"]
    lines = [
        ".reg .b32 t<4>, v, index, r; .reg .b64 y, at; .shared .align 4 .b8 own[20];",
        "ld.param.u64 y, [y_arg]; mov.u32 r, own;",
        "mov.u32 t0, %ctaid.z; mad.lo.u32 t0, t0, 3, 0; mov.u32 t1, %ctaid.y; add.u32 t0, t0, t1;",
        "mov.u32 t1, %ctaid.x; mad.lo.u32 t0, t0, 2, t1;",
        "mov.u32 t1, %tid.z; mad.lo.u32 t1, t1, 3, 0; mov.u32 t2, %tid.y; add.u32 t1, t1, t2;",
        "mov.u32 t2, %tid.x; mad.lo.u32 t1, t1, 5, t2;",
        f"mad.lo.u32 index, t0, {threads}, t1; mul.lo.u32 index, index, {4 * len(names)};",
        "cvt.u64.u32 at, index; add.s64 y, y, at;",
    ]
    for i, name in enumerate(names):
        lines.append(f"mov.u32 v, %{name}; st.global.u32 [y+{4 * i}], v;")
    text = ".visible .entry kernel(.param .u64 y_arg)\n{\n" + "\n".join(lines) + "\nret;\n}\n"
    y = device.upload(np.zeros((blocks, threads, len(names)), np.uint32))
    launch = Launch(device.load(header(80) + text).kernel("kernel"), grid, block, 48, (y,))
    device.launch(launch)
    rows = device.download(y, np.uint32, (blocks, threads, len(names)))
    b = np.arange(blocks)[:, None]
    ctaid = {"ctaid.x": b % 2, "ctaid.y": b // 2 % 3, "ctaid.z": b // 6}
    for i, name in enumerate(names):
        right = np.broadcast_to(ctaid.get(name, expected.get(name)), (blocks, threads))
        assert (rows[..., i] == right).all(), name


def test_special_registers_of_other_widths(device):
    """16 bits of what once had 16, 64 bits of counters; clocks go on."""
    rows = run_words(
        device,
        """
  mov.u16 h1, %tid.x;
  mov.u16 h2, %ntid.x;
  mov.b32 r1, {h1, h2};
  mov.u64 q3, %clock64;
  mov.u32 r2, %clock;
  mov.u64 q4, %globaltimer;
  mov.u32 r3, %globaltimer_lo;
  mov.u32 r4, %smid;
  mov.u32 r5, %nsmid;
  setp.lt.u32 p1, r4, r5;
  selp.u32 r4, 1, 0, p1;
  mov.u64 q5, %gridid;
  mov.u32 r6, %gridid;
  cvt.u32.u64 r7, q5;
  sub.u32 r6, r6, r7;
  mov.u64 q6, %clock64;
  setp.gt.u64 p1, q6, q3;
  selp.u32 r7, 1, 0, p1;
  mov.u32 r8, %clock_hi;
  mov.u32 r9, %globaltimer_hi;
  or.b32 r8, r8, r9;
  st.global.u32 [q2], r1;
  st.global.u32 [q2+4], r4;
  st.global.u32 [q2+8], r6;
  st.global.u32 [q2+12], r7;
  st.global.u32 [q2+16], r8;""",
        np.zeros((64, 1)),
        5,
        block=64,
    )
    assert (rows[:, 0] == np.arange(64) + (64 << 16)).all()
    assert (rows[:, 1:] == [1, 0, 1, 0]).all()


# ---- matrices -----------------------------------------------------------------------------------


def accumulator(lane, i):
    """(row, column) of element i of C and D, 16 x 8."""
    return lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2


def halves_a(lane, i):
    return lane // 4 + 8 * (i // 2 % 2), 2 * (lane % 4) + i % 2 + 8 * (i // 4)


def halves_b(lane, i):
    return 2 * (lane % 4) + i % 2 + 8 * (i // 2), lane // 4


def words_a(lane, i):
    return lane // 4 + 8 * (i % 2), lane % 4 + 4 * (i // 2)


def words_b(lane, i):
    return lane % 4 + 4 * i, lane // 4


@dataclass(frozen=True)
class Product:
    """An mma.sync, D = A B + C with A 16 x k and B k x 8."""

    k: int
    kind: str  # of A and B
    total: str  # of C and D

    def __str__(self):
        return self.text

    @property
    def text(self):
        t = self.kind
        return f"mma.sync.aligned.m16n8k{self.k}.row.col.{self.total}.{t}.{t}.{self.total}"

    @property
    def atom(self):
        """CuTe's name."""
        t, total = self.kind.upper(), self.total.upper()
        return f"SM80_16x8x{self.k}_{total}{t}{t}{total}_TN"

    @property
    def format(self):
        return FORMATS[self.kind]

    def places(self):
        """(row, column) of each (lane, element) of A, B and C as the ISA's figures have them."""
        a, b = (words_a, words_b) if self.kind == "tf32" else (halves_a, halves_b)
        counts = (self.k // 2, self.k // 4, 4)
        return [
            np.array([[f(lane, i) for i in range(n)] for lane in range(32)])
            for f, n in zip((a, b, accumulator), counts, strict=True)
        ]

    def run(self, device, a, b, c, places):
        """D of warps' matrices (warps, rows, columns) of float64; each warp its own."""
        parts = [
            pack(m, at, kind)
            for m, at, kind in zip(
                (a, b, c), places, (self.kind, self.kind, self.total), strict=True
            )
        ]
        words = np.concatenate(parts, -1).reshape(-1, sum(p.shape[-1] for p in parts))
        names = [f"w{j}" for j in range(words.shape[1])]
        ends = np.cumsum([p.shape[-1] for p in parts])
        groups = np.split(np.array(names), ends[:-1])
        results = [f"d{j}" for j in range(parts[2].shape[-1])]
        listed = ", ".join("{" + ", ".join(g) + "}" for g in (results, *groups))
        body = f"\n  .reg .b32 {', '.join(names + results)};"
        body += "".join(f"\n  ld.global.b32 {n}, [q1+{4 * j}];" for j, n in enumerate(names))
        body += f"\n  {self.text} {listed};"
        body += "".join(f"\n  st.global.b32 [q2+{4 * j}], {n};" for j, n in enumerate(results))
        rows = by_warp(run_words(device, body, words, len(results)))
        return unpack(rows, places[2], self.total, (16, 8))


def pack(matrices, places, kind):
    """Registers (warps, 32, registers) that hold matrices (warps, rows, columns)."""
    values = matrices[:, places[..., 0], places[..., 1]]
    bits = FORMATS[kind].encode(values)
    return np.ascontiguousarray(bits).view(np.uint32)


def unpack(rows, places, kind, shape):
    bits = np.ascontiguousarray(rows).view(f"u{FORMATS[kind].bits // 8}")
    result = np.full((len(rows), *shape), NAN)
    result[:, places[..., 0], places[..., 1]] = FORMATS[kind].decode(bits)
    return result


PRODUCTS = [
    Product(16, "f16", "f32"),
    Product(8, "f16", "f32"),
    Product(16, "f16", "f16"),
    Product(8, "f16", "f16"),
    Product(16, "bf16", "f32"),
    Product(8, "bf16", "f32"),
    Product(8, "tf32", "f32"),
    Product(4, "tf32", "f32"),
]


def rounded(values, kind):
    """The nearest numbers of a format, by way of its own arithmetic."""
    if kind == "f16":
        return values.astype(np.float16).astype(np.float64)
    drop = {"bf16": 16, "tf32": 13, "f32": 0}[kind]
    bits = values.astype(np.float32).view(np.uint32)
    return (bits >> drop << drop).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_mma(device, product):
    """Random matrices: the error of a sum in float32, and of one rounding to float16."""
    rng = np.random.default_rng(8)
    a = rounded(rng.normal(size=(64, 16, product.k)), product.kind)
    b = rounded(rng.normal(size=(64, product.k, 8)), product.kind)
    c = rounded(rng.normal(size=(64, 16, 8)), product.total)
    d = product.run(device, a, b, c, product.places())
    y, magnitude = a @ b + c, abs(a) @ abs(b) + abs(c)
    bound = (product.k + 1) * 2.0**-24 * magnitude
    if product.total == "f16":
        bound += ulp(y, "f16")
    assert (abs(d - y) <= bound).all()


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_mma_of_small_integers_is_exact(device, product):
    rng = np.random.default_rng(9)
    shapes = (64, 16, product.k), (64, product.k, 8), (64, 16, 8)
    a, b, c = (rng.integers(-8, 9, shape).astype(float) for shape in shapes)
    assert (product.run(device, a, b, c, product.places()) == a @ b + c).all()


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_mma_of_infinities_and_nan(device, product):
    a = np.ones((1, 16, product.k))
    b, c = np.ones((1, product.k, 8)), np.zeros((1, 16, 8))
    a[0, 3, 1] = INF
    a[0, 9, 2] = NAN
    b[0, 1, 5] = 0.0
    c[0, 0, 0] = -INF
    y = np.full((16, 8), float(product.k))
    y[:, 5] -= 1
    y[3] = INF
    y[3, 5] = y[9] = NAN
    y[0, 0] = -INF
    assert np.array_equal(product.run(device, a, b, c, product.places())[0], y, equal_nan=True)


def test_mma_reads_19_bits_of_tf32(device):
    product = PRODUCTS[6]
    rng = np.random.default_rng(10)
    shapes = (32, 16, 8), (32, 8, 8), (32, 16, 8)
    a, b, c = (rounded(rng.normal(size=shape), "f32") for shape in shapes)
    places = product.places()
    full = product.run(device, a, b, c, places)
    assert (full == product.run(device, rounded(a, "tf32"), rounded(b, "tf32"), c, places)).all()


def test_movmatrix(device):
    matrices = np.random.default_rng(11).integers(0, 1 << 16, (WARPS, 8, 8)).astype(np.uint16)
    words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, 1)
    body = """
  ld.global.u32 r1, [q1];
  movmatrix.sync.aligned.m8n8.trans.b16 r2, r1;
  st.global.u32 [q2], r2;"""
    rows = run_words(device, body, words)
    turned = np.ascontiguousarray(matrices.transpose(0, 2, 1)).view(np.uint32)
    assert (rows == turned.reshape(-1, 1)).all()


@pytest.mark.parametrize("space", [".shared", ".shared::cta", ""])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(device, count, trans, space):
    data, rows = load_matrices(device, count, trans, space)
    matrices = data.reshape(-1, 4, 8, 8)[:, :count]
    if trans:
        matrices = matrices.swapaxes(2, 3)
    # Row r of a matrix is held by lanes 4 r to 4 r + 3, two elements each.
    held = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, 32)
    assert (rows.swapaxes(1, 2) == held).all()


def load_matrices(device, count, trans, space):
    """ldmatrix of rows at random places; returns the rows (warps, 32, 8), lane by lane, and
    what each lane got: (warps, 32, count)."""
    rng = np.random.default_rng(12)
    places = np.stack([rng.permutation(64)[:32] for _ in range(8)])
    data = rng.integers(0, 1 << 16, (8, 32, 8)).astype(np.uint16)
    words = np.concatenate([data.view(np.uint32), places[..., None], places[..., None]], -1)
    results = [f"r{10 + j}" for j in range(count)]
    address = "r1"
    generic = ""
    if not space:
        address, generic = "q3", "\n  cvt.u64.u32 q3, r1;\n  cvta.shared.u64 q3, q3;"
    rows = run_words(
        device,
        f"""
  .shared .align 16 .b8 tile[1024];
  ld.global.u32 r1, [q1+16];
  shl.b32 r1, r1, 4;
  mov.u32 r2, tile;
  add.u32 r1, r1, r2;
  ld.global.v2.u32 {{r3, r4}}, [q1];
  ld.global.v2.u32 {{r5, r6}}, [q1+8];
  st.shared.v4.u32 [r1], {{r3, r4, r5, r6}};
  bar.warp.sync 0xffffffff;{generic}
  ldmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 {{{", ".join(results)}}}, [{address}];"""
        + "".join(f"\n  st.global.u32 [q2+{4 * j}], {r};" for j, r in enumerate(results)),
        words.reshape(-1, 6),
        count,
    )
    return data, by_warp(rows)


@pytest.mark.parametrize("space", [".shared", ".shared::cta", ""])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(newest, count, trans, space):
    held, tiles, places = store_matrices(newest, count, trans, space)
    # Row r of a matrix is held by lanes 4 r to 4 r + 3, two elements each.
    matrices = np.ascontiguousarray(held.swapaxes(1, 2)).view(np.uint16)
    matrices = matrices.reshape(-1, count, 8, 8)
    if trans:
        matrices = matrices.swapaxes(2, 3)
    expected = np.full((len(held), 64, 8), 0xFFFF, np.uint16)
    for tile, rows, at in zip(expected, matrices.reshape(-1, 8 * count, 8), places, strict=True):
        tile[at[: 8 * count]] = rows
    assert (tiles == expected).all()


def store_matrices(device, count, trans, space):
    """stmatrix to rows at random places; returns what each lane held (warps, 32, count), the rows
    of shared memory (warps, 64, 8), where what was not stored is all ones, and the places."""
    rng = np.random.default_rng(13)
    places = np.stack([rng.permutation(64)[:32] for _ in range(8)])
    held = rng.integers(0, FULL, (8, 32, count), np.uint32)
    words = np.concatenate([held, places[..., None].repeat(6 - count, -1)], -1)
    sources = [f"r{10 + j}" for j in range(count)]
    address = "r1"
    generic = ""
    if not space:
        address, generic = "q3", "\n  cvt.u64.u32 q3, r1;\n  cvta.shared.u64 q3, q3;"
    rows = run_words(
        device,
        """
  .shared .align 16 .b8 tile[1024];
  mov.u32 r2, tile;
  mad.lo.u32 r3, lane, 32, r2;
  mov.u32 r4, -1;
  st.shared.v4.u32 [r3], {r4, r4, r4, r4};
  st.shared.v4.u32 [r3+16], {r4, r4, r4, r4};
  bar.warp.sync 0xffffffff;
  ld.global.u32 r1, [q1+20];
  mad.lo.u32 r1, r1, 16, r2;"""
        + "".join(f"\n  ld.global.u32 {r}, [q1+{4 * j}];" for j, r in enumerate(sources))
        + f"""{generic}
  stmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 [{address}], {{{", ".join(sources)}}};
  bar.warp.sync 0xffffffff;
  ld.shared.v4.u32 {{r4, r5, r6, r7}}, [r3];
  st.global.v4.u32 [q2], {{r4, r5, r6, r7}};
  ld.shared.v4.u32 {{r4, r5, r6, r7}}, [r3+16];
  st.global.v4.u32 [q2+16], {{r4, r5, r6, r7}};""",
        words.reshape(-1, 6),
        8,
        target=90,
    )
    return held, np.ascontiguousarray(rows).view(np.uint16).reshape(-1, 64, 8), places


# ---- matrices, as CuTe has them -----------------------------------------------------------------

CUTE = "cutlass_library/source/include/cute/atom"


@pytest.fixture(scope="module")
def cute():
    """CuTe's tables: {name of an atom: {name of a layout: pycute's}}."""
    pytest.importorskip("pycute", reason="nvidia-cutlass is not installed")
    try:
        files = metadata.distribution("nvidia-cutlass")
    except metadata.PackageNotFoundError:
        pytest.skip("nvidia-cutlass is not installed")
    text = "".join(
        files.locate_file(f"{CUTE}/{name}").read_text()
        for name in ("mma_traits_sm80.hpp", "copy_traits_sm75.hpp", "copy_traits_sm90.hpp")
    )
    return cute_layouts(re.sub(r"//.*", "", text))


def cute_layouts(text):
    from pycute import Layout

    def layout(value):
        if value in named:
            return named[value]
        value = re.sub(r"\s|Layout", "", value)
        value = re.sub(r"_(\d+)", r"\1", re.sub(r"(Shape|Stride)?<", "(", value)).replace(">", ")")
        return Layout(*ast.literal_eval(value))

    named = {}
    for name, value in re.findall(
        r"using (\w+)\s*=\s*(Layout<[^;]*>);", text.partition("template")[0]
    ):
        named[name] = layout(value)
    atoms = {}
    struct = r"struct \w+_Traits<(\w+)>\s*(?::\s*\w+_Traits<(\w+)>)?\s*\{(.*?)\};"
    for name, base, members in re.findall(struct, text, re.DOTALL):
        atoms[name] = dict(atoms.get(base, {}))
        for member, value in re.findall(r"using (\w+Layout)\s*=\s*([^;]*);", members):
            of_other = re.match(r"typename Copy_Traits<(\w+)>::(\w+)", value)
            if of_other and of_other[1] in atoms:
                atoms[name][member] = atoms[of_other[1]][of_other[2]]
            elif value in named or value.startswith("Layout"):
                atoms[name][member] = layout(value.strip())
    return atoms


def cute_places(layout, count, rows):
    """(row, column) of each (lane, element): CuTe numbers a matrix down its columns."""
    at = np.array([[layout(lane, i) for i in range(count)] for lane in range(32)])
    return np.stack([at % rows, at // rows], -1)


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_mma_layouts_are_cutes(device, cute, product):
    """An element of A, of B or of C alone is 1, the others say their own place."""
    k = product.k
    layouts = cute[product.atom]
    a = cute_places(layouts["ALayout"], k // 2, 16)
    b = cute_places(layouts["BLayout"], k // 4, 8)[..., ::-1]  # which CuTe has as (n, k)
    c = cute_places(layouts["CLayout"], 4, 16)
    for mine, its in zip(product.places(), (a, b, c), strict=True):
        assert (mine == its).all()
    code = 1.0 + np.arange(8 * k).reshape(k, 8)
    ones = np.zeros((16 * k, 16, k))
    ones[(np.arange(16 * k), *a.reshape(-1, 2).T)] = 1
    d = product.run(
        device, ones, np.broadcast_to(code, (16 * k, k, 8)), np.zeros((16 * k, 16, 8)), (a, b, c)
    )
    assert (d == ones @ code).all()
    code = 1.0 + np.arange(16 * k).reshape(16, k)
    ones = np.zeros((8 * k, k, 8))
    ones[(np.arange(8 * k), *b.reshape(-1, 2).T)] = 1
    d = product.run(
        device, np.broadcast_to(code, (8 * k, 16, k)), ones, np.zeros((8 * k, 16, 8)), (a, b, c)
    )
    assert (d == code @ ones).all()


@pytest.mark.parametrize(
    "count, trans, atom",
    [
        (1, "", "SM75_U32x1_LDSM_N"),
        (2, "", "SM75_U32x2_LDSM_N"),
        (4, "", "SM75_U32x4_LDSM_N"),
        (1, ".trans", "SM75_U16x2_LDSM_T"),
        (2, ".trans", "SM75_U16x4_LDSM_T"),
        (4, ".trans", "SM75_U16x8_LDSM_T"),
    ],
)
def test_ldmatrix_layouts_are_cutes(device, cute, count, trans, atom):
    """CuTe maps lanes and their bits to bits of the whole, for rows read and registers written."""
    data, rows = load_matrices(device, count, trans, ".shared")
    source, target = cute[atom]["SrcLayout"], cute[atom]["DstLayout"]
    whole = np.zeros((len(data), count * 64), np.uint16)
    for lane in reversed(range(32)):  # of lanes that share a row the first one's address counts
        for element in range(8):
            whole[:, source(lane, 16 * element) // 16] = data[:, lane, element]
    got = np.ascontiguousarray(rows).view(np.uint16)
    for lane in range(32):
        for element in range(2 * count):
            assert (got[:, lane, element] == whole[:, target(lane, 16 * element) // 16]).all()


@pytest.mark.parametrize(
    "count, trans, atom",
    [
        (1, "", "SM90_U32x1_STSM_N"),
        (2, "", "SM90_U32x2_STSM_N"),
        (4, "", "SM90_U32x4_STSM_N"),
        (1, ".trans", "SM90_U16x2_STSM_T"),
        (2, ".trans", "SM90_U16x4_STSM_T"),
        (4, ".trans", "SM90_U16x8_STSM_T"),
    ],
)
def test_stmatrix_layouts_are_cutes(newest, cute, count, trans, atom):
    """As of ldmatrix, for registers read and rows written."""
    held, tiles, places = store_matrices(newest, count, trans, ".shared")
    source, target = cute[atom]["SrcLayout"], cute[atom]["DstLayout"]
    elements = np.ascontiguousarray(held).view(np.uint16)
    whole = np.zeros((len(held), count * 64), np.uint16)
    for lane in range(32):
        for element in range(2 * count):
            whole[:, source(lane, 16 * element) // 16] = elements[:, lane, element]
    for warp, at in enumerate(places):
        for lane in range(8 * count):
            for element in range(8):
                written = tiles[warp, at[lane], element]
                assert written == whole[warp, target(lane, 16 * element) // 16]


# ---- what is refused ----------------------------------------------------------------------------

# Registers of the kernels that instructions are refused in.
SURROUNDINGS = """
.visible .entry kernel(.param .u64 a_arg)
{{
  .reg .pred p<8>;
  .reg .b16 h<8>;
  .reg .b32 r<16>;
  .reg .b64 q<8>;
  .shared .align 16 .b8 tile[256];
  mov.u32 r9, tile;
  ld.param.u64 q7, [a_arg];
  {};
  ret;
}}
"""

# No assembler takes these for sm_89 either: of newer architectures, or of none.
REFUSED = """
add.cc.u16 h0, h1, h2
add.f16.rz h0, h1, h2
add.rz.f16 h0, h1, h2
add.bf16 h0, h1, h2
add.bf16x2 r0, r1, r2
add.f32x2 q0, q1, q2
add.sat.u32 r0, r1, r2
add.sat.f64 q0, q1, q2
add.ftz.f64 q0, q1, q2
add.u8 h0, h1, h2
add.s32 r0, r1
add.s32 r0, r1, q2
add.s32 5, r1, r2
sub.cc.s16 h0, h1, h2
mul.u32 r0, r1, r2
mul.wide.u64 q0, q1, q2
mad.wide.cc.u32 q0, r1, r2, q3
mad.lo.sat.s32 r0, r1, r2, r3
mad.f32 r0, r1, r2, r3
fma.f32 r0, r1, r2, r3
fma.rn.relu.f32 r0, r1, r2, r3
fma.rn.sat.relu.f16 h0, h1, h2, h3
fma.rn.ftz.bf16 h0, h1, h2, h3
fma.rz.f16 h0, h1, h2, h3
div.f32 r0, r1, r2
div.f64 q0, q1, q2
div.rn.sat.f32 r0, r1, r2
rcp.f32 r0, r1
rcp.approx.f64 q0, q1
sqrt.f64 q0, q1
sqrt.rn.sat.f32 r0, r1
rsqrt.rn.f32 r0, r1
ex2.f32 r0, r1
ex2.approx.ftz.f16 h0, h1
ex2.approx.ftz.bf16 h0, h1
tanh.approx.ftz.f32 r0, r1
tanh.approx.bf16x2 r0, r1
lg2.approx.f16 h0, h1
sin.approx.f64 q0, q1
min.relu.s32 r0, r1, r2
max.s16x2 r0, r1, r2
min.NaN.f64 q0, q1, q2
max.xorsign.f32 r0, r1, r2
min.f32 r0, r1, r2, r3
abs.u32 r0, r1
neg.ftz.bf16 h0, h1
copysign.f16 h0, h1, h2
testp.zero.f32 p0, r1
testp.finite.f16 p0, h1
mul24.lo.u16 h0, h1, h2
dp4a.u32.b32 r0, r1, r2, r3
dp2a.u32.u32 r0, r1, r2, r3
and.u32 r0, r1, r2
cnot.pred p0, p1
shl.u32 r0, r1, r2
shl.b32 r0, r1, q2
shf.l.b32 r0, r1, r2, r3
popc.b16 r0, h1
popc.u32 r0, r1
bfind.b32 r0, r1
brev.u32 r0, r1
bfe.b32 r0, r1, r2, r3
bfi.u32 r0, r1, r2, r3, r4
bmsk.b32 r0, r1, r2
lop3.b32 r0, r1, r2, r3, r4
prmt.b32.f8e r0, r1, r2, r3
cvt.f16.f32 h0, r1
cvt.f32.f64 r0, q1
cvt.rn.f32.f16 r0, h1
cvt.s32.f32 r0, r1
cvt.f32.s32 r0, r1
cvt.rni.f32.s32 r0, r1
cvt.rn.s32.f32 r0, r1
cvt.rni.f64.f32 q0, r1
cvt.ftz.f64.f64 q0, q1
cvt.sat.u32.u16 r0, h1
cvt.relu.s32.s32 r0, r1
cvt.rm.relu.f16.f32 h0, r1
cvt.rn.bf16.s32 h0, r1
cvt.rn.bf16.f64 h0, q1
cvt.f64.bf16 q0, h1
cvt.rn.sat.bf16.f32 h0, r1
cvt.rn.tf32.f32 r0, r1
cvt.rna.relu.tf32.f32 r0, r1
cvt.rm.f16x2.f32 r0, r1, r2
cvt.rn.sat.bf16x2.f32 r0, r1, r2
cvt.rn.f16x2.f32 r0, r1
cvt.u32.u64 r0, r1
cvta.u64 q0, q1
isspacep p0, q1
setp.lt.b32 p0, r1, r2
setp.lo.s32 p0, r1, r2
setp.num.s32 p0, r1, r2
setp.eq.ftz.f64 p0, q1, q2
setp.eq.bf16 p0, h1, h2
setp.eq.f16 p0|p1, h1, h2
setp.eq.and.s32 p0, r1, r2
set.eq.u16.s32 h0, r1, r2
set.eq.b32.s32 r0, r1, r2
set.eq.f16.f16x2 h0, r1, r2
selp.f16 h0, h1, h2, p0
slct.ftz.f32.s32 r0, r1, r2, r3
slct.f32.u32 r0, r1, r2, r3
mov.f16 h0, h1
mov.u32 r0, {h0, h1}
mov.b32 r0, {r1, r2}
mov.u64 q0, %tid.x
mov.u32 r0, %clock64
mov.f32 r0, %laneid
mov.u32 r0, %nowhere
ld.global.v8.u32 {r0, r1, r2, r3, r4, r5, r6, r7}, [q7]
ld.global.v4.u64 {q0, q1, q2, q3}, [q7]
ld.global.v2.u32 {r0, r1, r2}, [q7]
ld.global.u32 h0, [q7]
ld.global.f16 h0, [q7]
ld.global.relaxed.u32 r0, [q7]
ld.relaxed.global.u32 r0, [q7]
ld.release.gpu.global.u32 r0, [q7]
ld.acquire.cluster.global.u32 r0, [q7]
ld.shared.nc.u32 r0, [r9]
ld.global.wb.u32 r0, [q7]
ld.shared.L2::128B.u32 r0, [r9]
ldu.shared.u32 r0, [r9]
st.acquire.gpu.global.u32 [q7], r0
st.const.u32 [q7], r0
st.global.ca.u32 [q7], r0
st.volatile.local.u32 [q7], r0
atom.global.add.s64 q0, [q7], q1
atom.global.add.f16 h0, [q7], h1
atom.global.add.noftz.bf16 h0, [q7], h1
atom.global.min.f32 r0, [q7], r1
atom.global.inc.u64 q0, [q7], q1
atom.global.and.u32 r0, [q7], r1
atom.global.exch.u32 r0, [q7], r1
atom.global.exch.b16 h0, [q7], h1
atom.global.cas.u32 r0, [q7], r1, r2
atom.local.add.u32 r0, [q7], r1
atom.volatile.global.add.u32 r0, [q7], r1
red.global.exch.b32 [q7], r1
red.global.cas.b32 [q7], r1, r2
red.acquire.gpu.global.add.u32 [q7], r1
cp.async.cg.shared.global [r9], [q7], 8
cp.async.ca.shared.global [r9], [q7], 2
cp.async.ca.shared.global [r9], [q7], r1
cp.async.wait_group r0
ldmatrix.sync.aligned.m8n8.x3.shared.b16 {r0, r1, r2}, [r9]
ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r0}, [r9]
ldmatrix.sync.aligned.m8n8.x1.global.b16 {r0}, [q7]
ldmatrix.sync.aligned.m8n8.x1.shared.b16 r0, [r9]
ldmatrix.aligned.m8n8.x1.shared.b16 {r0}, [r9]
stmatrix.sync.aligned.m8n8.x1.shared.b16 [r9], {r0}
prefetch.shared.L1 [r9]
prefetchu.L2 [q7]
createpolicy.fractional.b64 q0
shfl.sync.idx.u32 r0, r1, r2, r3, r4
shfl.idx.b32 r0, r1, r2, r3
vote.all.pred p0, p1
vote.sync.ballot.pred p0, p1, r2
match.any.sync.b32 r0|p0, r1, r2
match.any.sync.u32 r0, r1, r2
redux.sync.and.u32 r0, r1, r2
redux.sync.add.f32 r0, r1, r2
elect.sync r0|p0, r1
bar.arrive 0
bar.red.popc.s32 r0, 0, p1
bar.red.xor.pred p0, 0, p1
fence.gpu.sc.weak
fence.sc.cluster
membar.gpu
exit.uni
nanosleep.b32 r0
mma.sync.aligned.m16n8k16.col.col.f32.f16.f16.f32 {r0, r1, r2, r3}, {r0, r1, r2, r3}, {r0, r1}, {r0, r1, r2, r3}
mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16 {r0, r1}, {r0, r1, r2, r3}, {r0, r1}, {r0, r1}
mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {r0, r1, r2, r3}, {r0, r1, r2, r3}, {r0, r1}, {r0, r1, r2, r3}
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {r0, r1, r2, r3}, {r0, r1}, {r0, r1}, {r0, r1, r2, r3}
mma.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 {r0, r1, r2, r3}, {r0, r1, r2, r3}, {r0, r1}, {r0, r1, r2, r3}
mma.sync.m16n8k16.row.col.f32.f16.f16.f32 {r0, r1, r2, r3}, {r0, r1, r2, r3}, {r0, r1}, {r0, r1, r2, r3}
movmatrix.sync.aligned.m8n8.b16 r0, r1
wgmma.fence.sync.aligned
wgmma.fence
cp.async.bulk.commit_group
tcgen05.fence::before_thread_sync
setmaxnreg.inc.sync.aligned.u32 64
barrier.cluster.arrive
griddepcontrol.wait
mbarrier.try_wait.shared.b64 p0, [r9], q1
""".strip().splitlines()  # noqa: E501

# And these none for sm_120.
REFUSED_120 = """
add.sat.s16x2 r0, r1, r2
add.s16x2 r0, r1, 5
add.cc.s16x2 r0, r1, r2
sub.s16x2 r0, r1, r2
mul.lo.s16x2 r0, r1, r2
min.relu.u16x2 r0, r1, r2
min.relu.s16 h0, h1, h2
div.s16x2 r0, r1, r2
neg.s16x2 r0, r1
sad.s16x2 r0, r1, r2, r3
add.sat.f32x2 q0, q1, q2
add.f32x2 q0, q1, 5
add.f32x2 r0, r1, r2
mul.sat.f32x2 q0, q1, q2
fma.f32x2 q0, q1, q2, q3
fma.rn.sat.f32x2 q0, q1, q2, q3
mad.rn.f32x2 q0, q1, q2, q3
div.rn.f32x2 q0, q1, q2
min.f32x2 q0, q1, q2
max.abs.f32 r0, r1, r2
max.xorsign.abs.f32 r0, r1, r2, r3
max.f64 q0, q1, q2, q3
max.f16 h0, h1, h2, h3
neg.f32x2 q0, q1
mov.f32x2 q0, q1
ld.global.f32x2 q0, [q7]
add.rn.ftz.f32.f16 r0, h1, r2
add.rn.f32.f16 r0, r1, r2
add.rn.f32.f16 r0, h1, h2
add.rn.f32.f16 r0, 0f3F800000, r2
add.rn.f32.f16x2 r0, r1, r2
add.f32.f32 r0, r1, r2
add.rn.f64.f32 q0, r1, q2
add.f16.f32 h0, h1, r2
mul.rn.f32.f16 r0, h1, r2
fma.f32.f16 r0, h1, h2, r3
fma.rn.f32.f16 r0, h1, r2, r3
mad.rn.f32.bf16 r0, h1, h2, r3
add.sat.bf16 h0, h1, h2
sub.ftz.bf16 h0, h1, h2
mul.rz.bf16x2 r0, r1, r2
stmatrix.sync.aligned.m8n8.x3.shared.b16 [r9], {r0, r1, r2}
stmatrix.sync.aligned.m8n8.x2.shared.b16 [r9], {r0}
stmatrix.sync.aligned.m8n8.x1.shared.b16 [r9], r0
stmatrix.sync.aligned.m8n8.x1.shared.b16 [r9], {5}
stmatrix.sync.aligned.m8n8.x1.shared.b16 [r9], {h0}
stmatrix.sync.aligned.m8n8.x2.shared.b16 [r9], {r0, _}
stmatrix.sync.aligned.m8n8.x1.global.b16 [q7], {r0}
stmatrix.sync.aligned.m8n8.x1.shared.b8 [r9], {r0}
stmatrix.aligned.m8n8.x1.shared.b16 [r9], {r0}
stmatrix.sync.m8n8.x1.shared.b16 [r9], {r0}
stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [r9], {r0}
wgmma.fence.sync.aligned
tcgen05.fence::before_thread_sync
setmaxnreg.inc.sync.aligned.u32 64
redux.sync.min.f32 r0, r1, r2
""".strip().splitlines()

# Correct PTX for sm_89 that is not executed here.
NOT_EXECUTED = """
addc.sat.s32 r0, r1, r2
mad24.hi.sat.s32 r0, r1, r2, r3
fma.rz.bf16 h0, h1, h2, h3
rsqrt.approx.f64 q0, q1
vadd.u32.u32.u32 r0, r1, r2
lop3.or.b32 r0|p0, r1, r2, r3, 5, p1
cvt.rn.satfinite.e4m3x2.f32 h0, r1, r2
cvt.pack.sat.u16.s32 r0, r1, r2
cvt.f32.f16 r0, r1
isspacep.const p0, q1
mov.u32 r0, %envreg0
mov.u32 r0, %pm0
cp.async.ca.shared.global [r9], [q7], 16, p1
cp.async.mbarrier.arrive.shared.b64 [r9]
mbarrier.init.shared.b64 [r9], 1
createpolicy.range.L2::evict_last.b64 q0, [q7], r1, r2
discard.global.L2 [q7], 128
applypriority.global.L2::evict_normal [q7], 128
prefetch.L2::evict_last [q7]
membar.proxy.alias
pmevent 1
mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {r0, r1, r2, r3}, {r0, r1}, {r0}, {r0, r1, r2, r3}
wmma.load.a.sync.aligned.row.m16n16k16.f16 {r0, r1, r2, r3, r4, r5, r6, r7}, [q7], 16
""".strip().splitlines()


# And for sm_120.
NOT_EXECUTED_120 = """
setp.eq.bf16 p0, h1, h2
cvt.rn.bf16.s32 h0, r1
ex2.approx.ftz.bf16 h0, h1
tanh.approx.bf16x2 r0, r1
ld.global.v8.u32 {r0, r1, r2, r3, r4, r5, r6, r7}, [q7]
st.global.v4.b64 [q7], {q0, q1, q2, q3}
atom.global.add.noftz.bf16 h0, [q7], h1
elect.sync r0|p0, r1
mbarrier.try_wait.shared.b64 p0, [r9], q1
cp.async.bulk.commit_group
barrier.cluster.arrive
griddepcontrol.wait
""".strip().splitlines()

# Instructions with the first architecture that has them: refused in PTX for older ones.
SINCE = {
    "add.bf16 h0, h1, h2": 90,
    "sub.rn.bf16x2 r0, r1, r2": 90,
    "mul.bf16 h0, h1, h2": 90,
    "add.s16x2 r0, r1, r2": 90,
    "min.u16x2 r0, r1, r2": 90,
    "max.relu.s32 r0, r1, r2": 90,
    "stmatrix.sync.aligned.m8n8.x1.shared.b16 [r9], {r0}": 90,
    "add.f32x2 q0, q1, q2": 100,
    "sub.rz.ftz.f32x2 q0, q1, q2": 100,
    "mul.f32x2 q0, q1, q2": 100,
    "fma.rn.f32x2 q0, q1, q2, q3": 100,
    "add.rn.f32.f16 r0, h1, r2": 100,
    "max.f32 r0, r1, r2, r3": 100,
    "sub.sat.f32.bf16 r0, h1, r2": 100,
    "fma.rn.f32.f16 r0, h1, h2, r3": 100,
}
BEFORE = {90: 89, 100: 90}


@pytest.mark.parametrize("text", REFUSED + NOT_EXECUTED)
def test_an_unknown_form_is_refused(device, text):
    with pytest.raises(GpuError, match=re.escape(text)):
        device.load(header(80) + SURROUNDINGS.format(text))


@pytest.mark.parametrize("text", REFUSED_120 + NOT_EXECUTED_120)
def test_an_unknown_form_is_refused_for_sm_120(newest, text):
    with pytest.raises(GpuError, match=re.escape(text)):
        newest.load(header(120) + SURROUNDINGS.format(text))


@pytest.mark.parametrize("text", SINCE)
def test_a_form_is_refused_for_older_targets(newest, text):
    """Whatever the device is: a driver goes by the text."""
    first = SINCE[text]
    newest.load(header(first) + SURROUNDINGS.format(text))
    for target in (80, BEFORE[first]):
        says = f"it needs sm_{first}; the module is for sm_{target}"
        with pytest.raises(GpuError, match=f'{re.escape(text)};?": {says}'):
            newest.load(header(target) + SURROUNDINGS.format(text))


# ---- the tables themselves ----------------------------------------------------------------------

# Tested by programs rather than by forms.
ELSEWHERE = {
    **{op.name.partition(".")[0]: test_approximation for op in APPROXIMATIONS},
    "shfl": test_shfl,
    "vote": test_vote,
    "match": test_match,
    "redux": test_redux,
    "cvta": test_address_windows,
    "isspacep": test_address_windows,
    "ldmatrix": load_matrices,
    "stmatrix": store_matrices,
    "mma": Product,
    "movmatrix": test_movmatrix,
    "trap": test_a_kernel_stops_itself,
    "brkpt": test_a_kernel_stops_itself,
}


def executed_opcodes():
    """The base opcodes of the interpreter's tables."""
    found = defaultdict(set)
    for source in sorted(SOURCES.glob("ops_*.cpp")):
        rules = source.read_text().partition("std::vector<RuleEntry>")[2]
        for name in re.findall(r'\{"(\w+)", \w+_rule|\{"(\w+)", \w*rule', rules):
            found["".join(name)].add(source.name)
    return found


def test_every_opcode_has_a_form():
    tested = {form.text.split(".")[0].split(" ")[0] for form in FORMS}
    for form in FORMS:
        tested |= {part.strip().split(".")[0] for part in form.text.split(";")}
    for case in PROGRAMS:
        tested |= set(re.findall(r"^\s*(?:@!?\w+ )?(\w+)(?=[. ;])", case.body, re.MULTILINE))
    for name, test in ELSEWHERE.items():
        source = inspect.getsource(test)
        assert name in source or test is test_approximation
        tested.add(name)
    executed = executed_opcodes()
    assert len(executed) > 80
    assert set(executed) <= tested, sorted(set(executed) - tested)


def find_ptxas():
    """The toolkit's assembler, or Triton's."""
    try:
        import triton.backends.nvidia as nvidia

        shipped = Path(nvidia.__file__).parent / "bin" / "ptxas"
    except ImportError:
        shipped = None
    return shutil.which("ptxas") or (str(shipped) if shipped and shipped.exists() else None)


@pytest.fixture(scope="module")
def assemble(tmp_path_factory):
    """Assembles kernels in one go: a list of what each is refused for, empty where it is not."""
    ptxas = find_ptxas()
    if not ptxas:
        pytest.skip("there is no ptxas")
    folder = tmp_path_factory.mktemp("ptxas")

    def run(kernels, target):
        text = header(target)
        starts = []
        for number, entry in enumerate(kernels):
            starts.append(text.count("\n") + 1)
            text += entry.replace("kernel(", f"kernel{number}(", 1)
        (folder / "all.ptx").write_text(text)
        command = [
            ptxas,
            "-O0",
            f"-arch=sm_{target}",
            "-o",
            folder / "all.cubin",
            folder / "all.ptx",
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        found = [[] for _ in kernels]
        for line, message in re.findall(r"line (\d+); (?:error|fatal)\s*:(.*)", result.stderr):
            found[int(np.searchsorted(starts, int(line), "right")) - 1].append(message)
        assert (result.returncode == 0) == (not any(found)), result.stderr[:2000]
        return found

    return run


def test_forms_are_ptx(assemble):
    for target in sorted({form.target for form in FORMS}):
        forms = [form for form in FORMS if form.target == target]
        refused = assemble([form.entry("kernel") for form in forms], target)
        wrong = [(str(f), m[0]) for f, m in zip(forms, refused, strict=True) if m]
        assert not wrong, wrong[:10]


@pytest.mark.parametrize("texts, target", [(NOT_EXECUTED, 89), (NOT_EXECUTED_120, 120)])
def test_what_is_not_executed_is_ptx(assemble, texts, target):
    refused = assemble([SURROUNDINGS.format(text) for text in texts], target)
    assert not any(refused), [x for x in zip(texts, refused, strict=True) if x[1]]


@pytest.mark.parametrize("first", sorted(BEFORE))
def test_forms_are_ptx_since_their_target(assemble, first):
    entries = [SURROUNDINGS.format(text) for text, since in SINCE.items() if since == first]
    assert not any(assemble(entries, first))
    assert all(assemble(entries, BEFORE[first]))


@pytest.mark.parametrize("texts, target", [(REFUSED, 89), (REFUSED_120, 120)])
def test_what_is_refused_is_not_ptx(assemble, texts, target):
    taken = []
    for text in texts:  # one at a time: a syntax error ends the assembler's reading
        try:
            refused = assemble([SURROUNDINGS.format(text)], target)[0]
        except AssertionError:
            refused = ["no line is named"]
        if not refused:
            taken.append(text)
    assert not taken
