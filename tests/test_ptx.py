"""The PTX emulator: kernels that it must get right, and faults planted in their code that it must find.

A fault is planted by editing the PTX; each test first checks that the edit changed it, and that the kernel was right
without it. What a launch comes to is named by `Case.outcome`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not available here")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles nothing while TRITON_INTERPRET is set", allow_module_level=True)

from cips_fast.kernels.tiles import triton_version

from .ptx import BadArguments, Memory, Misaligned, OutOfBounds, Program, Traffic
from .ptx.cases import elementwise, exchange, linear, numbers, softmax, tensors

TIMINGS = [("lazy", None), ("eager", None), ("crossed", None), ("lazy", 0), ("crossed", 1)]


SOUND = {
    f"{make.__name__}-{'-'.join(map(str, arguments))}": partial(make, *arguments)
    for make, arguments in [
        *((elementwise, (capability, dtype)) for capability in (80, 90) for dtype in ("bf16", "fp16", "fp32")),
        *((exchange, (capability, 5)) for capability in (80, 90)),
        *((softmax, (capability, dtype)) for capability in (80, 90) for dtype in ("bf16", "fp32")),
        *((linear, (capability, dtype, True)) for capability in (80, 90) for dtype in ("bf16", "fp16", "tf32", "fp32")),
        *((linear, (capability, dtype, False, 2)) for capability in (80, 90) for dtype in ("bf16", "tf32")),
        *((tensors, (dtype, specialized)) for dtype in ("bf16", "tf32") for specialized in (False, True)),
    ]
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_kernel(name):
    for mode, order in TIMINGS:
        assert SOUND[name]().outcome(mode=mode, order=order) == "right", (mode, order)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_loop_without_trips_leaves_the_epilogue(capability):
    assert linear(capability, "bf16", True, I=0).outcome() == "right"


@pytest.mark.parametrize("trips", [1, 2, 6])
@pytest.mark.parametrize("capability", [80, 90])
def test_trip_counts_around_the_pipeline_depth(capability, trips):
    assert linear(capability, "bf16", False, I=32 * trips).outcome() == "right"


def edited(ptx: str, pattern: str, replacement: str | Callable, count: int = 0) -> str:
    changed, times = re.subn(pattern, replacement, ptx, count=count)
    assert times > 0, f"{pattern} is not in the code"
    assert changed != ptx, f"{pattern} is replaced by itself"
    return changed


# The waits and the guards that a fault removes, as patterns.
COPY_WAIT = r"cp\.async\.wait_group\s+\d+;"
PRODUCT_WAIT = r"wgmma\.wait_group\.sync\.aligned \d+;"
PHASE_WAIT = r"mbarrier\.try_wait\S+\s+complete, [^;]*;\s*@!complete bra\.uni waitLoop;"
STORE_GUARD = r"@%p\d+ (st\.global)"
LOAD_GUARD = r"@%p\d+ (ld\.global)"
BARRIER = r"bar\.sync\s+0;"

FAULTS = {
    "no wait for cp.async": (partial(linear, 80, "bf16", True), COPY_WAIT, "", {"mode": "lazy"}, "wrong"),
    "no wait for wgmma": (partial(linear, 90, "bf16", True), PRODUCT_WAIT, "", {"mode": "lazy"}, "wrong"),
    "no wait for tensor loads": (partial(tensors, "bf16", False), PHASE_WAIT, "", {"mode": "lazy"}, "BarrierMisuse"),
    "no wait for tensor stores": (
        partial(tensors, "bf16", False),
        r"cp\.async\.bulk\.wait_group(\.read)?\s+\d+;",
        "",
        {"mode": "lazy"},
        "unwritten",
    ),
    "a buffer refilled under a product": (
        partial(linear, 90, "bf16", True, I=192),
        r"wgmma\.wait_group\.sync\.aligned 1;",
        "wgmma.wait_group.sync.aligned 2;",
        {"mode": "crossed"},
        "wrong",
    ),
    "no mask on stores": (partial(linear, 80, "bf16", True), STORE_GUARD, r"\1", {}, "OutOfBounds"),
    "no mask on loads": (partial(elementwise, 80, "bf16"), LOAD_GUARD, r"\1", {}, "OutOfBounds"),
    "no mask on asynchronous loads": (
        partial(linear, 80, "bf16", True),
        r"(cp\.async\.cg[^;]*), %r\d+;",
        r"\1;",
        {},
        "OutOfBounds",
    ),
    "swapped registers of mma": (
        partial(linear, 80, "bf16", True),
        r"(mma\.sync\S+ \{[^}]*\}, \{ %r\d+, )(%r\d+), (%r\d+)",
        r"\1\3, \2",
        {},
        "wrong",
    ),
    "swapped operands of wgmma": (
        partial(linear, 90, "bf16", True),
        r"(wgmma\.mma_async\S+ \{[^}]*\}, )(%rd\d+), (%rd\d+)",
        r"\1\3, \2",
        {},
        "wrong",
    ),
    "a descriptor of another swizzle": (
        partial(linear, 90, "bf16", True),
        r"or\.b64(\s+%rd\d+, %rd\d+, )(-9\d{18});",
        lambda m: f"or.b64{m[1]}{int(m[2]) + (1 << 62)};",
        {},
        "wrong",
    ),
    "a row of ldmatrix in another place": (
        partial(linear, 80, "bf16", True),
        r"xor\.b32(\s+%r\d+, %r\d+, )32;",
        r"xor.b32\g<1>16;",
        {},
        "wrong",
    ),
    "a tensor map of another swizzle": (
        partial(tensors, "bf16", False),
        r"(swizzle_mode\S+ \[[^]]*\], )0x2;",
        r"\g<1>0x3;",
        {},
        "wrong",
    ),
    "fewer bytes expected": (
        partial(tensors, "bf16", False),
        r"(expect_tx\S+ _, \[[^]]*\], )(\d+);",
        lambda m: f"{m[1]}{int(m[2]) // 2};",
        {},
        "BarrierMisuse",
    ),
    "more bytes expected": (
        partial(tensors, "bf16", True),
        r"(expect_tx\S+ _, \[[^]]*\], )(\d+);",
        lambda m: f"{m[1]}{int(m[2]) + 16};",
        {},
        "Deadlock",
    ),
    "a store left out": (partial(linear, 80, "bf16", True), r"@%p\d+ st\.global[^;]*;", "", {}, "unwritten"),
    "a barrier for too many": (partial(softmax, 80, "bf16"), BARRIER, "bar.sync 0, 160;", {}, "Deadlock"),
    "a barrier for too few": (partial(softmax, 80, "bf16"), BARRIER, "bar.sync 0, 96;", {}, "BarrierMisuse"),
    "an instruction for half a warp": (
        partial(softmax, 80, "bf16"),
        r"(ret;)",
        r"{ .reg .pred half; .reg .b32 t; mov.u32 t, %laneid; setp.lt.u32 half, t, 16; @half bar.sync 0; } \1",
        {},
        "Divergence",
    ),
    "an endless loop": (partial(softmax, 80, "bf16"), r"(ret;)", r"{ again: bra again; } \1", {}, "StepLimit"),
    "an unknown instruction": (partial(softmax, 80, "bf16"), r"(ret;)", r"brkpt; \1", {}, "UnknownInstruction"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault(name):
    make, pattern, replacement, options, expected = FAULTS[name]
    options = {"step_limit": 100_000} | options
    sound = make()
    assert sound.outcome(**options) == "right"
    assert make().outcome(edited(sound.ptx, pattern, replacement), **options) == expected


@pytest.mark.parametrize("make", [partial(softmax, 80, "bf16"), partial(linear, 90, "bf16", False)])
def test_missing_barrier_shows_when_warps_run_one_at_a_time(make):
    broken = edited(make().ptx, BARRIER, "")
    assert make().outcome(broken) == "right", "in near lockstep nothing is missed"
    outcomes = {make().outcome(broken, order=seed) for seed in range(4)}
    assert "wrong" in outcomes


def test_every_barrier_of_the_softmax_is_needed():
    """All but the first of the five that Triton before 3.8 makes: it guards a maximum over what the warps have found.

    Taken too early, the maximum is one of fewer numbers, since it passes over the poison of unwritten memory. A softmax
    is right whatever is subtracted from its exponents.
    """
    ptx = softmax(80, "bf16").ptx
    barriers = [match.span() for match in re.finditer(BARRIER, ptx)]
    assert len(barriers) == (5 if triton_version() < (3, 8) else 3)
    for start, end in barriers[1:] if len(barriers) == 5 else barriers:
        outcomes = {softmax(80, "bf16").outcome(ptx[:start] + ptx[end:], order=seed) for seed in range(6)}
        assert "wrong" in outcomes


@pytest.mark.parametrize("first", [0, 1], ids=["after the stores", "after the loads"])
def test_barrier_around_an_exchange_in_global_memory(first):
    """Two barriers a trip: without the first, loads come too soon; without the second, the next trip's stores do."""
    ptx = exchange(80, 5).ptx
    for start, end in reversed([match.span() for match in re.finditer(BARRIER, ptx)][first::2]):
        ptx = ptx[:start] + ptx[end:]
    assert exchange(80, 5).outcome(ptx) == "right", "in near lockstep nothing is missed"
    assert {exchange(80, 5).outcome(ptx, order=seed) for seed in range(4)} == {"wrong"}


