"""Matrix products: mma.sync and wgmma.

Products are exact and sums are float32 in numpy's order. The hardware's own rounding is not specified and not modelled.

Each warp of a warpgroup computes its own sixteen rows of a wgmma, at its own time where warps run one at a time: the
ISA makes the four warps execute the same instruction and promises no more about when each of them reads.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from . import fragments
from .errors import Divergence, UnknownInstruction
from .registry import instruction
from .team import WARP
from .values import UNSIGNED, decode

SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)$")

# Bits of a packed element, and the depths that mma.sync takes.
ELEMENT_BITS = {"f16": 16, "bf16": 16, "tf32": 32}
DEPTHS = {16: (8, 16), 32: (4, 8)}


def _unpack(registers: np.ndarray, kind: str) -> np.ndarray:
    """[registers, threads] words -> [registers, threads, elements a word] numbers as float32."""
    words = np.ascontiguousarray(registers).view(UNSIGNED[ELEMENT_BITS[kind]]).reshape(*registers.shape, -1)
    return decode(words, kind).astype(np.float32)


@instruction("mma", modifiers="sync aligned row col m16n8k4 m16n8k8 m16n8k16")
def mma(team, ins, mask):
    """D = A B + C for each warp on its own, all four in registers ("mma.sync")."""
    team.whole_warps(mask)
    rows, width, depth = _shape(ins)
    result, kind, kind_b, sum_kind = ins.modifiers[-4:]
    bits = ELEMENT_BITS.get(kind)
    layout = "row" in ins.modifiers and "col" in ins.modifiers
    known = bits is not None and (rows, width) == (16, 8) and depth in DEPTHS[bits] and kind == kind_b and layout
    if not known or (result, sum_kind) != ("f32", "f32"):
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    d, a, b, c = ins.operands
    packed = 32 // bits
    a = fragments.assemble(_unpack(team.gather(a, "b32"), kind), fragments.cells_of_a(depth, packed), (16, depth))
    b = fragments.assemble(_unpack(team.gather(b, "b32"), kind), fragments.cells_of_b(depth, packed), (depth, 8))
    c = fragments.assemble(team.gather(c, "f32")[..., None], fragments.cells_of_c(8), (16, 8))
    team.scatter(d, "f32", fragments.disassemble(a @ b + c), mask)


def _shape(ins) -> tuple[int, int, int]:
    match = next(filter(None, map(SHAPE.match, ins.modifiers)), None)
    if match is None:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    return tuple(int(n) for n in match.groups())


SWIZZLE_SPAN = {1: 128, 2: 64, 3: 32}
"""Bytes of a row under the swizzling modes of a descriptor ("Matrix Descriptor Format", bits 62-63)."""

SPAN_BITS = {32: 1, 64: 3, 128: 7}


def swizzle(addresses: np.ndarray, span: int) -> np.ndarray:
    """Exchange 16-byte chunks within rows of `span` bytes by the row's number in its group of 8 ("Swizzling Modes")."""
    return addresses ^ (((addresses >> 7) & SPAN_BITS[span]) << 4) if span else addresses


@cache
def _pattern(rows: int, depth: int, size: int, span: int, leading: int, stride: int, transposed: bool) -> np.ndarray:
    """[rows, depth] byte offsets of a matrix's elements before swizzling ("Strided Dimension Byte Offset" and
    "Leading Dimension Byte Offset"). Groups of eight rows lie `stride` apart; a transposed matrix stores depth as
    rows, and each `span` bytes of its width lie `leading` apart."""
    row, k = np.arange(rows)[:, None], np.arange(depth)
    if not transposed:
        return row // 8 * stride + row % 8 * span + k * size
    across = span // size
    return row // across * leading + k // 8 * stride + k % 8 * span + row % across * size


def _described(team, descriptor: int, rows: int, depth: int, kind: str, transposed: bool) -> np.ndarray:
    """[rows, depth] float32: a matrix in shared memory, found by its descriptor ("Matrix Descriptor Format")."""
    start, leading, stride = (((descriptor >> bit) & 0x3FFF) << 4 for bit in (0, 16, 32))
    span = SWIZZLE_SPAN.get(descriptor >> 62)
    if span is None or (descriptor >> 49) & 7:
        raise UnknownInstruction("a matrix descriptor without swizzling, or with a base offset, is not modelled")
    size = ELEMENT_BITS[kind] // 8
    offsets = _pattern(rows, depth, size, span, leading, stride, transposed)
    addresses = swizzle(start + offsets, span)
    words = team.block.shared.load(addresses.ravel(), size).reshape(rows, depth)
    return decode(words, kind).astype(np.float32)


