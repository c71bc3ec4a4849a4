"""Single instructions against values worked out by hand from the ISA, in snippets of PTX of one warp."""

from __future__ import annotations

import numpy as np
import pytest

from . import Divergence, Memory, Program, UnknownInstruction

LANES = 32
NAN, INF = 0x7FC00000, 0x7F800000


def f32(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def f16(value: float) -> int:
    return int(np.float16(value).view(np.uint16))


SNIPPET = """
.version 8.4
.target sm_90a
.address_size 64
.visible .entry snippet(.param .u64 .ptr .global .align 8 inputs, .param .u64 .ptr .global .align 8 output)
{{
    .reg .pred %p<4>;
    .reg .b16 %rs<4>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<12>;
    ld.param.b64 %rd8, [inputs];
    ld.param.b64 %rd9, [output];
    mov.u32 %r4, %tid.x;
    mul.wide.u32 %rd10, %r4, 8;
    add.s64 %rd8, %rd8, %rd10;
    add.s64 %rd9, %rd9, %rd10;
    ld.global.b64 %rd1, [%rd8];
    ld.global.b64 %rd2, [%rd8+256];
    ld.global.b64 %rd3, [%rd8+512];
    cvt.u32.u64 %r1, %rd1;
    cvt.u32.u64 %r2, %rd2;
    cvt.u32.u64 %r3, %rd3;
    cvt.u16.u32 %rs1, %r1;
    cvt.u16.u32 %rs2, %r2;
    cvt.u16.u32 %rs3, %r3;
    mov.b64 %rd0, 0;
    {code}
    {widen}
    st.global.b64 [%rd9], %rd0;
    ret;
}}
"""

WIDEN = {
    "rd": "",
    "r": "cvt.u64.u32 %rd0, %r0;",
    "rs": "cvt.u64.u16 %rd0, %rs0;",
    "p": "selp.b64 %rd0, 1, 0, %p0;",
}


def execute(code: str, *columns, result: str = "r") -> np.ndarray:
    """[32] results of a snippet: lane i gets value i (repeated) of each column in %rd1, %r1, %rs1, then %rd2, ..."""
    inputs = np.zeros((3, LANES), np.uint64)
    for row, column in zip(inputs, columns, strict=False):
        values = column if isinstance(column, list | tuple) else np.atleast_1d(column).tolist()
        row[:] = np.resize(np.array([v % (1 << 64) for v in values], np.uint64), LANES)
    memory = Memory()
    arguments = [memory.place(inputs), output := memory.reserve(LANES, np.uint64)]
    program = Program(SNIPPET.format(code=code, widen=WIDEN[result]))
    program.launch(memory, grid=(1, 1, 1), threads=LANES, arguments=arguments)
    assert not memory.unwritten(output).any()
    return memory.fetch(output)


# (instruction, which kind of register its result is in, [(sources ..., result), ...])
INTEGER = [
    ("prmt.b32 %r0, %r1, %r2, %r3", "r", [
        (0x33221100, 0x77665544, 0x3210, 0x33221100),
        (0x33221100, 0x77665544, 0x7654, 0x77665544),
        (0x33221100, 0x77665544, 0x0123, 0x00112233),
        (0x33221100, 0x77665544, 0x5410, 0x55441100),
        (0x80FF7F01, 0, 0xBA98, 0xFFFF0000),
    ]),
    ("bfe.u32 %r0, %r1, %r2, %r3", "r", [
        (0x12345678, 8, 8, 0x56), (0x80000000, 28, 8, 0x8), (0xFFFFFFFF, 0, 0, 0), (0x80000000, 40, 4, 0),
        (0xDEADBEEF, 0, 32, 0xDEADBEEF),
    ]),
    ("bfe.s32 %r0, %r1, %r2, %r3", "r", [
        (0x0000F000, 12, 4, 0xFFFFFFFF), (0x00007000, 12, 4, 7), (0x80000000, 28, 8, 0xFFFFFFF8),
        (0x80000000, 40, 4, 0xFFFFFFFF), (0xFFFFFFFF, 0, 0, 0),
    ]),
    ("bfi.b32 %r0, %r1, %r2, 4, 8", "r", [(0xABCD, 0xFFFFFFFF, 0, 0xFFFFFCDF), (0xFF, 0, 0, 0xFF0)]),
    ("mul.hi.u32 %r0, %r1, %r2", "r", [(0xFFFFFFFF, 0xFFFFFFFF, 0, 0xFFFFFFFE), (0x80000000, 2, 0, 1)]),
    ("mul.hi.s32 %r0, %r1, %r2", "r", [(0xFFFFFFFF, 0xFFFFFFFF, 0, 0), (0x80000000, 2, 0, 0xFFFFFFFF)]),
    ("mul.hi.u64 %rd0, %rd1, %rd2", "rd", [(2**64 - 1, 2**64 - 1, 0, 2**64 - 2), (2**63, 2, 0, 1)]),
    ("mul.hi.s64 %rd0, %rd1, %rd2", "rd", [(2**63, 2, 0, 2**64 - 1), (2**64 - 1, 2**64 - 1, 0, 0)]),
    ("mul.wide.s32 %rd0, %r1, %r2", "rd", [(0xFFFFFFFF, 2, 0, 2**64 - 2)]),
    ("mul.wide.u32 %rd0, %r1, %r2", "rd", [(0xFFFFFFFF, 2, 0, 0x1FFFFFFFE)]),
    ("mad.wide.s32 %rd0, %r1, %r2, %rd3", "rd", [(0xFFFFFFFF, 3, 5, 2)]),
    ("mul.lo.s32 %r0, %r1, %r2", "r", [(0x80000001, 2, 0, 2)]),
    ("mad.lo.cc.u32 %r0, %r1, %r2, %r3; madc.hi.u32 %r0, %r1, %r2, 0", "r", [
        (0xFFFFFFFF, 1, 1, 1), (0xFFFFFFFF, 1, 0, 0), (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
    ]),
    ("add.cc.u32 %r0, %r1, %r2; addc.u32 %r0, %r3, 0", "r", [(0xFFFFFFFF, 1, 7, 8), (0xFFFFFFFE, 1, 7, 7)]),
    ("shl.b32 %r0, %r1, %r2", "r", [(1, 31, 0, 1 << 31), (1, 32, 0, 0), (1, 33, 0, 0), (1, 0xFFFFFFFF, 0, 0)]),
    ("shr.u32 %r0, %r1, %r2", "r", [(0x80000000, 31, 0, 1), (0x80000000, 32, 0, 0), (0x80000000, 255, 0, 0)]),
    ("shr.s32 %r0, %r1, %r2", "r", [(0x80000000, 31, 0, 0xFFFFFFFF), (0x80000000, 40, 0, 0xFFFFFFFF), (4, 40, 0, 0)]),
    ("shl.b64 %rd0, %rd1, %r2", "rd", [(1, 63, 0, 1 << 63), (1, 64, 0, 0)]),
    ("shr.s64 %rd0, %rd1, %r2", "rd", [(1 << 63, 70, 0, 2**64 - 1)]),
    ("shl.b16 %rs0, %rs1, %r2", "rs", [(1, 15, 0, 0x8000), (1, 16, 0, 0), (0xFFFF, 4, 0, 0xFFF0)]),
    ("shf.l.wrap.b32 %r0, %r1, %r2, %r3", "r", [(0x80000000, 1, 1, 3), (0x80000000, 1, 33, 3), (5, 6, 32, 6)]),
    ("shf.l.clamp.b32 %r0, %r1, %r2, %r3", "r", [(5, 6, 40, 5)]),
    ("shf.r.wrap.b32 %r0, %r1, %r2, %r3", "r", [(2, 1, 1, 0x80000001)]),
    ("div.s32 %r0, %r1, %r2", "r", [(-7, 2, 0, 2**32 - 3), (7, -2, 0, 2**32 - 3), (-7, -2, 0, 3), (6, 3, 0, 2)]),
    ("rem.s32 %r0, %r1, %r2", "r", [(-7, 2, 0, 2**32 - 1), (7, -2, 0, 1)]),
    ("div.u32 %r0, %r1, %r2", "r", [(0xFFFFFFFE, 2, 0, 0x7FFFFFFF)]),
    ("rem.u64 %rd0, %rd1, %rd2", "rd", [(2**64 - 1, 10, 0, 5)]),
    ("min.s32 %r0, %r1, %r2", "r", [(-1, 1, 0, 0xFFFFFFFF)]),
    ("min.u32 %r0, %r1, %r2", "r", [(-1, 1, 0, 1)]),
    ("popc.b32 %r0, %r1", "r", [(0xF0F0, 0, 0, 8)]),
    ("clz.b32 %r0, %r1", "r", [(1, 0, 0, 31), (0, 0, 0, 32)]),
    ("brev.b32 %r0, %r1", "r", [(1, 0, 0, 0x80000000), (0xC0000001, 0, 0, 0x80000003)]),
    ("lop3.b32 %r0, %r1, %r2, %r3, 0x96", "r", [(0b1100, 0b1010, 0b1001, 0b1111)]),
    ("lop3.b32 %r0, %r1, %r2, %r3, 0xE8", "r", [(0b1100, 0b1010, 0b1001, 0b1000)]),
    ("mov.b32 %r0, {%rs1, %rs2}", "r", [(0x1111, 0x2222, 0, 0x22221111)]),
    ("mov.b64 {%r0, _}, %rd1", "r", [(0x1111111122222222, 0, 0, 0x22222222)]),
    ("cvt.s64.s32 %rd0, %r1", "rd", [(0x80000000, 0, 0, 0xFFFFFFFF80000000)]),
    ("cvt.u32.u16 %r0, %rs1", "r", [(0x12348765, 0, 0, 0x8765)]),
    ("cvt.s32.s8 %r0, %r1", "r", [(0x12FF, 0, 0, 0xFFFFFFFF)]),
    ("cvt.sat.s8.s32 %r0, %r1", "r", [(200, 0, 0, 127), (-200, 0, 0, 2**32 - 128)]),
]  # fmt: skip

FLOAT = [
    ("cvt.rni.s32.f32 %r0, %r1", "r", [
        (f32(0.5), 0, 0, 0), (f32(1.5), 0, 0, 2), (f32(2.5), 0, 0, 2), (NAN, 0, 0, 0), (f32(3e9), 0, 0, 0x7FFFFFFF),
        (f32(-3e9), 0, 0, 0x80000000),
    ]),
    ("cvt.rzi.u32.f32 %r0, %r1", "r", [(f32(-1.5), 0, 0, 0), (f32(1.9), 0, 0, 1), (INF, 0, 0, 0xFFFFFFFF)]),
    ("cvt.rmi.s32.f32 %r0, %r1", "r", [(f32(-0.5), 0, 0, 0xFFFFFFFF)]),
    ("cvt.rpi.f32.f32 %r0, %r1", "r", [(f32(0.5), 0, 0, f32(1)), (f32(-0.5), 0, 0, 0x80000000)]),
    ("cvt.rzi.s64.f32 %rd0, %r1", "rd", [(f32(2.0**63), 0, 0, 2**63 - 1), (f32(-(2.0**40)), 0, 0, 2**64 - 2**40)]),
    ("cvt.rn.f32.s32 %r0, %r1", "r", [(16777217, 0, 0, f32(16777216)), (16777219, 0, 0, f32(16777220))]),
    ("cvt.rn.f32.u64 %r0, %rd1", "r", [(2**64 - 1, 0, 0, f32(2.0**64))]),
    ("cvt.sat.f32.f32 %r0, %r1", "r", [(f32(-1), 0, 0, 0), (f32(2), 0, 0, f32(1)), (NAN, 0, 0, 0)]),
    ("cvt.rn.bf16.f32 %rs0, %r1", "rs", [
        (f32(1 + 2**-8), 0, 0, 0x3F80), (f32(1 + 3 * 2**-8), 0, 0, 0x3F82), (0x3F808001, 0, 0, 0x3F81),
        (0xFFFFFFFF, 0, 0, 0x7FFF), (0x7F7FFFFF, 0, 0, 0x7F80),
    ]),
    ("cvt.rz.bf16.f32 %rs0, %r1", "rs", [(0x3F80FFFF, 0, 0, 0x3F80), (0xBF80FFFF, 0, 0, 0xBF80)]),
    ("cvt.rn.f16.f32 %rs0, %r1", "rs", [(f32(65520), 0, 0, 0x7C00), (f32(65519), 0, 0, 0x7BFF)]),
    ("cvt.rz.f16.f32 %rs0, %r1", "rs", [(f32(65535), 0, 0, 0x7BFF), (0xBF801FFF, 0, 0, 0xBC00)]),
    ("cvt.rn.bf16x2.f32 %r0, %r1, %r2", "r", [(f32(2), f32(1), 0, 0x40003F80)]),
    ("cvt.rn.f16x2.f32 %r0, %r1, %r2", "r", [(f32(2), f32(1), 0, 0x40003C00)]),
    ("cvt.rna.tf32.f32 %r0, %r1", "r", [(0x3F801000, 0, 0, 0x3F802000), (0x3F800FFF, 0, 0, 0x3F800000)]),
    ("cvt.rn.tf32.f32 %r0, %r1", "r", [(0x3F801000, 0, 0, 0x3F800000), (0x3F803000, 0, 0, 0x3F804000)]),
    ("cvt.f32.bf16 %r0, %rs1", "r", [(0xC040, 0, 0, f32(-3))]),
    ("min.f32 %r0, %r1, %r2", "r", [
        (NAN, f32(1), 0, f32(1)), (0, 0x80000000, 0, 0x80000000), (f32(1), f32(-2), 0, f32(-2)),
    ]),
    ("max.f32 %r0, %r1, %r2", "r", [(f32(1), NAN, 0, f32(1)), (0x80000000, 0, 0, 0), (f32(1), f32(-2), 0, f32(1))]),
    ("max.NaN.f32 %r0, %r1, %r2; setp.nan.f32 %p0, %r0, %r0", "p", [(f32(1), NAN, 0, 1), (f32(1), f32(2), 0, 0)]),
    ("min.xorsign.abs.f32 %r0, %r1, %r2", "r", [(f32(-2), f32(1), 0, f32(-1)), (f32(-2), f32(-3), 0, f32(2))]),
    ("copysign.f32 %r0, %r1, %r2", "r", [(f32(-1), f32(5), 0, f32(-5))]),
    ("neg.f32 %r0, %r1", "r", [(0, 0, 0, 0x80000000)]),
    ("fma.rn.f32 %r0, %r1, %r2, %r3", "r", [
        (f32(1 + 2**-12), f32(1 + 2**-12), f32(-1), f32(2**-11 + 2**-24)),
    ]),
    ("fma.rn.bf16 %rs0, %rs1, %rs2, %rs3", "rs", [
        # 1.75 * 0.578125 lies halfway between two numbers, so that the smallest summand decides.
        (0x3FE0, 0x3F14, 0xAB80, 0x3F81), (0x3FE0, 0x3F14, 0, 0x3F82), (0x3FE0, 0x3F14, 0x2B80, 0x3F82),
    ]),
    ("fma.rn.f16 %rs0, %rs1, %rs2, %rs3", "rs", [(f16(1 + 2**-10), f16(1 + 2**-10), f16(-1), f16(2**-9 + 2**-20))]),
    ("fma.rn.bf16x2 %r0, %r1, %r2, %r3", "r", [(0x40003F80, 0x40404000, 0x3F80BF80, 0x40E03F80)]),
    ("add.f16x2 %r0, %r1, %r2", "r", [(0x40003C00, 0x3C003C00, 0, 0x42004000)]),
    ("mul.bf16x2 %r0, %r1, 0x40003F80", "r", [(0x40404040, 0, 0, 0x40C04040)]),
    ("add.ftz.f32 %r0, %r1, %r2", "r", [(1, 0x80000001, 0, 0), (0x00800000, 1, 0, 0x00800000)]),
    ("add.f32 %r0, %r1, %r2", "r", [(1, 2, 0, 3)]),
    ("ex2.approx.f32 %r0, %r1", "r", [(f32(-130), 0, 0, 1 << 19), (f32(3), 0, 0, f32(8))]),
    ("ex2.approx.ftz.f32 %r0, %r1", "r", [(f32(-130), 0, 0, 0)]),
    ("rcp.approx.f32 %r0, %r1", "r", [(0x80000000, 0, 0, 0xFF800000), (f32(4), 0, 0, f32(0.25))]),
    ("sqrt.rn.f32 %r0, %r1; setp.nan.f32 %p0, %r0, %r0", "p", [(f32(-1), 0, 0, 1), (f32(2), 0, 0, 0)]),
    ("selp.f32 %r0, %r1, %r2, 1", "r", [(f32(5), f32(6), 0, f32(5))]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "result", "cases"), INTEGER + FLOAT, ids=lambda v: v if isinstance(v, str) else "")
def test_instruction(code, result, cases):
    columns = list(zip(*cases, strict=True))
    got = execute(code + ";", *columns[:3], result=result)[: len(cases)]
    assert [hex(v) for v in got.tolist()] == [hex(v) for v in columns[3]]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    # 1 and 2, 2 and 2, 3 and 2, NaN and 2.
    [
        ("eq", "0100"), ("ne", "1010"), ("lt", "1000"), ("le", "1100"), ("gt", "0010"), ("ge", "0110"), ("equ", "0101"),
        ("neu", "1011"), ("ltu", "1001"), ("leu", "1101"), ("gtu", "0011"), ("geu", "0111"), ("num", "1110"),
        ("nan", "0001"),
    ],
)  # fmt: skip
def test_float_comparisons(comparison, expected):
    got = execute(f"setp.{comparison}.f32 %p0, %r1, %r2;", [f32(1), f32(2), f32(3), NAN], f32(2), result="p")
    assert "".join(map(str, got[:4])) == expected


def test_comparison_with_two_results_and_a_predicate():
    code = "setp.ne.b32 %p1, %r3, 0; setp.lt.and.s32 %p0|%p2, %r1, %r2, %p1; "
    first = execute(code, [-1, -1, 5, 5], [1, 1, 1, 1], [1, 0, 1, 0], result="p")[:4]
    second = execute(code + "selp.b32 %r0, 1, 0, %p2;", [-1, -1, 5, 5], [1, 1, 1, 1], [1, 0, 1, 0])[:4]
    assert first.tolist() == [1, 0, 0, 0]
    assert second.tolist() == [0, 0, 1, 0]


def test_packed_comparison_has_a_result_for_each_half():
    ones, low, high = 0x3C003C00, 0x3C004000, 0x40003C00  # (1, 1), lower half 2, upper half 2
    code = "setp.gt.f16x2 %p0|%p2, %r1, %r2; "
    assert execute(code, [ones, low, high], ones, result="p").tolist()[:3] == [0, 1, 0]
    code += "selp.b32 %r0, 1, 0, %p2;"
    assert execute(code, [ones, low, high], ones).tolist()[:3] == [0, 0, 1]


def test_unsigned_and_signed_comparisons_differ():
    assert execute("setp.lt.u32 %p0, %r1, %r2;", [0xFFFFFFFF], 1, result="p")[0] == 0
    assert execute("setp.lt.s32 %p0, %r1, %r2;", [0xFFFFFFFF], 1, result="p")[0] == 1
    assert execute("setp.hi.u32 %p0, %r1, %r2;", [0xFFFFFFFF], 1, result="p")[0] == 1


LANE = np.arange(LANES)


@pytest.mark.parametrize(
    ("operands", "source"),
    [
        ("bfly.b32 %r0, %r1, 5, 31, -1", LANE ^ 5),
        ("idx.b32 %r0, %r1, 7, 31, -1", np.full(LANES, 7)),
        ("idx.b32 %r0, %r1, 3, 0x181f, -1", LANE // 8 * 8 + 3),
        ("up.b32 %r0, %r1, 3, 0, -1", np.where(LANE >= 3, LANE - 3, LANE)),
        ("down.b32 %r0, %r1, 3, 31, -1", np.where(LANE + 3 < 32, LANE + 3, LANE)),
        ("down.b32 %r0, %r1, 1, 0x1c03, -1", np.where(LANE % 4 == 3, LANE, LANE + 1)),
    ],
)
def test_shuffle(operands, source):
    assert execute(f"shfl.sync.{operands};", LANE + 100).tolist() == (source + 100).tolist()


def test_shuffle_says_which_lanes_were_in_range():
    got = execute("shfl.sync.up.b32 %r0|%p0, %r1, 4, 0, -1;", LANE, result="p")
    assert got.tolist() == [0] * 4 + [1] * 28


def test_shuffle_in_half_a_warp_is_refused():
    code = "setp.lt.u32 %p1, %r4, 16; @%p1 shfl.sync.bfly.b32 %r0, %r1, 1, 31, {members};"
    with pytest.raises(Divergence):
        execute(code.format(members=-1), LANE)
    assert execute("mov.b32 %r0, 0; " + code.format(members="0xffff"), LANE)[:16].tolist() == (LANE ^ 1)[:16].tolist()


def test_warp_votes_and_reductions():
    odd = "and.b32 %r0, %r1, 1; setp.ne.b32 %p1, %r0, 0; "
    assert set(execute(odd + "vote.sync.ballot.b32 %r0, %p1, -1;", LANE).tolist()) == {0xAAAAAAAA}
    assert set(execute(odd + "vote.sync.all.pred %p0, %p1, -1;", LANE, result="p").tolist()) == {0}
    assert set(execute("redux.sync.add.s32 %r0, %r1, -1;", LANE).tolist()) == {496}
    assert set(execute("redux.sync.max.s32 %r0, %r1, -1;", -LANE).tolist()) == {0}
    got = execute("elect.sync %r0|%p0, 0xfffffff0;", LANE, result="p")
    assert np.flatnonzero(got).tolist() == [4]


def test_atomics_see_each_other():
    code = "atom.global.add.u32 %r0, [%rd9], %r1;"
    # All lanes add to the first element, whose bits were all set.
    got = execute("sub.s64 %rd9, %rd9, %rd10; " + code + " add.s64 %rd9, %rd9, %rd10;", np.ones(LANES, int))
    assert got.tolist() == [0xFFFFFFFF, *range(31)]


def test_a_branch_that_splits_a_warp_joins_again():
    code = """
    setp.lt.u32 %p1, %r4, 10;
    mov.b32 %r0, 0;
    @%p1 bra FEW;
    add.s32 %r0, %r0, 1;
    bra.uni JOIN;
    FEW:
    add.s32 %r0, %r0, 100;
    JOIN:
    redux.sync.add.s32 %r0, %r0, -1;"""
    assert set(execute(code).tolist()) == {10 * 100 + 22}


def test_a_loop_whose_trips_differ_by_lane():
    code = """
    mov.b32 %r0, 0;
    AGAIN:
    setp.ge.s32 %p1, %r0, %r4;
    @%p1 bra DONE;
    add.s32 %r0, %r0, 1;
    bra.uni AGAIN;
    DONE:"""
    assert execute(code).tolist() == LANE.tolist()


def test_a_local_label_and_register_belong_to_their_braces():
    code = (
        "mov.b32 %r0, %r1; " + "{ .reg .b32 t; mov.b32 t, 1; skip: add.s32 %r0, %r0, t; bra.uni out; trap; out: } " * 2
    )
    assert execute(code, LANE).tolist() == (LANE + 2).tolist()


def test_an_unwritten_register_holds_garbage():
    value = execute("add.s32 %r0, %r5, 0;")
    assert np.isnan(value.astype(np.uint32).view(np.float32)).all()


@pytest.mark.parametrize(
    "code",
    [
        "add.rz.f32 %r0, %r1, %r2;",
        "add.sat.s32 %r0, %r1, %r2;",
        "cvt.rn.satfinite.bf16.f32 %rs0, %r1;",
        "prmt.b32.f4e %r0, %r1, %r2, %r3;",
        "sad.s32 %r0, %r1, %r2, %r3;",
        "mov.u32 %r0, %clock;",
    ],
)
def test_what_is_not_modelled_raises(code):
    with pytest.raises(UnknownInstruction, match=r"PTX line \d+: \w+"):
        execute(code, LANE)
