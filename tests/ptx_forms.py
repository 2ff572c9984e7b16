"""The opcode forms that the PTX machine accepts, each with what the ISA says it returns."""

import itertools
import math
import operator
from dataclasses import replace
from fractions import Fraction

import numpy as np
from ptx_opcodes import (
    CELLS,
    FORMATS,
    INPUTS,
    OUTPUTS,
    Form,
    add,
    div,
    fma,
    larger,
    mul,
    rcp,
    round_integer,
    round_to,
    smaller,
    sqrt,
    sub,
    width,
)

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
WORDS = ("u32", "s32", "u64", "s64")
HALVES = ("f16", "f16x2")
BFLOATS = ("bf16", "bf16x2")


def choices(*options):
    """All strings with one of each, as ``choices(("", ".ftz"), ("", ".sat"))``."""
    return ["".join(parts) for parts in itertools.product(*options)]


ROUNDINGS = (".rn", ".rz", ".rm", ".rp")
FTZ, SAT, RELU = ("", ".ftz"), ("", ".sat"), ("", ".relu")


# ---- integer arithmetic -------------------------------------------------------------------------


def wide(kind):
    return f"{kind[0]}{2 * width(kind)}"


def truncated(a, b):
    """Quotient and remainder towards zero; what GPUs return where there is none."""
    if b == 0:
        return -1, a
    q = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return q, a - q * b


def arithmetic():
    for t in INTEGERS:
        bits = width(t)
        same2, same3 = f"{t} = {t} {t}", f"{t} = {t} {t} {t}"
        yield Form(f"add.{t} d, a, b", same2, operator.add)
        yield Form(f"sub.{t} d, a, b", same2, operator.sub)
        yield Form(f"mul.lo.{t} d, a, b", same2, operator.mul)
        yield Form(f"mul.hi.{t} d, a, b", same2, lambda a, b, n=bits: a * b >> n)
        yield Form(f"mad.lo.{t} d, a, b, c", same3, lambda a, b, c: a * b + c)
        yield Form(f"mad.hi.{t} d, a, b, c", same3, lambda a, b, c, n=bits: (a * b >> n) + c)
        yield Form(f"sad.{t} d, a, b, c", same3, lambda a, b, c: c + abs(a - b))
        yield Form(f"div.{t} d, a, b", same2, lambda a, b: truncated(a, b)[0])
        yield Form(f"rem.{t} d, a, b", same2, lambda a, b: truncated(a, b)[1])
        yield Form(f"min.{t} d, a, b", same2, min)
        yield Form(f"max.{t} d, a, b", same2, max)
        if bits < 64:
            w = wide(t)
            yield Form(f"mul.wide.{t} d, a, b", f"{w} = {t} {t}", operator.mul)
            yield Form(f"mad.wide.{t} d, a, b, c", f"{w} = {t} {t} {w}", lambda a, b, c: a * b + c)
        if t[0] == "s":
            yield Form(f"abs.{t} d, a", f"{t} = {t}", abs)
            yield Form(f"neg.{t} d, a", f"{t} = {t}", operator.neg)
    for t in ("u16x2", "s16x2"):
        for op, f in (("add", operator.add), ("min", min), ("max", max)):
            yield Form(f"{op}.{t} d, a, b", f"{t} = {t} {t}", f, target=90)
    for t in ("s16x2", "s32"):
        for op, f in (("min", min), ("max", max)):
            yield Form(
                f"{op}.relu.{t} d, a, b",
                f"{t} = {t} {t}",
                lambda a, b, f=f: max(f(a, b), 0),
                target=90,
            )
    yield Form("add.sat.s32 d, a, b", "s32 = s32 s32", operator.add)
    yield Form("sub.sat.s32 d, a, b", "s32 = s32 s32", operator.sub)
    yield Form("mad.hi.sat.s32 d, a, b, c", "s32 = s32 s32 s32", lambda a, b, c: (a * b >> 32) + c)
    yield Form("add.s32 d, a, -7", "s32 = s32", lambda a: a - 7)
    yield Form("mul.wide.u16 d, a, 0xFFFF", "u32 = u16", lambda a: a * 0xFFFF)
    yield Form("sub.u64 d, 0x123456789ABCDEF0, a", "u64 = u64", lambda a: 0x123456789ABCDEF0 - a)


def carries():
    """Chains: the second word of a sum of two."""
    for t in WORDS:
        n = width(t)
        mask = (1 << n) - 1

        def total(*words, n=n, mask=mask):
            """The words of a number, from the lowest: but the last, without their signs."""
            low = sum((w & mask) << (n * i) for i, w in enumerate(words[:-1]))
            return low + (words[-1] << (n * (len(words) - 1)))

        def words(x, count, n=n):
            return tuple(x >> (n * i) for i in range(count))

        two, three = f"{t} {t} = {t} {t} {t} {t}", f"{t} {t} {t} = {t} {t} {t} {t} {t} {t}"
        for op, f in (("add", operator.add), ("sub", operator.sub)):
            yield Form(
                f"{op}.cc.{t} d, a, c; {op}c.{t} e, b, x",
                two,
                lambda a, b, c, x, f=f, total=total, words=words: words(
                    f(total(a, b), total(c, x)), 2
                ),
            )
            yield Form(
                f"{op}.cc.{t} d, a, x; {op}c.cc.{t} e, b, y; {op}c.{t} f, c, z",
                three,
                lambda a, b, c, x, y, z, f=f, total=total, words=words: words(
                    f(total(a, b, c), total(x, y, z)), 3
                ),
            )
        yield Form(
            f"mad.lo.cc.{t} d, a, b, c; madc.hi.{t} e, a, b, x",
            two,
            lambda a, b, c, x, total=total, words=words: words(a * b + total(c, x), 2),
        )
        # Through all four: the carries out of the first two reach the third and the fourth.
        yield Form(
            f"mad.hi.cc.{t} d, a, b, c; madc.lo.cc.{t} e, a, b, x; madc.hi.cc.{t} f, a, b, c; "
            f"madc.lo.{t} g, a, b, x",
            f"{t} {t} {t} {t} = {t} {t} {t} {t}",
            lambda a, b, c, x, n=n, mask=mask: mad_chain(a, b, c, x, n, mask),
        )