@instruction("wgmma")
def wgmma(team, ins, mask):
    """D = A B (+ D), A [64, K] from registers or shared memory, B [K, N] from shared memory ("wgmma.mma_async")."""
    action = ins.modifiers[0]
    warps = team.whole_warps(mask)
    if action == "commit_group":
        team.products.commit(warps)
    elif action == "wait_group":
        team.products.wait(ins.operands[0].bits, warps)
    elif ins.modifiers[:3] == ("mma_async", "sync", "aligned"):
        product = _Product(team, ins, mask)
        team.products.issue(product.compute, warps, team.block.mode.reads_late)
    elif action != "fence":
        raise UnknownInstruction(f"{ins.opcode} is not modelled")


class _Product:
    """One wgmma.mma_async that was issued. Descriptors are read now; A and D registers when it takes effect."""

    def __init__(self, team, ins, mask):
        self.team = team
        rows, self.width, self.depth = _shape(ins)
        result, self.kind, kind_b = ins.modifiers[-3:]
        bits = ELEMENT_BITS.get(self.kind)
        if (rows, result) != (64, "f32") or bits is None or self.kind != kind_b or self.depth * bits != 256:
            raise UnknownInstruction(f"{ins.opcode} is not modelled")
        self.d, self.a, b, accumulate, sign_a, sign_b, *transposed = ins.operands
        self.sign = np.float32(team.uniform(sign_a, "s32", mask) * team.uniform(sign_b, "s32", mask))
        transposed = [bool(operand.bits) for operand in transposed]
        self.from_registers = type(self.a) is tuple
        self.a_transposed = transposed.pop(0) if transposed and not self.from_registers else False
        self.b_transposed = transposed.pop(0) if transposed else False
        if bits == 32 and (self.a_transposed or self.b_transposed):
            raise UnknownInstruction(f"{ins.opcode}: only 16-bit elements can be transposed")
        self.accumulate = _per_warp(team, accumulate, "pred", mask)
        self.b_descriptors = _per_warp(team, b, "u64", mask)
        self.a_descriptors = None if self.from_registers else _per_warp(team, self.a, "u64", mask)

    def compute(self, due: np.ndarray) -> None:
        """Take effect in the warps that are due."""
        team, shape_a = self.team, (16, self.depth)
        matrices: dict[tuple, np.ndarray] = {}

        def described(descriptor: np.uint64, rows: int, transposed: bool) -> np.ndarray:
            key = (int(descriptor), rows, transposed)
            if key not in matrices:
                matrices[key] = _described(team, key[0], rows, self.depth, self.kind, transposed)
            return matrices[key]

        if self.from_registers:
            words = _unpack(team.gather(self.a, "b32"), self.kind)
            places = fragments.cells_of_a(self.depth, 32 // ELEMENT_BITS[self.kind])
            a = fragments.assemble(words, places, shape_a)
        old = fragments.assemble(
            team.gather(self.d, "f32")[..., None], fragments.cells_of_c(self.width), (16, self.width)
        )
        result = np.zeros_like(old)
        for warp in np.flatnonzero(due):
            if self.from_registers:
                rows_of_a = a[warp]
            else:
                quarter = (team.first // WARP + warp) % 4
                whole = described(self.a_descriptors[warp], 64, self.a_transposed)
                rows_of_a = whole[16 * quarter : 16 * quarter + 16]
            b = described(self.b_descriptors[warp], self.width, self.b_transposed)
            result[warp] = self.sign * (rows_of_a @ b.T)
            if self.accumulate[warp]:
                result[warp] += old[warp]
        team.scatter(self.d, "f32", fragments.disassemble(result), None if due.all() else np.repeat(due, WARP))


def _per_warp(team, operand, kind: str, mask) -> np.ndarray:
    """[warps] values of an operand in which the active threads of each warp must agree."""
    values = team.each(operand, kind).reshape(-1, WARP)
    if (values != values[:, :1])[team.active(mask).reshape(-1, WARP)].any():
        raise Divergence("the threads of a warp give different descriptors or flags")
    return values[:, 0].copy()
