"""Number formats: what the bits of a register mean under each PTX type, as numpy arrays.

A register holds raw bits. An instruction's type says how to read them ("Fundamental Types", "Packed Data Types"):
`decode` turns bits into numbers and `encode` turns numbers into bits. bfloat16 becomes float32, which holds every
bfloat16 exactly. A packed type such as f16x2 becomes an array with a last axis of two, so that the same elementwise
code serves both the scalar and the packed form of an instruction.
"""

from __future__ import annotations

import numpy as np

WIDTH = {f"{letter}{width}": width for letter in "usb" for width in (8, 16, 32, 64)}
WIDTH |= {"pred": 1, "f16": 16, "bf16": 16, "f32": 32, "tf32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}

UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}

# The types whose values numpy reads from the bits as they stand.
NATIVE = {f"{letter}{width}": UNSIGNED[width] for letter in "ub" for width in (8, 16, 32, 64)}
NATIVE |= {f"s{width}": dtype for width, dtype in SIGNED.items()}
NATIVE |= {"pred": np.bool_, "f16": np.float16, "f32": np.float32, "f64": np.float64}

FLOATS = {"f16", "bf16", "f32", "f64", "f16x2", "bf16x2"}


def is_packed(kind: str) -> bool:
    return kind.endswith("x2")


def is_signed(kind: str) -> bool:
    return kind[0] == "s"


def decode(bits: np.ndarray, kind: str) -> np.ndarray:
    """Numbers of type `kind` from raw bits of exactly that width; packed types gain a last axis of two."""
    if is_packed(kind):
        halves = np.atleast_1d(np.ascontiguousarray(bits)).view(np.uint16).reshape(-1, 2)
        return decode(halves, kind[:-2])
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "tf32":
        return truncate_to_tf32(bits)
    return bits.view(NATIVE[kind])


def encode(values, kind: str) -> np.ndarray:
    """Raw bits of `values` rounded to nearest even in type `kind`: the inverse of `decode`."""
    if is_packed(kind):
        halves = np.ascontiguousarray(encode(values, kind[:-2]))
        return halves.view(np.uint32)[..., 0]
    if kind == "bf16":
        return to_bfloat16(values)
    return np.asarray(values).astype(NATIVE[kind]).view(UNSIGNED[WIDTH[kind]])


def to_bfloat16(values) -> np.ndarray:
    """The bits of values rounded once, to nearest even, from float32 or float64; every NaN becomes 0x7fff."""
    values = np.asarray(values)
    single = round_to_odd(values) if values.dtype == np.float64 else values.astype(np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(single), np.uint32(0x7FFF), rounded).astype(np.uint16)


def truncate_to_bfloat16(values) -> np.ndarray:
    """The bits of float32 values rounded towards zero to bfloat16."""
    single = np.asarray(values, np.float32)
    return np.where(np.isnan(single), np.uint32(0x7FFF), single.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def round_to_odd(values: np.ndarray) -> np.ndarray:
    """float64 to float32, an inexact result made odd in its last bit, so that a second rounding does no harm."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    inexact = np.isfinite(values) & (nearest.astype(np.float64) != values)
    truncated = np.where(np.abs(nearest) > np.abs(values), bits - np.uint32(1), bits)
    return np.where(inexact, truncated | np.uint32(1), bits).view(np.float32)


def truncate_to_tf32(bits: np.ndarray) -> np.ndarray:
    """float32 values of which only the ten bits of mantissa that a tensor core reads are left."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126}


def flush_subnormals(values: np.ndarray, kind: str) -> np.ndarray:
    """What `.ftz` does to operands and results: subnormal numbers become a zero of their sign."""
    tiny = np.abs(values) < SMALLEST_NORMAL[kind.removesuffix("x2")]
    return np.where(tiny, np.copysign(values.dtype.type(0), values), values)


def clamp_to_integer(values: np.ndarray, kind: str) -> np.ndarray:
    """Floats that are whole numbers, as integers of type `kind`: out of range saturates and NaN becomes 0 ("cvt")."""
    dtype = NATIVE[kind]
    limits = np.iinfo(dtype)
    values = np.where(np.isnan(values), 0.0, values.astype(np.float64))
    # float(limits.max) may round up past the type: compare first, and convert only what is inside.
    inside = (values > float(limits.min)) & (values < float(limits.max))
    outside = np.where(values < 0, np.array(limits.min, dtype), np.array(limits.max, dtype))
    return np.where(inside, np.where(inside, values, 0.0).astype(dtype), outside)