def mad_chain(a, b, c, x, n, mask):
    carry, results = 0, []
    for high, addend in ((True, c), (False, x), (True, c), (False, x)):
        part = a * b >> n if high else a * b
        total = (part & mask) + (addend & mask) + carry
        results.append(total & mask)
        carry = total >> n
    return tuple(results)


def low24(a, signed):
    a &= 0xFFFFFF
    return a - (1 << 24) if signed and a >> 23 else a


def signed_bytes(x, size, signed):
    return [
        int.from_bytes(x.to_bytes(4, "little")[i : i + size], "little", signed=signed)
        for i in range(0, 4, size)
    ]


def dots():
    for t in ("u32", "s32"):
        s = t[0] == "s"

        def product(a, b, s=s):
            return low24(a, s) * low24(b, s)

        for part, shift in (("lo", 0), ("hi", 16)):
            yield Form(
                f"mul24.{part}.{t} d, a, b",
                f"{t} = {t} {t}",
                lambda a, b, f=product, n=shift: f(a, b) >> n,
            )
            yield Form(
                f"mad24.{part}.{t} d, a, b, c",
                f"{t} = {t} {t} {t}",
                lambda a, b, c, f=product, n=shift: (f(a, b) >> n) + c,
            )
    for ta, tb in itertools.product(("u32", "s32"), repeat=2):
        sa, sb = ta[0] == "s", tb[0] == "s"

        def dot4(a, b, c, sa=sa, sb=sb):
            return c + sum(map(operator.mul, signed_bytes(a, 1, sa), signed_bytes(b, 1, sb)))

        def dot2(a, b, c, half, sa=sa, sb=sb):
            four = signed_bytes(b, 1, sb)[2 * half : 2 * half + 2]
            return c + sum(map(operator.mul, signed_bytes(a, 2, sa), four))

        yield Form(f"dp4a.{ta}.{tb} d, a, b, c", "u32 = u32 u32 u32", dot4)
        for half, name in enumerate(("lo", "hi")):
            yield Form(
                f"dp2a.{name}.{ta}.{tb} d, a, b, c",
                "u32 = u32 u32 u32",
                lambda a, b, c, h=half, f=dot2: f(a, b, c, h),
            )


# ---- logic, shifts, bit fields ------------------------------------------------------------------


BITWISE = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def logic():
    for t in ("b16", "b32", "b64"):
        for op, f in BITWISE.items():
            yield Form(f"{op}.{t} d, a, b", f"{t} = {t} {t}", f)
        yield Form(f"not.{t} d, a", f"{t} = {t}", operator.invert)
        yield Form(f"cnot.{t} d, a", f"{t} = {t}", lambda a: int(a == 0))
    for op, f in BITWISE.items():
        yield Form(f"{op}.pred d, a, b", "pred = pred pred", f)
    yield Form("not.pred d, a", "pred = pred", operator.not_)
    yield Form("and.b64 d, a, 0xFF00FF00FF00FF00", "b64 = b64", lambda a: a & 0xFF00FF00FF00FF00)

    for table in (0x00, 0x01, 0x80, 0x96, 0xAA, 0xB8, 0xC0, 0xCA, 0xCC, 0xE8, 0xF0, 0xFE, 0xFF):

        def lookup(a, b, c, table=table):
            bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
            return sum((table >> index & 1) << i for i, index in enumerate(bits))

        yield Form(f"lop3.b32 d, a, b, c, {table:#x}", "b32 = b32 b32 b32", lookup)


def shifts():
    for t in ("b16", "b32", "b64"):
        yield Form(f"shl.{t} d, a, b", f"{t} = {t} u32", lambda a, n: a << min(n, 64))
        yield Form(f"shr.{t} d, a, b", f"{t} = {t} u32", lambda a, n: a >> n)
    for t in INTEGERS:
        yield Form(f"shr.{t} d, a, b", f"{t} = {t} u32", lambda a, n: a >> n)
    for how, amount in (("clamp", lambda n: min(n, 32)), ("wrap", lambda n: n & 31)):
        yield Form(
            f"shf.l.{how}.b32 d, a, b, c",
            "b32 = b32 b32 u32",
            lambda a, b, n, amount=amount: (b << 32 | a) << amount(n) >> 32,
        )
        yield Form(
            f"shf.r.{how}.b32 d, a, b, c",
            "b32 = b32 b32 u32",
            lambda a, b, n, amount=amount: (b << 32 | a) >> amount(n),
        )


def highest_bit(a):
    """The highest bit that is not the sign's, or -1."""
    return (a if a >= 0 else ~a).bit_length() - 1