def test_only_the_crossed_mode_sees_a_buffer_refilled_under_a_product():
    make, pattern, replacement, _, _ = FAULTS["a buffer refilled under a product"]
    broken = edited(make().ptx, pattern, replacement)
    outcomes = [make().outcome(broken, mode=mode) for mode in ("lazy", "eager", "crossed")]
    assert outcomes == ["right", "right", "wrong"]


def test_one_row_of_tiles_left_out_is_found_where_it_is():
    case = linear(80, "bf16", True)
    case.grid = (1, *case.grid[1:])
    case.launch()
    address = case.arguments[3]
    missing = case.memory.unwritten(address)
    assert not missing[:, :64].any()
    assert missing[:, 64:].all()
    assert np.isnan(numbers(case.memory.fetch(address), "bf16")[:, 64:]).all()


def test_swapped_pointers():
    case = linear(80, "bf16", True)
    x, w, bias, *rest = case.arguments
    case.arguments = [w, x, bias, *rest]
    with pytest.raises(OutOfBounds, match=r"bytes past the end of the array \(1, 48, 80\)"):
        case.launch()
    case.arguments = [x, bias, w, *rest]
    assert case.outcome() == "OutOfBounds"


def test_a_misaligned_pointer():
    case = linear(80, "bf16", True)
    case.arguments[0] += 2
    with pytest.raises(Misaligned, match=r"16 bytes at global address 0x\w+ are misaligned\n  PTX line \d+: cp\.async"):
        case.launch()


