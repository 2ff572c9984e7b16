"""PTX instructions one form at a time: a kernel that runs one, and what the ISA says it returns.

A form is an instruction, or a few, over operands ``a b c x y z`` with results ``d e f g``. What it
returns is computed from the operands of one lane as exact numbers (Python's ints, fractions, and
floats for what a fraction cannot say: infinities, NaN and signed zeros) and then rounded, flushed
and clamped as the form's modifiers say.
"""

import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property

import numpy as np

from effnet_fast.gpu import Launch

INPUTS, OUTPUTS = "abcxyz", "defg"
LANES = 512
BLOCK = 64

# ---- types --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: bits of the significand, exponents of normal numbers."""

    name: str
    bits: int
    digits: int
    lowest: int
    highest: int

    @property
    def largest(self):
        return math.ldexp(2 - 2.0 ** (1 - self.digits), self.highest)

    @property
    def smallest(self):
        """The smallest normal number."""
        return math.ldexp(1.0, self.lowest)

    @property
    def nan(self):
        """The pattern that the ISA calls canonical."""
        return (1 << (self.bits - 1)) - 1

    def decode(self, bits):
        """Array of bits to array of float64."""
        if self.name == "bf16":
            bits = bits.astype(np.uint32) << 16
        with np.errstate(invalid="ignore"):  # of signalling NaN
            return bits.view(f"f{bits.dtype.itemsize}").astype(np.float64)

    def encode(self, values):
        """Array of float64, each one of the format's numbers, to array of bits."""
        values = np.asarray(values, np.float64)
        with np.errstate(all="ignore"):
            if self.name == "bf16":
                bits = values.astype(np.float32).view(np.uint32) >> 16
            else:
                bits = values.astype(f"f{self.bits // 8}").view(f"u{self.bits // 8}")
        bits = np.where(np.isnan(values), self.nan, bits.astype(np.uint64))
        bits = bits.astype(f"u{self.bits // 8}")
        finite = ~np.isnan(values)
        assert (self.decode(bits)[finite] == values[finite]).all(), f"not a number of {self.name}"
        return bits


FORMATS = {
    "f16": Format("f16", 16, 11, -14, 15),
    "bf16": Format("bf16", 16, 8, -126, 127),
    "tf32": Format("tf32", 32, 11, -126, 127),  # the low 13 bits are zero
    "f32": Format("f32", 32, 24, -126, 127),
    "f64": Format("f64", 64, 53, -1022, 1023),
}


@cache
def width(kind):
    """Bits of a type; of a predicate in memory, where it is a word."""
    if kind.endswith("x2"):
        return 2 * width(element(kind))
    return 32 if kind == "pred" else int(re.search(r"\d+$", kind)[0])


def element(kind):
    """The type of one half of a pair, or the type itself."""
    return kind.removesuffix("x2")


def register(kind):
    return ".pred" if kind == "pred" else f".b{max(width(kind), 16)}"


# ---- exact arithmetic ---------------------------------------------------------------------------


def round_integer(x, mode):
    """A fraction to an integer."""
    return round_ratio(x.numerator, x.denominator, mode)


def round_ratio(n, d, mode):
    low, rest = divmod(n, d)
    if mode == "rm" or rest == 0:
        return low
    if mode == "rp":
        return low + 1
    if mode == "rz":
        return low + (n < 0)
    if 2 * rest != d:
        return low + (2 * rest > d)
    return low + (n > 0) if mode == "rna" else low + low % 2


def round_to(x, form, mode):
    """A fraction to a format: a float, which is one of its numbers."""
    n, d = abs(x.numerator), x.denominator
    negative = x.numerator < 0
    exponent = n.bit_length() - d.bit_length()  # of the highest bit, or one more
    if n << max(-exponent, 0) < d << max(exponent, 0):
        exponent -= 1
    step = max(exponent, form.lowest) - (form.digits - 1)
    n, d = n << max(-step, 0), d << max(step, 0)
    number = round_ratio(-n if negative else n, d, mode)
    if number.bit_length() + step > form.highest + 1:
        inward = mode in ("rz", "rp" if negative else "rm")
        result = form.largest if inward else math.inf
    else:
        result = math.ldexp(abs(number), step)
    return -result if negative else result


def is_special(*values):
    return any(not math.isfinite(v) for v in values)


def add(a, b):
    if is_special(a, b) or (a == 0 and b == 0):
        return a + b if a != 0 or b != 0 or same_sign(a, b) else Fraction(0)
    return Fraction(a) + Fraction(b)


def sub(a, b):
    return add(a, -b)


