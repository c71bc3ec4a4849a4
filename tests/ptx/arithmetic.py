"""Arithmetic, comparison, logic and conversion.

Elementwise: a handler reads its sources as numbers, applies numpy, and writes the result rounded once to nearest even.
Approximate functions are computed in float64, closer to the truth than the hardware is. `fma` on float32 rounds the
exact product and the sum in float64 first, which in about one of 2^29 cases changes the last bit.
"""

from __future__ import annotations

import numpy as np

from . import values as formats
from .errors import UnknownInstruction
from .operands import Pair
from .registry import instruction
from .values import FLOATS, NATIVE, WIDTH, clamp_to_integer, flush_subnormals, is_packed


def read_sources(team, ins) -> list[np.ndarray]:
    """All operands but the first, as numbers of the instruction's type."""
    sources = [operand.read(team, ins.kind) for operand in ins.operands[1:]]
    return [flush_subnormals(s, ins.kind) for s in sources] if "ftz" in ins.modifiers else sources


def write_result(team, ins, result, mask, kind: str = "") -> None:
    """Write the first operand, with the instruction's saturation and flushing applied."""
    kind = kind or ins.kind
    if "sat" in ins.modifiers:
        if kind not in FLOATS:
            raise UnknownInstruction(f"{ins.opcode}: saturating integers are not modelled")
        result = np.where(np.isnan(result), 0, np.clip(result, 0, 1))
    if "relu" in ins.modifiers:
        result = np.where(np.isnan(result), result, np.maximum(result, 0))
    if "ftz" in ins.modifiers:
        result = flush_subnormals(result, kind)
    ins.operands[0].write(team, kind, result, mask)


LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
SIGNS = {"neg": np.negative, "abs": np.abs, "copysign": lambda sign, magnitude: np.copysign(magnitude, sign)}
FUNCTIONS = {
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def _elementwise(function):
    def handler(team, ins, mask):
        write_result(team, ins, function(*read_sources(team, ins)), mask)

    return handler


def _in_double(function):
    """A function of float64, whose result is to be rounded only once."""
    return lambda x: function(x.astype(np.float64))


for _name, _function in LOGIC.items():
    instruction(_name, modifiers="")(_elementwise(_function))
for _name, _function in SIGNS.items():
    instruction(_name, modifiers="ftz")(_elementwise(_function))
for _name, _function in FUNCTIONS.items():
    instruction(_name, modifiers="approx rn ftz")(_elementwise(_in_double(_function)))


@instruction("add", "sub", "addc", "subc", modifiers="rn ftz sat cc")
def add(team, ins, mask):
    """Sums, and for 32-bit integers the carry between the words of a long one ("Extended-Precision ...")."""
    subtracts = ins.opcode.startswith("sub")
    if "cc" in ins.modifiers or ins.opcode.startswith(("addc", "subc")):
        if subtracts or WIDTH[ins.kind] != 32:
            raise UnknownInstruction(f"{ins.opcode} is not modelled")
        a, b = (operand.read(team, "u32").astype(np.uint64) for operand in ins.operands[1:])
        _write_with_carry(team, ins, a + b, mask, carries_in=ins.opcode.startswith("addc"))
        return
    a, b = read_sources(team, ins)
    write_result(team, ins, a - b if subtracts else a + b, mask)


def _write_with_carry(team, ins, total, mask, carries_in: bool) -> None:
    total = total + team.carry if carries_in else total
    if "cc" in ins.modifiers:
        carry = np.broadcast_to(total >> np.uint64(32), team.size)
        np.copyto(team.carry, carry, where=team.active(mask))
    ins.operands[0].write(team, "u32", (total & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)


def _high_product(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """The upper half of a product of twice the width."""
    if WIDTH[kind] == 64:
        product = a.astype(object) * b.astype(object)
        return np.asarray((product >> 64) % (1 << 64)).astype(np.uint64).view(NATIVE[kind])
    wide = NATIVE[f"{kind[0]}{2 * WIDTH[kind]}"]
    return ((a.astype(wide) * b.astype(wide)) >> wide(WIDTH[kind])).astype(NATIVE[kind])


def _product(ins, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """The part of a product that the modifiers ask for, and its type."""
    if "wide" in ins.modifiers:
        kind = f"{ins.kind[0]}{2 * WIDTH[ins.kind]}"
        return a.astype(NATIVE[kind]) * b.astype(NATIVE[kind]), kind
    if "hi" in ins.modifiers:
        return _high_product(a, b, ins.kind), ins.kind
    return a * b, ins.kind


@instruction("mul", modifiers="rn ftz sat lo hi wide")
def mul(team, ins, mask):
    a, b = read_sources(team, ins)
    product, kind = _product(ins, a, b)
    write_result(team, ins, product, mask, kind)


@instruction("mad", "madc", modifiers="rn ftz sat lo hi wide cc")
def mad(team, ins, mask):
    if ins.kind in FLOATS:
        fma(team, ins, mask)
        return
    a, b = (operand.read(team, ins.kind) for operand in ins.operands[1:3])
    product, kind = _product(ins, a, b)
    if "cc" in ins.modifiers or ins.opcode.startswith("madc"):
        if ins.kind != "u32" or "wide" in ins.modifiers:
            raise UnknownInstruction(f"{ins.opcode} is not modelled")
        total = product.astype(np.uint64) + ins.operands[3].read(team, "u32").astype(np.uint64)
        _write_with_carry(team, ins, total, mask, carries_in=ins.opcode.startswith("madc"))
    else:
        ins.operands[0].write(team, kind, product + ins.operands[3].read(team, kind), mask)


@instruction("fma", modifiers="rn ftz sat relu")
def fma(team, ins, mask):
    a, b, c = read_sources(team, ins)
    write_result(team, ins, a.astype(np.float64) * b + c, mask)


@instruction("div", modifiers="rn ftz approx full")
def div(team, ins, mask):
    """Integers towards zero; the hardware's result for a zero divisor is unspecified, here all bits are set."""
    a, b = read_sources(team, ins)
    if ins.kind in FLOATS:
        write_result(team, ins, a.astype(np.float64) / b, mask)
        return
    divisor = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // divisor
    inexact = quotient * divisor != a
    quotient = quotient + (inexact & ((a < 0) != (divisor < 0))).astype(a.dtype)
    write_result(team, ins, np.where(b == 0, ~np.zeros_like(b), quotient), mask)


@instruction("rem", modifiers="")
def rem(team, ins, mask):
    a, b = read_sources(team, ins)
    write_result(team, ins, np.where(b == 0, a, np.fmod(a, np.where(b == 0, b.dtype.type(1), b))), mask)


@instruction("min", "max", modifiers="ftz NaN xorsign abs")
def min_max(team, ins, mask):
    """NaN loses unless `.NaN` is given; -0 is less than +0; `.xorsign.abs` takes the sign of the product."""
    a, b = read_sources(team, ins)
    smallest = ins.opcode.startswith("min")
    if ins.kind not in FLOATS:
        write_result(team, ins, np.minimum(a, b) if smallest else np.maximum(a, b), mask)
        return
    x, y = (np.abs(a), np.abs(b)) if "xorsign" in ins.modifiers else (a, b)
    keeps_nan, drops_nan = (np.minimum, np.fmin) if smallest else (np.maximum, np.fmax)
    result = (keeps_nan if "NaN" in ins.modifiers else drops_nan)(x, y)
    if (result == 0).any():
        negative = np.signbit(x) | np.signbit(y) if smallest else np.signbit(x) & np.signbit(y)
        zeros = (x == 0) & (y == 0)
        result = np.where(zeros, np.copysign(result, np.where(negative, -1, 1).astype(result.dtype)), result)
    if "xorsign" in ins.modifiers:
        result = np.where(np.signbit(a) != np.signbit(b), -result, result)
    write_result(team, ins, result, mask)


@instruction("shl", "shr", modifiers="")
def shift(team, ins, mask):
    """Shifts of the full width and more leave nothing, or for `shr.s` the sign ("shl", "shr")."""
    value = ins.operands[1].read(team, ins.kind)
    amount = ins.operands[2].read(team, "u32")
    width = WIDTH[ins.kind]
    within = np.minimum(amount, np.uint32(width - 1)).astype(value.dtype)
    if ins.opcode.startswith("shr"):
        result = value >> within
        result = result if ins.kind[0] == "s" else np.where(amount >= width, value.dtype.type(0), result)
    else:
        result = np.where(amount >= width, value.dtype.type(0), value << within)
    ins.operands[0].write(team, ins.kind, result, mask)


@instruction("shf", modifiers="l r wrap clamp")
def funnel_shift(team, ins, mask):
    """The upper (left) or lower (right) word of the 64 bits `b:a`, shifted ("shf")."""
    low, high, amount = (operand.read(team, "u32").astype(np.uint64) for operand in ins.operands[1:])
    amount = amount & np.uint64(31) if "wrap" in ins.modifiers else np.minimum(amount, np.uint64(32))
    both = (high << np.uint64(32)) | low
    result = (both << amount) >> np.uint64(32) if "l" in ins.modifiers else both >> amount
    ins.operands[0].write(team, "u32", (result & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)


@instruction("bfe", modifiers="")
def bit_field_extract(team, ins, mask):
    """Bits from `position` on, `length` of them; a signed field fills with its top bit ("bfe")."""
    wide = np.int64 if ins.kind[0] == "s" else np.uint64
    value = ins.operands[1].read(team, ins.kind).astype(wide)
    position, length = ((operand.read(team, "u32") & np.uint32(255)).astype(wide) for operand in ins.operands[2:])
    up = wide(64) - np.minimum(length, wide(64))
    shifted = value >> np.minimum(position, wide(63))
    if wide is np.uint64:
        shifted = np.where(position > 63, wide(0), shifted)
    field = (shifted << np.minimum(up, wide(63))) >> np.minimum(up, wide(63))
    ins.operands[0].write(team, ins.kind, np.where(length == 0, wide(0), field).astype(NATIVE[ins.kind]), mask)


@instruction("bfi", modifiers="")
def bit_field_insert(team, ins, mask):
    """The low `length` bits of the first operand put into the second at `position` ("bfi")."""
    source, base = (operand.read(team, "u64" if ins.kind == "b64" else "u32") for operand in ins.operands[1:3])
    one, width = source.dtype.type(1), WIDTH[ins.kind]
    position, length = ((operand.read(team, "u32") & np.uint32(255)) for operand in ins.operands[3:])
    bits = np.arange(width)
    position, length = (np.broadcast_to(x, team.size).astype(np.int64)[:, None] for x in (position, length))
    inserted = (bits >= position) & (bits < position + length)
    field = (np.where(inserted, one, one * 0) << bits.astype(source.dtype)).sum(axis=1, dtype=source.dtype)
    shift = np.minimum(position[:, 0], width - 1).astype(source.dtype)
    ins.operands[0].write(team, ins.kind, (base & ~field) | ((source << shift) & field), mask)


@instruction("popc", "clz", "brev", modifiers="")
def count_bits(team, ins, mask):
    width = WIDTH[ins.kind]
    value = np.broadcast_to(ins.operands[1].read(team, ins.kind), team.size)
    bits = ((value[:, None] >> np.arange(width - 1, -1, -1).astype(value.dtype)) & value.dtype.type(1)).astype(bool)
    if ins.opcode.startswith("brev"):
        weights = value.dtype.type(1) << np.arange(width).astype(value.dtype)
        result, kind = (bits * weights).sum(axis=1, dtype=value.dtype), ins.kind
    elif ins.opcode.startswith("clz"):
        result, kind = np.where(bits.any(axis=1), bits.argmax(axis=1), width), "u32"
    else:
        result, kind = bits.sum(axis=1), "u32"
    ins.operands[0].write(team, kind, result, mask)


@instruction("lop3", modifiers="")
def three_input_logic(team, ins, mask):
    """Any function of three bits: bit `4a + 2b + c` of the table is its value ("lop3")."""
    a, b, c = (operand.read(team, "u32") for operand in ins.operands[1:4])
    table = ins.operands[4].bits
    result = np.zeros(team.size, np.uint32)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    ins.operands[0].write(team, "u32", result, mask)


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
COMPARISONS |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def compare(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`eq` and its like are false where an operand is NaN, `equ` and its like true ("Comparisons")."""
    if name in ("num", "nan"):
        unordered = np.isnan(a) | np.isnan(b)
        return unordered if name == "nan" else ~unordered
    if name in COMPARISONS:
        ordered = COMPARISONS[name](a, b)
        return ordered & ~(np.isnan(a) | np.isnan(b)) if name == "ne" and a.dtype.kind == "f" else ordered
    if name[-1] == "u" and name[:-1] in COMPARISONS:
        return COMPARISONS[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    raise UnknownInstruction(f"comparison {name} is not modelled")


@instruction("setp", modifiers=" ".join([*COMPARISONS, *COMBINATIONS, "equ neu ltu leu gtu geu num nan ftz"]))
def set_predicate(team, ins, mask):
    """Compare, and optionally combine with a predicate; a second result gets the opposite comparison ("setp").

    Of packed numbers the first result is that of the lower half, the second that of the upper.
    """
    a, b = (operand.read(team, ins.kind) for operand in ins.operands[1:3])
    if "ftz" in ins.modifiers:
        a, b = flush_subnormals(a, ins.kind), flush_subnormals(b, ins.kind)
    result = compare(ins.modifiers[0], a, b)
    results = (result[..., 0], result[..., 1]) if is_packed(ins.kind) else (result, ~result)
    if len(ins.operands) > 3:
        other = ins.operands[3].read(team, "pred")
        results = tuple(COMBINATIONS[ins.modifiers[1]](r, other) for r in results)
    targets = ins.operands[0] if isinstance(ins.operands[0], Pair) else (ins.operands[0],)
    for target, value in zip(targets, results, strict=False):
        target.write(team, "pred", value, mask)


@instruction("selp", modifiers="")
def select(team, ins, mask):
    a, b = (operand.read(team, ins.kind) for operand in ins.operands[1:3])
    ins.operands[0].write(team, ins.kind, np.where(ins.operands[3].read(team, "pred"), a, b), mask)


TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt", modifiers="rn rz rna rni rzi rmi rpi ftz sat relu")
def convert(team, ins, mask):
    """Conversions; the last two modifiers are the types of the result and of the source ("cvt")."""
    target, source = ins.modifiers[-2:]
    if target == "tf32":
        _to_tf32(team, ins, mask)
        return
    value = ins.operands[1].read(team, source)
    if is_packed(target):
        # The first source becomes the upper half.
        high, low = value, ins.operands[2].read(team, source)
        value = np.stack(np.broadcast_arrays(low, high), axis=-1)
    if "ftz" in ins.modifiers and source == "f32":
        value = flush_subnormals(value, source)
    whole = next((TO_WHOLE[m] for m in ins.modifiers if m in TO_WHOLE), None)
    if source in FLOATS and target not in FLOATS:
        if whole is None:
            raise UnknownInstruction(f"{ins.opcode}: to an integer without .rni, .rzi, .rmi or .rpi")
        ins.operands[0].write(team, target, clamp_to_integer(whole(value), target), mask)
    elif target in FLOATS:
        value = value if whole is None else whole(value)
        if "rz" in ins.modifiers and target != source:
            value = _towards_zero(value, target)
        # A saturated, flushed or clamped result is a matter of the result's type.
        write_result(team, ins, value, mask, target)
    elif "sat" in ins.modifiers:
        limits = np.iinfo(NATIVE[target])
        clipped = [min(max(int(v), limits.min), limits.max) for v in np.broadcast_to(value, team.size)]
        ins.operands[0].write(team, target, np.array(clipped, NATIVE[target]), mask)
    else:
        ins.operands[0].write(team, target, value.astype(NATIVE[target]), mask)


def _to_tf32(team, ins, mask) -> None:
    """`rna` rounds halves away from zero: add half a unit of the ten-bit mantissa, then cut."""
    bits = ins.operands[1].read(team, "b32")
    special = np.isnan(bits.view(np.float32)) | np.isinf(bits.view(np.float32))
    if "rn" in ins.modifiers:
        half = np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    elif "rna" in ins.modifiers:
        half = np.uint32(0x1000)
    else:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    rounded = np.where(special, bits, (bits + half) & np.uint32(0xFFFFE000))
    ins.operands[0].write(team, "b32", rounded, mask)


def _towards_zero(value: np.ndarray, kind: str) -> np.ndarray:
    """Values cut to the precision of float type `kind`, so that rounding them to nearest changes nothing."""
    if kind.startswith("bf16"):
        return formats.decode(formats.truncate_to_bfloat16(value), "bf16")
    dtype = NATIVE[kind.removesuffix("x2")]
    nearest = value.astype(dtype)
    past = np.abs(nearest.astype(np.float64)) > np.abs(value.astype(np.float64))
    return np.where(past, np.nextafter(nearest, dtype(0)), nearest)