def test_a_null_pointer():
    case = softmax(80, "bf16")
    case.arguments[0] = 0
    assert case.outcome() == "OutOfBounds"


def test_an_error_names_line_block_and_threads():
    case = elementwise(80, "fp32", N=700)
    broken = edited(case.ptx, LOAD_GUARD, r"\1")
    with pytest.raises(OutOfBounds) as caught:
        case.launch(broken)
    line = int(re.search(r"PTX line (\d+)", str(caught.value))[1])
    assert "ld.global" in broken.splitlines()[line - 1]
    # Each thread has four numbers: element 700 is the first one of thread 47 of the second block.
    assert "block (1, 0, 0), threads 47, 48, 49, 50, ..." in str(caught.value)


def test_counts():
    case = softmax(80, "fp32")
    counts: dict[str, int] = {}
    case.launch(counts=counts)
    assert counts["global bytes loaded"] == counts["global bytes stored"] == 10 * 200 * 4
    # Three blocks of four warps.
    assert counts["ret"] == 12
    # Running the warps apart changes neither.
    again: dict[str, int] = {}
    softmax(80, "fp32").launch(counts=again, order=5)
    assert again == counts


@pytest.mark.parametrize("capability", [80, 90])
def test_traffic(capability):
    case = linear(capability, "bf16", True, B=2, P=75, I=80, O=80)  # two tiles of P, two of O
    case.launch()
    addresses = dict(zip(("x", "w", "bias", "y"), case.arguments, strict=False))
    sizes = {"x": 2 * 75 * 80 * 2, "w": 2 * 80 * 80 * 2, "bias": 80 * 4, "y": 2 * 75 * 80 * 2}
    # Programs of both tiles of O read x, and so on. Many threads hold an element of the bias, which counts once.
    repeats = {"x": 2, "w": 2, "bias": 2 * 2}
    for name, times in repeats.items():
        assert case.memory.traffic(addresses[name], sizes[name]) == Traffic(times * sizes[name], 0, sizes[name], 0)
    assert case.memory.traffic(addresses["y"], sizes["y"]) == Traffic(0, sizes["y"], 0, sizes["y"])