def mul(a, b):
    if is_special(a, b) or a == 0 or b == 0:
        return a * b
    return Fraction(a) * Fraction(b)


def fma(a, b, c):
    product = mul(a, b)
    if isinstance(product, float):
        return add(product, c)
    return c if is_special(c) else product + Fraction(c)


def div(a, b):
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or a == b == 0:
        return math.nan
    if is_special(a) or b == 0:
        return math.copysign(math.inf, a) * math.copysign(1.0, b)
    if is_special(b) or a == 0:
        return math.copysign(0.0, a) * math.copysign(1.0, b)
    return Fraction(a) / Fraction(b)


def rcp(a):
    return div(1.0, a)


def sqrt(a):
    if math.isnan(a) or a < 0:
        return math.nan
    if a == 0 or math.isinf(a):
        return a
    a = Fraction(a)
    shift = 128 + a.denominator.bit_length() // 2
    scaled = (a.numerator << (2 * shift)) // a.denominator
    root = math.isqrt(scaled)
    # Enough digits, and a last one that says that there are more: it rounds as the root does.
    sticky = root * root != Fraction(a.numerator << (2 * shift), a.denominator)
    return Fraction(2 * root + sticky, 2 << shift)


def same_sign(a, b):
    return math.copysign(1.0, a) == math.copysign(1.0, b)


def is_less(a, b):
    """a < b, where -0 < +0."""
    return a < b or (a == b == 0 and same_sign(a, -1.0) and same_sign(b, 1.0))


def smaller(a, b):
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return a if is_less(a, b) else b


def larger(a, b):
    return -smaller(-a, -b)


# ---- memory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """16 bytes of a space for each thread, at an address in a register."""

    space: str  # as instructions name it: "" is generic
    address: str
    setup: str
    variables: str = ""

    def fill(self, *words):
        """Statements that put 64-bit registers there."""
        stores = [f"st{self.space}.b64 [{self.address}+{8 * i}], {w}" for i, w in enumerate(words)]
        return "; ".join([self.setup, *stores])

    def read(self, *words):
        """Statements that get them back."""
        return "; ".join(
            f"ld{self.space}.b64 {w}, [{self.address}+{8 * i}]" for i, w in enumerate(words)
        )


_GLOBAL = "mul.wide.u32 offset, index, 16; mov.u64 base, cells; {}; add.s64 base, base, offset"
_SHARED = "mov.u32 word, %tid.x; shl.b32 word, word, 4; mov.u32 row, tile; add.u32 word, word, row"
_TILE = f"  .reg .b32 row;\n  .shared .align 16 .b8 tile[{16 * BLOCK}];"
_STACK = "  .local .align 16 .b8 stack[48];"
CELLS = {
    "global": Cell(".global", "base", _GLOBAL.format("mov.u64 base, base")),
    "shared": Cell(".shared", "word", _SHARED, _TILE),
    "shared::cta": Cell(".shared::cta", "base", f"{_SHARED}; cvt.u64.u32 base, word", _TILE),
    "local": Cell(".local", "base", "mov.u64 base, stack; add.s64 base, base, 16", _STACK),
    "generic global": Cell("", "base", _GLOBAL.format("cvta.global.u64 base, base")),
    "generic shared": Cell(
        "", "base", f"{_SHARED}; cvt.u64.u32 base, word; cvta.shared.u64 base, base", _TILE
    ),
    "generic local": Cell("", "base", "mov.u64 base, stack; cvta.local.u64 base, base", _STACK),
}


def version(target):
    """Of PTX that has the target."""
    return "8.3" if target < 100 else "8.8"


def header(target):
    """Of a module, with the global cells."""
    return (
        f".version {version(target)}\n.target sm_{target}\n.address_size 64\n"
        f".global .align 16 .b8 cells[{16 * LANES}];\n"
    )