def bit_counts():
    for t in ("b32", "b64"):
        n = width(t)
        yield Form(f"popc.{t} d, a", f"u32 = {t}", lambda a: a.bit_count())
        yield Form(f"clz.{t} d, a", f"u32 = {t}", lambda a, n=n: n - a.bit_length())
        yield Form(f"brev.{t} d, a", f"{t} = {t}", lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
    for t in WORDS:
        n = width(t)
        yield Form(f"bfind.{t} d, a", f"u32 = {t}", highest_bit)
        yield Form(
            f"bfind.shiftamt.{t} d, a",
            f"u32 = {t}",
            lambda a, n=n: n - 1 - highest_bit(a) if highest_bit(a) >= 0 else -1,
        )


def field(a, position, length, bits, signed):
    """bfe, bit by bit as the ISA has it."""
    position, length, last = position & 255, length & 255, bits - 1
    sign = 0
    if signed and length:
        sign = a >> min(position + length - 1, last) & 1
    result = 0
    for i in range(bits):
        inside = i < length and position + i <= last
        result |= (a >> (position + i) & 1 if inside else sign) << i
    return result


def inserted(a, b, position, length, bits):
    position, length = position & 255, length & 255
    mask = ((1 << length) - 1) << position
    return (b & ~mask | a << position & mask) & ((1 << bits) - 1)


def small_amounts(*arrays):
    """The operands after the first few are positions and lengths: within the width, mostly."""
    for array in arrays:
        if array.dtype == np.uint32:
            array[::4] %= 70


def bmsk(a, b, clamp):
    start, stop = a & 31, (a & 31) + (b & 31)
    low = -1 << start
    high = 0 if stop >= 32 or (clamp and (a >= 32 or b >= 32)) else -1 << stop
    return (0 if clamp and a >= 32 else low) & ~high


def szext(a, b, clamp, signed):
    if clamp and b >= 32:
        return a
    n = b & 31
    sign = signed and n > 0 and a >> (n - 1) & 1
    return (a & ((1 << n) - 1)) | (-1 << n if sign else 0)


def bit_fields():
    for t in WORDS:
        n, s = width(t), t[0] == "s"
        yield Form(
            f"bfe.{t} d, a, b, c",
            f"{t} = {t} u32 u32",
            lambda a, p, length, n=n, s=s: field(a, p, length, n, s),
            lambda a, p, length: small_amounts(p, length),
        )
    for t, n in (("b32", 32), ("b64", 64)):
        yield Form(
            f"bfi.{t} d, a, b, c, x",
            f"{t} = {t} {t} u32 u32",
            lambda a, b, p, length, n=n: inserted(a, b, p, length, n),
            lambda a, b, p, length: small_amounts(p, length),
        )
    for how in ("clamp", "wrap"):
        clamp = how == "clamp"
        yield Form(
            f"bmsk.{how}.b32 d, a, b",
            "b32 = u32 u32",
            lambda a, b, c=clamp: bmsk(a, b, c),
            small_amounts,
        )
        for t in ("u32", "s32"):
            yield Form(
                f"szext.{how}.{t} d, a, b",
                f"{t} = {t} u32",
                lambda a, b, c=clamp, s=t[0] == "s": szext(a, b, c, s),
                lambda a, b: small_amounts(b),
            )


# For the two lowest bits of c, the bytes taken from the lowest on: the tables of the ISA.
BYTE_ORDERS = {
    "f4e": ((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)),
    "b4e": ((0, 7, 6, 5), (1, 0, 7, 6), (2, 1, 0, 7), (3, 2, 1, 0)),
    "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
    "ecl": ((0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)),
    "ecr": ((0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)),
    "rc16": ((0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)),
}


def permuted(a, b, order):
    source = (b << 32 | a).to_bytes(8, "little")
    chosen = []
    for selector in order:
        byte = source[selector & 7]
        chosen.append((255 if byte & 128 else 0) if selector & 8 else byte)
    return int.from_bytes(bytes(chosen), "little")


def permutes():
    yield Form(
        "prmt.b32 d, a, b, c",
        "b32 = b32 b32 b32",
        lambda a, b, c: permuted(a, b, [c >> (4 * i) & 15 for i in range(4)]),
    )
    for mode, orders in BYTE_ORDERS.items():
        yield Form(
            f"prmt.b32.{mode} d, a, b, c",
            "b32 = b32 b32 b32",
            lambda a, b, c, orders=orders: permuted(a, b, orders[c & 3]),
        )


# ---- float32 and float64 ------------------------------------------------------------------------

NO_ROUNDING = ("", *ROUNDINGS)


def cancel(a, b, c):
    """Let c be near -a b in some lanes, so that the sum cancels but for the product's rounding."""
    kind = {2: np.float16, 4: np.float32, 8: np.float64}[a.dtype.itemsize]
    with np.errstate(all="ignore"):
        product = -(a.view(kind) * b.view(kind))
    c[::5] = product.view(c.dtype)[::5]


def cancel_pairs(a, b, c):
    cancel(a.view(np.uint16), b.view(np.uint16), c.view(np.uint16))


def cancel_floats(a, b, c):
    cancel(a.view(np.uint32), b.view(np.uint32), c.view(np.uint32))


def float_arithmetic():
    for op, f in (("add", add), ("sub", sub), ("mul", mul)):
        for m in choices(NO_ROUNDING, FTZ, SAT):
            yield Form(f"{op}{m}.f32 d, a, b", "f32 = f32 f32", f)
        for m in NO_ROUNDING:
            yield Form(f"{op}{m}.f64 d, a, b", "f64 = f64 f64", f)
    for op in ("fma", "mad"):
        for m in choices(ROUNDINGS, FTZ, SAT):
            yield Form(f"{op}{m}.f32 d, a, b, c", "f32 = f32 f32 f32", fma, cancel)
        for m in ROUNDINGS:
            yield Form(f"{op}{m}.f64 d, a, b, c", "f64 = f64 f64 f64", fma, cancel)
    for op, f, operands in (("div", div, "a, b"), ("rcp", rcp, "a"), ("sqrt", sqrt, "a")):
        many = operands.count(",") + 1
        for m in choices(ROUNDINGS, FTZ):
            yield Form(f"{op}{m}.f32 d, {operands}", "f32 =" + " f32" * many, f)
        for m in ROUNDINGS:
            yield Form(f"{op}{m}.f64 d, {operands}", "f64 =" + " f64" * many, f)
    yield Form("add.f32 d, a, 0f3FC00000", "f32 = f32", lambda a: add(a, 1.5))
    yield Form("mul.f64 d, a, 0dBFE0000000000000", "f64 = f64", lambda a: mul(a, -0.5))
    yield Form("mul.f64 d, 2.5, a", "f64 = f64", lambda a: mul(a, 2.5))
    yield Form("fma.rn.f32 d, a, 0fC0000000, 0.1", "f32 = f32", lambda a: fma(a, -2.0, TENTH))


TENTH = float(np.float32(0.1))


def float_pairs():
    t = "f32x2"
    for op, f in (("add", add), ("sub", sub), ("mul", mul)):
        for m in choices(NO_ROUNDING, FTZ):
            yield Form(f"{op}{m}.{t} d, a, b", f"{t} = {t} {t}", f, target=120)
    for m in choices(ROUNDINGS, FTZ):
        yield Form(f"fma{m}.{t} d, a, b, c", f"{t} = {t} {t} {t}", fma, cancel_floats, target=120)


def mixed_arithmetic():
    """Of float16 or bfloat16 operands, and a last one of float32."""
    for t in ("f16", "bf16"):
        for op, f in (("add", add), ("sub", sub)):
            for m in choices(NO_ROUNDING, SAT):
                yield Form(f"{op}{m}.f32.{t} d, a, b", f"f32 = {t} f32", f, target=120)
        for m in choices(ROUNDINGS, SAT):
            yield Form(
                f"fma{m}.f32.{t} d, a, b, c",
                f"f32 = {t} {t} f32",
                fma,
                lambda a, b, c, t=t: cancel_products(t, a, b, c),
                target=120,
            )
        yield Form(
            f"add.f32.{t} d, a, 0f3E800000", f"f32 = {t}", lambda a: add(a, 0.25), target=120
        )


def cancel_products(t, a, b, c):
    """As :func:`cancel`, of shorter factors."""
    with np.errstate(all="ignore"):
        product = np.float32(-(FORMATS[t].decode(a) * FORMATS[t].decode(b)))
    c[::5] = product.view(c.dtype)[::5]


def nan_if_either(f):
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else f(a, b)


def of_magnitudes(f):
    """f of the magnitudes, with the product's sign."""

    def value(a, b):
        r = f(abs(a), abs(b))
        return r if math.isnan(r) else math.copysign(r, math.copysign(1, a) * math.copysign(1, b))

    return value


def orders(t, flags):
    for op, f in (("min", smaller), ("max", larger)):
        for m in flags:
            g = nan_if_either(f) if ".NaN" in m else f
            g = of_magnitudes(g) if ".xorsign" in m else g
            target = 86 if ".xorsign" in m else 80
            yield Form(f"{op}{m}.{t} d, a, b", f"{t} = {t} {t}", g, target=target)


def orders_of_three():
    for op, f in (("min", smaller), ("max", larger)):
        for m in choices(FTZ, NAN, ("", ".abs")):
            g = nan_if_either(f) if ".NaN" in m else f
            value = of_three(g, abs if ".abs" in m else same)
            yield Form(f"{op}{m}.f32 d, a, b, c", "f32 = f32 f32 f32", value, target=120)


def of_three(f, of_each):
    return lambda a, b, c: f(f(of_each(a), of_each(b)), of_each(c))


NAN, XORSIGN = ("", ".NaN"), ("", ".xorsign.abs")


def float_signs():
    yield from orders("f32", choices(FTZ, NAN, XORSIGN))
    yield from orders("f64", [""])
    yield from orders_of_three()
    for t, flags in (("f32", FTZ), ("f64", ("",))):
        for m in flags:
            yield Form(f"abs{m}.{t} d, a", f"{t} = {t}", abs)
            yield Form(f"neg{m}.{t} d, a", f"{t} = {t}", operator.neg)
        yield Form(f"copysign.{t} d, a, b", f"{t} = {t} {t}", lambda a, b: math.copysign(b, a))
        smallest = FORMATS[t].smallest
        for test, f in {
            "finite": math.isfinite,
            "infinite": math.isinf,
            "number": lambda a: not math.isnan(a),
            "notanumber": math.isnan,
            "normal": lambda a, s=smallest: math.isfinite(a) and (a == 0 or abs(a) >= s),
            "subnormal": lambda a, s=smallest: 0 < abs(a) < s,
        }.items():
            yield Form(f"testp.{test}.{t} d, a", f"pred = {t}", f)


# ---- float16 and bfloat16 -----------------------------------------------------------------------


def half_arithmetic():
    for t in HALVES:
        for op, f in (("add", add), ("sub", sub), ("mul", mul)):
            for m in choices(("", ".rn"), FTZ, SAT):
                yield Form(f"{op}{m}.{t} d, a, b", f"{t} = {t} {t}", f)
        for m in choices(FTZ, ("", ".sat", ".relu")):
            yield Form(f"fma.rn{m}.{t} d, a, b, c", f"{t} = {t} {t} {t}", fma, cancel_pairs)
        yield from orders(t, choices(FTZ, NAN, XORSIGN))
        for m in FTZ:
            yield Form(f"abs{m}.{t} d, a", f"{t} = {t}", abs)
            yield Form(f"neg{m}.{t} d, a", f"{t} = {t}", operator.neg)
    for t in BFLOATS:
        for op, f in (("add", add), ("sub", sub), ("mul", mul)):
            for m in ("", ".rn"):
                yield Form(f"{op}{m}.{t} d, a, b", f"{t} = {t} {t}", f, target=90)
        for m in RELU:
            yield Form(f"fma.rn{m}.{t} d, a, b, c", f"{t} = {t} {t} {t}", fma)
        yield from orders(t, choices(NAN, XORSIGN))
        yield Form(f"abs.{t} d, a", f"{t} = {t}", abs)
        yield Form(f"neg.{t} d, a", f"{t} = {t}", operator.neg)


# ---- conversions --------------------------------------------------------------------------------

ALL_INTEGERS = ("u8", "s8", *INTEGERS)


def same(a):
    return a


def wrapped(a, bits, signed):
    a &= (1 << bits) - 1
    return a - (1 << bits) if signed and a >> (bits - 1) else a


def holds_all(to, source):
    """Whether a type has all values of another: then .sat is refused."""
    if source[0] == "s":
        return to[0] == "s" and width(to) >= width(source)
    return width(to) >= width(source) + (to[0] == "s")


def integer_conversions():
    for to, source in itertools.product(ALL_INTEGERS, ALL_INTEGERS):
        yield Form(f"cvt.{to}.{source} d, a", f"{to} = {source}", same)
        if not holds_all(to, source):
            yield Form(f"cvt.sat.{to}.{source} d, a", f"{to} = {source}", same)
    # A register may be wider than the type: its low bits are converted, the result fills it.
    for t, r in itertools.product(("u8", "s8", "u16", "s16"), ("u32", "u64")):
        bits, s = width(t), t[0] == "s"
        yield Form(f"cvt.{t}.{t} d, a", f"{r} = {r}", lambda a, n=bits, s=s: wrapped(a, n, s))
    yield Form("cvt.sat.s8.s32 d, a", "s32 = s32", lambda a: min(max(a, -128), 127))
    yield Form("cvt.sat.u8.s32 d, a", "s32 = s32", lambda a: min(max(a, 0), 255))
    yield Form("cvt.rn.f32.s8 d, a", "f32 = u32", lambda a: wrapped(a, 8, True))
    yield Form("cvt.rn.f32.u16 d, a", "f32 = u64", lambda a: wrapped(a, 16, False))


def float_conversions():
    floats = ("f16", "f32", "f64")
    for to, source, m in itertools.product(floats, ALL_INTEGERS, choices(ROUNDINGS, SAT)):
        yield Form(f"cvt{m}.{to}.{source} d, a", f"{to} = {source}", same)
    for to, source, m in itertools.product(ALL_INTEGERS, floats, choices(ROUNDINGS, SAT)):
        yield Form(f"cvt{m[:3]}i{m[3:]}.{to}.{source} d, a", f"{to} = {source}", same)
    for to, m in itertools.product(ALL_INTEGERS, ROUNDINGS):
        yield Form(f"cvt{m}i.ftz.{to}.f32 d, a", f"{to} = f32", same)
    # To a wider one, or the same: nothing is rounded.
    for to, source in (("f32", "f16"), ("f64", "f16"), ("f64", "f32"), *((t, t) for t in floats)):
        for m in choices(FTZ if "f32" in (to, source) else ("",), SAT):
            yield Form(f"cvt{m}.{to}.{source} d, a", f"{to} = {source}", same)
    # To a shorter one.
    for to, source in (("f16", "f32"), ("f16", "f64"), ("f32", "f64")):
        for m in choices(ROUNDINGS, FTZ if "f32" in (to, source) else ("",), SAT):
            yield Form(f"cvt{m}.{to}.{source} d, a", f"{to} = {source}", same)
    # To an integer of the same type.
    for t in floats:
        for m in choices((".rni", ".rzi", ".rmi", ".rpi"), FTZ if t == "f32" else ("",), SAT):
            yield Form(f"cvt{m}.{t}.{t} d, a", f"{t} = {t}", as_integer(m[1:3]))
    for m in (*choices(ROUNDINGS, FTZ), ".rn.relu", ".rz.relu"):
        yield Form(f"cvt{m}.bf16.f32 d, a", "bf16 = f32", same)
    for m in choices((".rn", ".rz"), RELU):
        if "relu" in m:
            yield Form(f"cvt{m}.f16.f32 d, a", "f16 = f32", same)
        for t in ("f16x2", "bf16x2"):
            yield Form(f"cvt{m}.{t}.f32 d, a, b", f"{t} = f32 f32", lambda a, b: [b, a])
    yield Form("cvt.f32.bf16 d, a", "f32 = bf16", same)
    yield Form("cvt.rna.tf32.f32 d, a", "tf32 = f32", same)


def as_integer(mode):
    def value(a):
        if not math.isfinite(a) or a == 0:
            return a
        return math.copysign(float(round_integer(Fraction(a), mode)), a)

    return value


# ---- comparisons, selections, moves -------------------------------------------------------------

COMPARISONS = {
    "eq": operator.eq,
    "ne": lambda a, b: a < b or a > b,  # False of NaN
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def unordered(f):
    return lambda a, b: f(a, b) or math.isnan(a) or math.isnan(b)


FLOATING = {
    **COMPARISONS,
    **{f"{name}u": unordered(f) for name, f in COMPARISONS.items()},
    "num": lambda a, b: not (math.isnan(a) or math.isnan(b)),
    "nan": lambda a, b: math.isnan(a) or math.isnan(b),
}


def comparisons_of(t):
    if t[0] == "b":
        return {name: COMPARISONS[name] for name in ("eq", "ne")}
    if t[0] == "u":
        return {**COMPARISONS, **UNSIGNED}
    return COMPARISONS if t[0] == "s" else FLOATING


# What can be compared, with and without .ftz.
COMPARED = (
    *((t, "") for t in ("b16", "b32", "b64", *INTEGERS, "f16", "f16x2", "f32", "f64")),
    *((t, ".ftz") for t in ("f16", "f16x2", "f32")),
)


def rotation(*items):
    return itertools.cycle(items)


def set_predicates():
    """Every comparison alone, and with each way to combine it in turn."""
    combined = rotation(*itertools.product(BITWISE, ("", "!")))
    for t, ftz in COMPARED:
        pair = t == "f16x2"
        for name, f in comparisons_of(t).items():

            def both(a, b, f=f, pair=pair):
                """p and q: of a pair the halves', else the comparison and its opposite."""
                return tuple(map(f, a, b)) if pair else (f(a, b), not f(a, b))

            yield Form(
                f"setp.{name}{ftz}.{t} d, a, b", f"pred = {t} {t}", lambda a, b, g=both: g(a, b)[0]
            )
            op, negated = next(combined)

            def mixed(a, b, c, g=both, op=BITWISE[op], negated=bool(negated)):
                return tuple(op(p, c != negated) for p in g(a, b))

            if t == "f16":  # has no second predicate
                yield Form(
                    f"setp.{name}.{op}{ftz}.{t} d, a, b, {negated}c",
                    f"pred = {t} {t} pred",
                    lambda a, b, c, g=mixed: g(a, b, c)[0],
                )
                continue
            yield Form(f"setp.{name}{ftz}.{t} d|e, a, b", f"pred pred = {t} {t}", both)
            yield Form(
                f"setp.{name}.{op}{ftz}.{t} d|e, a, b, {negated}c",
                f"pred pred = {t} {t} pred",
                mixed,
            )
    for (op, f), n in itertools.product(BITWISE.items(), ("", "!")):
        yield Form(
            f"setp.lt.{op}.s32 d|_, a, b, {n}c",
            "pred = s32 s32 pred",
            lambda a, b, c, f=f, n=bool(n): f(a < b, c != n),
        )
        yield Form(
            f"setp.lt.{op}.s32 _|e, a, b, {n}c; and.pred d, e, e",
            "pred pred = s32 s32 pred",
            lambda a, b, c, f=f, n=bool(n): (f(a >= b, c != n),) * 2,
        )
    yield Form("setp.gt.f32 d, a, 0f3F800000", "pred = f32", lambda a: a > 1)
    yield Form("setp.ne.u32 d, a, 0", "pred = u32", lambda a: a != 0)


def set_values():
    """All ones, or 1.0."""
    combined = rotation(*choices((".and", ".or", ".xor"), ("", "!")))
    for t, ftz in COMPARED:
        kinds = {"f16": ("u16", "s16", "u32", "s32", "f16"), "f16x2": ("u32", "s32", "f16x2")}
        kinds = rotation(*kinds.get(t, ("u32", "s32", "f32", "f16")))
        for name, f in comparisons_of(t).items():
            yield set_form(t, ftz, next(kinds), name, f, "")
            yield set_form(t, ftz, next(kinds), name, f, next(combined))


def set_form(t, ftz, to, name, f, combined):
    one = 1.0 if to[0] == "f" else -1
    op, negated = combined.rstrip("!").strip("."), combined.endswith("!")

    def chosen(p, c=False):
        return (BITWISE[op](p, c != negated) if op else p) * one

    def value(a, b, c=False):
        if not isinstance(a, tuple):  # of pairs alone, a half comes here at a time
            return chosen(f(a, b), c)
        low, high = (chosen(f(x, y), c) for x, y in zip(a, b, strict=True))
        # One register for both results: two ones, or two halves of ones.
        return [low, high] if to == "f16x2" else (low & 0xFFFF) | (high & 0xFFFF) << 16

    third = f", {'!' if negated else ''}c" if op else ""
    return Form(
        f"set.{name}{combined.rstrip('!')}{ftz}.{to}.{t} d, a, b{third}",
        f"{to} = {t} {t}" + (" pred" if op else ""),
        value,
    )


PLAIN = ("b16", "b32", "b64", *INTEGERS, "f32", "f64")


def bits_of(t):
    return f"b{width(t)}"


def selections():
    for t in PLAIN:
        b = bits_of(t)
        yield Form(f"selp.{t} d, a, b, c", f"{b} = {b} {b} pred", lambda a, b, c: a if c else b)
        yield Form(f"slct.{t}.s32 d, a, b, c", f"{b} = {b} {b} s32", choose)
        for ftz in FTZ:
            yield Form(f"slct{ftz}.{t}.f32 d, a, b, c", f"{b} = {b} {b} f32", choose)
    yield Form("selp.b32 d, a, b, !c", "b32 = b32 b32 pred", lambda a, b, c: b if c else a)
    yield Form(
        "selp.f32 d, 0f40000000, a, c", "f32 = f32 f32 pred", lambda a, b, c: 2.0 if c else a
    )


def choose(a, b, c):
    return a if c >= 0 else b  # of a NaN, b


def moves():
    for t in PLAIN:
        yield Form(f"mov.{t} d, a", f"{bits_of(t)} = {bits_of(t)}", same)
    yield Form("mov.pred d, a", "pred = pred", same)
    yield Form("mov.pred d, 1; and.pred e, d, a", "pred pred = pred", lambda a: (True, a))
    yield Form("mov.u32 d, 0x12345678; add.u32 d, d, a", "u32 = u32", lambda a: a + 0x12345678)
    yield Form("mov.s16 d, -2; add.s16 d, d, a", "s16 = s16", lambda a: a - 2)
    yield Form("mov.b64 d, -1; xor.b64 d, d, a", "b64 = b64", operator.invert)
    yield Form("mov.f32 d, 0f3E800000; add.f32 d, d, a", "f32 = f32", lambda a: add(a, 0.25))
    yield Form("mov.f64 d, 0.1; add.f64 d, d, a", "f64 = f64", lambda a: add(a, 0.1))
    yield Form("mov.b32 d, {a, b}", "b32 = b16 b16", lambda a, b: a | b << 16)
    yield Form("mov.b64 d, {a, b}", "b64 = b32 b32", lambda a, b: a | b << 32)
    yield Form(
        "mov.b64 d, {a, b, c, x}",
        "b64 = b16 b16 b16 b16",
        lambda a, b, c, x: a | b << 16 | c << 32 | x << 48,
    )
    yield Form("mov.b32 {d, e}, a", "b16 b16 = b32", lambda a: (a, a >> 16))
    yield Form("mov.b64 {d, e}, a", "b32 b32 = b64", lambda a: (a, a >> 32))
    yield Form(
        "mov.b64 {d, e, f, g}, a",
        "b16 b16 b16 b16 = b64",
        lambda a: (a, a >> 16, a >> 32, a >> 48),
    )
    yield Form("mov.b64 {_, d}, a", "b32 = b64", lambda a: a >> 32)
    # A register of the source is a destination, too.
    yield Form("mov.b32 {d, e}, a; mov.b32 f, {e, d}", "b16 b16 b32 = b32", swapped)


def swapped(a):
    return a, a >> 16, (a >> 16) | (a & 0xFFFF) << 16


# ---- memory -------------------------------------------------------------------------------------

SIGNED = ("s8", "s16", "s32", "s64")


def elements(a, b, size, count, signed):
    """The first elements of two words."""
    data = (a | b << 64).to_bytes(16, "little")
    parts = (data[size * i : size * (i + 1)] for i in range(count))
    return tuple(int.from_bytes(part, "little", signed=signed) for part in parts)


def braces(names, count):
    return names[0] if count == 1 else "{" + ", ".join(names[:count]) + "}"


def vector(count):
    return "" if count == 1 else f".v{count}"


def transfers():
    """(type, elements, bits of the registers, cell) of everything that ld and st move."""
    turn = rotation(0, 1, 2)
    for t in ("b8", *ALL_INTEGERS, "b16", "b32", "b64", "f32", "f64"):
        for count in (1, 2, 4):
            if width(t) * count > 128:
                continue
            fitting = [bits for bits in (16, 32, 64) if bits >= width(t)]
            for name, cell in CELLS.items():
                some = fitting if name == "global" else [fitting[next(turn) % len(fitting)]]
                for bits in some:
                    yield t, count, bits, cell


def load(text, t, count, bits, cell):
    return Form(
        text,
        f"b{bits} " * count + "= b64 b64",
        lambda a, b: elements(a, b, width(t) // 8, count, t[0] == "s"),
        before=cell.fill("a", "b"),
        variables=cell.variables,
    )


def loads():
    for t, count, bits, cell in transfers():
        text = f"ld{cell.space}{vector(count)}.{t} {braces(OUTPUTS, count)}, [{cell.address}]"
        yield load(text, t, count, bits, cell)
    for space, caches in LOAD_MODIFIERS.items():
        cell = CELLS[space]
        for m in caches:
            text = f"{m.format(cell.space)}.v2.u32 {{d, e}}, [{cell.address}]"
            yield load(text, "u32", 2, 32, cell)
    cell = CELLS["global"]
    for m in ("L2::cache_hint", "L1::no_allocate.L2::cache_hint.L2::128B"):
        text = f"ld.global.{m}.u32 d, [base], offset"
        form = load(text, "u32", 1, 32, cell)
        yield replace(form, before=f"{form.before}; {POLICY} offset, 0.5")
    yield replace(load("ld.global.u16 d, [base+6]", "u16", 1, 16, cell), value=lambda a, b: a >> 48)
    yield replace(
        load("ld.global.u16 d, [base+-6]", "u16", 1, 16, cell),
        before=f"{cell.fill('a', 'b')}; add.s64 base, base, 8",
        value=lambda a, b: a >> 16,
    )


POLICY = "createpolicy.fractional.L2::evict_last.b64"
SCOPES = (".cta", ".gpu", ".sys")
CACHED = ("ld{}.ca", "ld{}.cg", "ld{}.cs", "ld{}.lu", "ld{}.cv", "ld.weak{}.ca")
ORDERED = ("ld.weak{}", "ld.volatile{}", *choices(("ld.relaxed", "ld.acquire"), SCOPES, ("{}",)))
LOAD_MODIFIERS = {
    "global": (
        *CACHED,
        *ORDERED,
        "ldu{}",
        "ld{}.nc",
        "ld{}.ca.nc",
        "ld{}.nc.L1::no_allocate.L2::256B",
        *choices(
            ("ld{}.L1::",),
            ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate"),
            ("", ".L2::64B"),
        ),
    ),
    "generic global": (*CACHED, *ORDERED, "ldu{}", "ld{}.L1::evict_last.L2::128B"),
    "generic shared": ORDERED,
    "shared": (*CACHED, *ORDERED),
    "local": CACHED,
}
CACHED_STORES = ("st{}.wb", "st{}.cg", "st{}.cs", "st{}.wt", "st.weak{}.wb")
ORDERED_STORES = (
    "st.weak{}",
    "st.volatile{}",
    *choices(("st.relaxed", "st.release"), SCOPES, ("{}",)),
)
STORE_MODIFIERS = {
    "global": (*CACHED_STORES, *ORDERED_STORES, "st{}.L1::evict_first", "st{}.L1::no_allocate"),
    "generic global": (*CACHED_STORES, *ORDERED_STORES),
    "generic shared": ORDERED_STORES,
    "shared": (*CACHED_STORES, *ORDERED_STORES),
    "local": CACHED_STORES,
}


def store(text, size, count, bits, cell):
    """Over what was there before."""

    def value(*values):
        *stored, low, high = values
        data = b"".join((v & ((1 << (8 * size)) - 1)).to_bytes(size, "little") for v in stored)
        data += (low | high << 64).to_bytes(16, "little")[len(data) :]
        return elements(int.from_bytes(data, "little"), 0, 8, 2, False)

    return Form(
        text,
        "b64 b64 =" + f" b{bits}" * count + " b64 b64",
        value,
        before=cell.fill(*INPUTS[count : count + 2]),
        after=cell.read("d", "e"),
        variables=cell.variables,
    )


def stores():
    for t, count, bits, cell in transfers():
        text = f"st{cell.space}{vector(count)}.{t} [{cell.address}], {braces(INPUTS, count)}"
        yield store(text, width(t) // 8, count, bits, cell)
    for space, modifiers in STORE_MODIFIERS.items():
        cell = CELLS[space]
        for m in modifiers:
            text = f"{m.format(cell.space)}.v2.u32 [{cell.address}], {{a, b}}"
            yield store(text, 4, 2, 32, cell)
    cell = CELLS["global"]
    form = store("st.global.L2::cache_hint.u32 [base], a, offset", 4, 1, 32, cell)
    yield replace(form, before=f"{form.before}; {POLICY} offset")
    # Immediate values, one of them among registers.
    for text, t, value in (
        ("st.global.u8 [base], 0x1FF", "b64", lambda a, b, c: (b & ~0xFF | 0xFF, c)),
        ("st.global.s16 [base+8], -2", "b64", lambda a, b, c: (b, c & ~0xFFFF | 0xFFFE)),
        (
            "st.global.f32 [base+4], 0f3FC00000",
            "b64",
            lambda a, b, c: (b & M32 | 0x3FC00000 << 32, c),
        ),
        ("st.global.f64 [base], 1.5", "b64", lambda a, b, c: (0x3FF8000000000000, c)),
        ("st.global.v2.u32 [base], {a, 7}", "b32", lambda a, b, c: (a | 7 << 32, c)),
    ):
        yield replace(store(text, 8, 1, 32, cell), types=f"b64 b64 = {t} b64 b64", value=value)


M32 = 0xFFFFFFFF


# ---- atomics ------------------------------------------------------------------------------------


def increment(old, b):
    return 0 if old >= b else old + 1


def decrement(old, b):
    return b if old == 0 or old > b else old - 1


def flushed(f):
    """Of float32 in global memory: denormals are zeros there, and results of additions."""

    def flush(x):
        return math.copysign(0.0, x) if abs(x) < FORMATS["f32"].smallest else x

    def value(a, b):
        total = f(flush(a), flush(b))
        if isinstance(total, Fraction) and 0 < abs(total) < FORMATS["f32"].smallest:
            near = round_to(total, FORMATS["f32"], "rn")
            return flush(near)
        return total

    return value


ATOMICS = {
    **{f"add.{t}": (t, operator.add) for t in ("u32", "s32", "u64")},
    **{f"add.{t}": (t, add) for t in ("f32", "f64")},
    **{f"add.noftz.{t}": (t, add) for t in HALVES},
    **{f"min.{t}": (t, min) for t in WORDS},
    **{f"max.{t}": (t, max) for t in WORDS},
    "inc.u32": ("u32", increment),
    "dec.u32": ("u32", decrement),
    **{f"{op}.{t}": (t, f) for op, f in BITWISE.items() for t in ("b32", "b64")},
}
ATOMIC_CELLS = ("global", "shared", "shared::cta", "generic global", "generic shared")


def atomics():
    """What was there and what is there afterwards."""
    for name in ATOMIC_CELLS:
        cell = CELLS[name]
        for op, (t, f) in ATOMICS.items():
            if t == "f32" and "global" in name:
                f = flushed(f)
            at = f"[{cell.address}]"
            yield atomic(f"atom{cell.space}.{op} d, {at}, b", t, 2, cell, f)
            yield atomic(f"red{cell.space}.{op} {at}, b", t, 2, cell, f, returns=False)
        for t in ("b32", "b64"):
            yield atomic(f"atom{cell.space}.exch.{t} d, {at}, b", t, 2, cell, lambda a, b: b)
        for t in ("b16", "b32", "b64"):
            yield atomic(
                f"atom{cell.space}.cas.{t} d, {at}, b, c",
                t,
                3,
                cell,
                lambda a, b, c: c if a == b else a,
                equal_often,
            )
    cell = CELLS["global"]
    for order, scope in itertools.product(
        ("", ".relaxed", ".acquire", ".release", ".acq_rel"), SCOPES
    ):
        yield atomic(
            f"atom{order}{scope}.global.add.u32 d, [base], b", "u32", 2, cell, operator.add
        )
    for order in (".relaxed", ".release"):
        text = f"red{order}.gpu.shared.add.u32 [word], b"
        yield atomic(text, "u32", 2, CELLS["shared"], operator.add, returns=False)
    yield atomic("atom.global.add.u32 d, [base], 5", "u32", 1, cell, lambda a: a + 5)
    yield atomic(
        "atom.global.cas.b32 d, [base], b, 0", "b32", 2, cell, lambda a, b: 0 if a == b else a
    )
    form = atomic(
        "atom.global.add.L2::cache_hint.u32 d, [base], b, offset", "u32", 2, cell, operator.add
    )
    yield replace(form, before=f"{form.before}; {POLICY} offset")


def equal_often(a, b, c):
    b[::2] = a[::2]


def atomic(text, t, operands, cell, f, pick=None, returns=True):
    b = bits_of(t)
    after = f"ld{cell.space}.{b} {'e' if returns else 'd'}, [{cell.address}]"
    return Form(
        text,
        (f"{t} {t}" if returns else t) + " =" + f" {t}" * operands,
        (lambda *values: (values[0], f(*values))) if returns else f,
        pick,
        before=f"{cell.setup}; st{cell.space}.{b} [{cell.address}], a",
        after=after,
        variables=cell.variables,
    )


# ---- cp.async -----------------------------------------------------------------------------------


def copies():
    """From a global cell into a shared one, which holds something else before."""
    here, there = CELLS["global"], CELLS["shared"]
    for cache, size, hint in (
        *itertools.product((".ca",), (4, 8, 16), ("", ".L2::128B")),
        *((".cg", 16, hint) for hint in ("", ".L2::64B", ".L2::256B")),
    ):
        for space, part in itertools.product((".shared", ".shared::cta"), ("", ", z", ", 3")):

            def value(a, b, c, x, y=0, z=None, size=size, part=part):
                taken = 3 if part == ", 3" else size if z is None else z
                source = (a | b << 64) & ((1 << (8 * taken)) - 1)
                old = (c | x << 64) >> (8 * size) << (8 * size)
                return (source | old) & M64, (source | old) >> 64

            def pick(a, b, c, x, y=None, z=None, size=size):
                if z is not None:
                    z %= size + 1

            yield Form(
                f"cp.async{cache}{space}.global{hint} [word], [base], {size}{part}",
                "b64 b64 = b64 b64 b64 b64" + (" u32 u32" if part == ", z" else ""),
                value,
                pick,
                before=f"{here.fill('a', 'b')}; {there.fill('c', 'x')}",
                after=f"cp.async.wait_all; {there.read('d', 'e')}",
                variables=there.variables,
            )


M64 = (1 << 64) - 1


# By what they are of; each makes its forms.
GROUPS = (
    arithmetic,
    carries,
    dots,
    logic,
    shifts,
    bit_counts,
    bit_fields,
    permutes,
    float_arithmetic,
    float_pairs,
    mixed_arithmetic,
    float_signs,
    half_arithmetic,
    integer_conversions,
    float_conversions,
    set_predicates,
    set_values,
    selections,
    moves,
    loads,
    stores,
    atomics,
    copies,
)
FORMS = [form for group in GROUPS for form in group()]