def test_traffic_of_tensor_copies():
    case = tensors("bf16", False)
    case.launch()
    x, y = case.arguments[0], case.arguments[2]
    assert case.memory.traffic(x, 200 * 160 * 2) == Traffic(200 * 160 * 2, 0, 200 * 160 * 2, 0)
    assert case.memory.traffic(y, 200 * 80 * 2) == Traffic(0, 200 * 80 * 2, 0, 200 * 80 * 2)


@cache
def softmax_program() -> Program:
    return Program(softmax(80, "fp32").ptx)


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": [1, 2, 3]},
        {"arguments": [1, 2, 3, 4, 5]},
        {"arguments": [1, 2, 3.5, 4]},
        {"arguments": [1, 2, 1 << 32, 4]},
        {"threads": 64},
        {"mode": "sometimes"},
    ],
    ids=str,
)
def test_launches_that_do_not_fit_are_refused(change):
    launch = {"memory": Memory(), "grid": (1, 1, 1), "threads": 128, "arguments": [1, 2, 3, 4]}
    with pytest.raises(BadArguments):
        softmax_program().launch(**(launch | change))


def test_memory_keeps_arrays_and_knows_what_was_stored():
    memory = Memory(1)
    arrays = [np.arange(5, dtype=np.int16), np.ones((3, 4), np.float64), np.zeros(1 << 20, np.uint8)]
    addresses = [memory.place(array) for array in arrays]
    output = memory.reserve((2, 3), np.float32)
    for address, array in zip(addresses, arrays, strict=True):
        np.testing.assert_array_equal(memory.fetch(address), array)
        assert memory.fetch(address).dtype == array.dtype
    assert np.isnan(memory.fetch(output)).all()
    memory.store(np.array([output + 4, output + 20]), np.array([[0], [1]], np.uint16))
    # The second element got its first half only, the last one its first half too.
    memory.store(np.array([output + 6]), np.array([[0]], np.uint16))
    assert memory.unwritten(output).tolist() == [[True, False, True], [True, True, True]]
    with pytest.raises(OutOfBounds, match="before every allocation"):
        memory.load(np.array([memory.base]), 4)
    with pytest.raises(OutOfBounds, match="0 bytes past the end"):
        memory.load(np.array([output, output + 24]), 4)
    with pytest.raises(BadArguments):
        memory.fetch(output + 4)