# ---- forms --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A form of an instruction.

    Parameters
    ----------
    text : str
        Statements over a b c x y z and d e f g; the first one's modifiers say how results are
        rounded, flushed and clamped. Registers free to use: ``index``, the thread's; ``word`` of
        32 and ``base``, ``offset`` of 64 bits.
    types : str
        ``"d's e's = a's b's"``.
    value : callable
        Of the operands' values in one lane, or in one half of it when all are pairs: the exact
        result, or a tuple of results.
    pick : callable, optional
        Of the operands' arrays of bits, to change them: what random ones would not hit.
    target : int
        The architecture that it needs.
    before, after : str
        Statements around it.
    variables : str
        Of the kernel's memory.
    """

    text: str
    types: str
    value: Callable
    pick: Callable | None = None
    target: int = 80
    before: str = ""
    after: str = ""
    variables: str = ""

    def __str__(self):
        return self.text

    @cached_property
    def inputs(self):
        return self.types.partition("=")[2].split()

    @cached_property
    def outputs(self):
        return self.types.partition("=")[0].split()

    @cached_property
    def modifiers(self):
        return self.text.split(" ")[0].rstrip(";").split(".")

    @cached_property
    def rounding(self):
        for name in self.modifiers:
            if name in ("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"):
                return name.removesuffix("i")
        return "rn"

    def flushes(self, kind):
        """Whether .ftz, if it is there, is for values of this type."""
        if "ftz" not in self.modifiers:
            return False
        return kind == "f32" if self.modifiers[0] == "cvt" else element(kind) in ("f32", "f16")

    # ---- the kernel -----------------------------------------------------------------------------

    def entry(self, name):
        """A kernel that does it for each thread's operands."""
        inputs = list(zip(INPUTS, self.inputs, strict=False))
        outputs = list(zip(OUTPUTS, self.outputs, strict=False))
        operands = inputs + outputs
        lines = [f".visible .entry {name}("]
        lines.append(",\n".join(f"  .param .u64 {n}_arg" for n, _ in operands))
        lines += [")", "{", "  .reg .b32 index, word;", "  .reg .b64 base, offset;"]
        lines += [f"  .reg {register(kind)} {n};" for n, kind in operands]
        lines += self.variables.splitlines()
        lines += [
            "  mov.u32 index, %ctaid.x;",
            "  mov.u32 word, %tid.x;",
            f"  mad.lo.s32 index, index, {BLOCK}, word;",
        ]

        def at(n, kind):
            return [
                f"  ld.param.u64 base, [{n}_arg];",
                f"  mul.wide.u32 offset, index, {max(width(kind), 16) // 8};",
                "  add.s64 base, base, offset;",
            ]

        for n, kind in inputs:
            lines += at(n, kind)
            if kind == "pred":
                lines += ["  ld.global.u32 word, [base];", f"  setp.ne.u32 {n}, word, 0;"]
            else:
                lines.append(f"  ld.global{register(kind)} {n}, [base];")
        statements = "; ".join(filter(None, (self.before, self.text, self.after)))
        lines += [f"  {statement.strip()};" for statement in statements.split(";")]
        for n, kind in outputs:
            lines += at(n, kind)
            if kind == "pred":
                lines += [f"  selp.u32 word, 1, 0, {n};", "  st.global.u32 [base], word;"]
            else:
                lines.append(f"  st.global{register(kind)} [base], {n};")
        return "\n".join([*lines, "  ret;", "}", ""])

    @property
    def module(self):
        return header(self.target) + self.entry("kernel")

    def run(self, device, operands):
        """The results' bits, for arrays of the operands' bits."""
        buffers = [device.upload(bits) for bits in operands]
        results = [np.zeros(LANES, storage(kind)) for kind in self.outputs]
        targets = [device.upload(bits) for bits in results]
        kernel = device.load(self.module).kernel("kernel")
        device.launch(Launch(kernel, (LANES // BLOCK,), (BLOCK,), 0, (*buffers, *targets)))
        return [device.download(t, r.dtype) for t, r in zip(targets, results, strict=True)]

    # ---- operands and results -------------------------------------------------------------------

    def operands(self):
        """Arrays of bits: edges with each other, then random ones."""
        rng = np.random.default_rng(zlib.crc32(self.text.encode()))
        arrays = [samples(kind, rng) for kind in self.inputs]
        edges = [edge_values(kind) for kind in self.inputs]
        if len(edges) == 1:
            arrays[0][: edges[0].size] = edges[0]
        elif len(edges) == 2:
            # All pairs of a few.
            few = [e[rng.permutation(e.size)[:16]] for e in edges]
            pairs = np.meshgrid(*few)
            for array, values in zip(arrays, pairs, strict=True):
                array[: values.size] = values.ravel()
        alike = slice(LANES - 96, LANES)
        for array, kind in zip(arrays[1:], self.inputs[1:], strict=True):
            if kind == self.inputs[0]:
                array[alike] = arrays[0][alike]
                if element(kind) in FORMATS:  # and of the other sign
                    array[alike][::2] ^= array.dtype.type(sign_bits(kind))
        if self.pick:
            self.pick(*arrays)
        return arrays

    def expected(self, operands):
        """Arrays of the results' bits."""
        pairs = [kind.endswith("x2") for kind in self.inputs + self.outputs]
        if all(pairs):
            halves = map(split, self.inputs, operands)
            low, high = (self._expected(part, 1) for part in zip(*halves, strict=True))
            return list(map(join, self.outputs, low, high))
        return self._expected(operands, 0)

    def _expected(self, operands, halves):
        inputs = [element(kind) if halves else kind for kind in self.inputs]
        outputs = [element(kind) if halves else kind for kind in self.outputs]
        values = [
            decode(kind, bits, self.flushes(kind))
            for kind, bits in zip(inputs, operands, strict=True)
        ]
        rows = []
        for lane in zip(*values, strict=True):
            value = self.value(*lane)
            value = value if isinstance(value, tuple) else (value,)
            typed = zip(value, outputs, strict=True)
            rows.append([self.finish(v, kind, inputs[0]) for v, kind in typed])
        columns = zip(*rows, strict=True)
        return [encode(kind, column) for kind, column in zip(outputs, columns, strict=True)]

    def finish(self, value, kind, source):
        """An exact result as the form returns it: rounded, flushed, clamped or wrapped."""
        modifiers = self.modifiers
        if kind == "pred":
            return bool(value)
        if kind.endswith("x2"):
            return [self.finish(v, element(kind), source) for v in value]
        if kind not in FORMATS:
            return finish_integer(value, kind, source, self.rounding, modifiers)
        form = FORMATS[kind]
        if isinstance(value, int):
            value = Fraction(value) if value else 0.0
        if isinstance(value, Fraction) and value == 0:  # a sum that cancels
            value = -0.0 if self.rounding == "rm" else 0.0
        if isinstance(value, Fraction) or (math.isfinite(value) and value != 0):
            value = round_to(Fraction(value), form, self.rounding)
        if self.flushes(kind) and abs(value) < form.smallest:
            value = math.copysign(0.0, value)
        if "sat" in modifiers:
            value = min(value, 1.0) if value > 0 else 0.0  # a NaN too
        if "relu" in modifiers and value <= 0:
            value = 0.0
        return value

    def check(self, device):
        """Run it, and compare all lanes."""
        operands = self.operands()
        results, expected = self.run(device, operands), self.expected(operands)
        for kind, result, right in zip(self.outputs, results, expected, strict=True):
            wrong = result != right
            # Which NaN it is is said of few instructions.
            if not {"NaN", "relu"} & set(self.modifiers):
                wrong &= ~same_nan(kind, result, right)
            if wrong.any():
                lane = int(wrong.argmax())
                shown = ", ".join(f"{int(bits[lane]):#x}" for bits in operands)
                raise AssertionError(
                    f"{self.text}: {int(wrong.sum())} of {LANES} lanes are wrong; of ({shown}) the "
                    f"{kind} is {int(result[lane]):#x}, expected {int(right[lane]):#x}"
                )


def finish_integer(value, kind, source, rounding, modifiers):
    bits, signed = width(kind), kind[0] == "s"
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    if isinstance(value, (float, Fraction)):
        if math.isnan(value):
            return 0 if source != "f64" and bits != 64 else 1 << (bits - 1)
        if math.isinf(value):
            return high if value > 0 else low
        return min(max(round_integer(Fraction(value), rounding), low), high)
    if "sat" in modifiers:
        value = min(max(value, low), high)
    return value


def storage(kind):
    return np.dtype(f"u{max(width(kind), 16) // 8}")


def sign_bits(kind):
    if kind.endswith("x2"):
        half = sign_bits(element(kind))
        return half | half << width(element(kind))
    return 1 << (width(kind) - 1)


def split(kind, bits):
    """The low and the high half of each pair."""
    half = storage(element(kind))
    return [(bits >> bits.dtype.type(shift)).astype(half) for shift in (0, 8 * half.itemsize)]


def join(kind, low, high):
    whole = storage(kind)
    return low.astype(whole) | high.astype(whole) << whole.type(4 * whole.itemsize)


def decode(kind, bits, flush=False):
    """Bits to a list of values: ints, floats, bools, or pairs of floats."""
    if kind == "pred":
        return [bool(b) for b in bits]
    if kind.endswith("x2"):
        low, high = (decode(element(kind), half, flush) for half in split(kind, bits))
        return list(zip(low, high, strict=True))
    if kind in FORMATS:
        form = FORMATS[kind]
        values = form.decode(bits)
        if flush:
            values = np.where(np.abs(values) < form.smallest, np.copysign(0.0, values), values)
        return values.tolist()
    bits = bits & bits.dtype.type((1 << width(kind)) - 1)
    if kind[0] == "s":
        bits = bits.astype(f"u{width(kind) // 8}").view(f"i{width(kind) // 8}")
    return bits.tolist()


def encode(kind, values):
    """A list of values to bits, in the size that they have in memory."""
    if kind == "pred":
        return np.array(values, np.uint32)
    if kind.endswith("x2"):
        return join(kind, *(encode(element(kind), half) for half in zip(*values, strict=True)))
    if kind in FORMATS:
        return FORMATS[kind].encode(values)
    bits = np.array([v % (1 << width(kind)) for v in values], storage(kind))
    # A short integer fills its register: with its sign, or with zeros.
    if kind == "s8":
        bits = bits.astype(np.uint8).view(np.int8).astype(np.int16).view(np.uint16)
    return bits


def same_nan(kind, result, right):
    """Where both are NaN; of pairs, where each half is the same or NaN in both."""
    if kind.endswith("x2"):
        halves = zip(split(kind, result), split(kind, right), strict=True)
        return np.logical_and.reduce([(x == y) | same_nan(element(kind), x, y) for x, y in halves])
    if kind not in FORMATS:
        return np.zeros(result.shape, bool)
    form = FORMATS[kind]
    return np.isnan(form.decode(result)) & np.isnan(form.decode(right))


# ---- operands -----------------------------------------------------------------------------------


@cache
def edge_values(kind):
    """Bits of the values at which instructions go wrong."""
    if kind == "pred":
        return np.array([0, 1], np.uint32)
    if kind.endswith("x2"):
        half = edge_values(element(kind))
        return join(kind, half, np.roll(half, 7))
    if kind in FORMATS:
        return float_edges(FORMATS[kind])
    bits = width(kind)
    exponents = [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 23, 24, 31, 32, 47, 48, 63]
    values = {0, 10, 21, 24, 48, 100, 200} | {0x80018001, 0x5555555555555555}
    for e in exponents:
        values |= {(1 << e) - 1, 1 << e, (1 << e) + 1, -(1 << e)}
    return np.array(sorted({v % (1 << bits) for v in values}), storage(kind))


def float_edges(form):
    top = 1 << (form.bits - 1)
    exponents = form.highest - form.lowest + 3
    mantissa = (top // exponents) - 1  # all ones
    numbers = [0, 1, mantissa // 2, mantissa, mantissa + 1, mantissa + 2]
    infinity = top - mantissa - 1
    numbers += [infinity - 1, infinity, infinity + 1, infinity + mantissa // 2 + 1, top - 1]
    one = (mantissa + 1) * form.highest
    numbers += [one - 1, one, one + 1]
    # Ties to integers and the ends of the integer types, with their neighbours.
    values = [0.25, 0.5, 1.5, 2.0, 2.5, 3.0, 3.5, 126.5, 127.5, 128.0, 255.0, 255.5, 256.0]
    values += [32767.5, 32768.0, 65504.0] + [
        2.0**e for e in (16, 31, 32, 63, 64) if e <= form.highest
    ]
    for value in values:
        bits = int(FORMATS[form.name].encode([round_to(Fraction(value), form, "rn")])[0])
        numbers += [bits - 1, bits, bits + 1]
    numbers = sorted({n for n in numbers if n < top})
    return np.array(numbers + [n | top for n in numbers], f"u{form.bits // 8}")


def samples(kind, rng):
    """Bits of LANES values: edges, any bits, and numbers near 1 with few digits."""
    if kind == "pred":
        return rng.integers(0, 2, LANES, np.uint32)
    if kind.endswith("x2"):
        return join(kind, *(samples(element(kind), rng) for _ in range(2)))
    bits = rng.integers(0, 1 << 64, LANES, np.uint64, endpoint=False) >> np.uint64(64 - width(kind))
    if kind in FORMATS:
        form = FORMATS[kind]
        near = [
            math.ldexp(int(m), int(e) - 3)
            for m, e in zip(rng.integers(-63, 64, LANES), rng.integers(-4, 5, LANES), strict=True)
        ]
        near = form.encode(near).astype(np.uint64)
        # Of the same exponents with all digits.
        full = near | (bits & np.uint64((1 << (form.digits - 1)) - 1))
        choice = rng.integers(0, 4, LANES)
        bits = np.choose(choice, [bits, bits, near, full])
    else:
        bits = bits >> rng.integers(0, width(kind), LANES, np.uint64)
        bits = np.where(rng.random(LANES) < 0.3, (~bits).astype(np.uint64), bits)
        bits &= np.uint64((1 << width(kind)) - 1)
    edges = edge_values(kind)
    chosen = edges[rng.integers(0, edges.size, LANES)]
    return np.where(rng.random(LANES) < 0.4, chosen, bits.astype(storage(kind)))
