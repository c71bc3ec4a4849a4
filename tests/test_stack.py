"""A whole network in one launch, in both forms: interpreted, executed as compiled, faulty, and far away in memory.

`stack` carries a tile's activations through memory, `stack_narrow` keeps them on chip.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="no Triton")

from cips_fast import reference as ref
from cips_fast.kernels import dispatch, stack, stack_narrow
from cips_fast.kernels.device import architecture, standing_in
from cips_fast.kernels.report.compile import compile_call
from cips_fast.kernels.report.workload import Recorder, float32_products, meta, paper_network
from cips_fast.kernels.tiles import TABLES, Tiles, triton_version

from .accuracy import assert_as_accurate
from .devices import DEVICES
from .emulator import EmulatedGPU
from .networks import draw_network, draw_points
from .ptx import Program
from .test_large import execute_last_block

FORMS = pytest.mark.parametrize("form", [stack, stack_narrow], ids=["through memory", "on chip"])
ARCHITECTURES = ["sm_80", "sm_90"]
# One tile of the interpreter is 64 pixels by 64 channels, 32 deep. On chip all channels are multiples of 16.
CASES = {
    "one tile": {"widths": (64, 64, 64), "channels": 32, "pixels": 64},
    "one pixel": {"widths": (48, 48, 48, 32, 32, 16, 16), "pixels": 1, "batch": 1},
    "narrowing": {"widths": (48, 48, 48, 32, 32, 16, 16), "pixels": 150, "shared": False},
    "three dimensions": {"dims": 3, "align_corners": False},
    "own points in three dimensions": {"dims": 3, "shared": False},
    "one cell": {"channels": 48, "cells": (1, 1), "pixels": 65},
}
THROUGH_MEMORY = {
    "odd": {"widths": (33, 33, 33, 20, 17), "channels": 7},
    "three": {"widths": (3, 3, 3), "pixels": 65},
    "one channel": {"widths": (1, 1, 1), "channels": 1, "cells": (1, 1)},
    "more channels than a tile": {"widths": (100, 130, 65), "channels": 50},
    "residual blocks": {"widths": (64, 64, 64, 64, 64), "residual": True},
    "narrowing residual blocks": {"widths": (40, 40, 40, 24, 24, 8, 8), "residual": True, "shared": False},
    "odd residual blocks": {"widths": (33, 33, 33, 20, 17), "residual": True},
}


def problem(dtype, *, pixels=70, shared=True, dims=2, device="cpu", channels=16, **options):
    """A network whose parameters `dtype` can represent, in float32; coordinates, and where its table is read."""
    rng = torch.Generator().manual_seed(pixels * 31 + dims)
    network = draw_network(rng, dims=dims, dtype=dtype, channels=channels, **options)
    points = [draw_points(rng, 1 if shared else network.batch, pixels, d).to(dtype) for d in (dims, 2)]
    network = network.with_tensors([t.float().to(device) for t in network.tensors()])
    return network, [p.float().to(device) for p in points]


def colours(form, dtype, network, points):
    """What a form renders."""
    chip = architecture(points[0].device)
    if points[0].is_cuda and form is stack_narrow and not form.serves(network, dtype, chip):
        pytest.skip(f"no network stays on chip in {dtype} on {chip}")
    return form.infer(network, *points, dtype=dtype)


def check(form, dtype, **options):
    """Compare colours with those of the formulas, and return them."""
    network, points = problem(dtype, **options)
    got = colours(form, dtype, network, points)
    plain = ref.synthesis_ref(network, *points, dtype=dtype)
    double = network.with_tensors([t.double() for t in network.tensors()])
    wanted = ref.synthesis_ref(double, *(p.double() for p in points))
    assert got.dtype == torch.float32
    assert_as_accurate([got], [plain], [wanted], dtype)
    return got


@pytest.mark.exhaustive(*(f"{case}-interpreter-float16-*" for case in CASES if case != "narrowing"))
@FORMS
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_colours(form, device, case):
    check(form, device.dtype, device=device.kind, **CASES[case])


@pytest.mark.exhaustive(*(f"{case}-interpreter-float16" for case in THROUGH_MEMORY if case != "residual blocks"))
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("case", THROUGH_MEMORY)
def test_colours_through_memory(device, case):
    check(stack, device.dtype, device=device.kind, **THROUGH_MEMORY[case])


@FORMS
@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_networks_of_drawn_shapes(form, device, data):
    step, most = (16, 4) if form is stack_narrow else (1, 100)
    channels = st.integers(1, most).map(lambda n: n * step)
    blocks = data.draw(st.lists(st.tuples(channels, channels), min_size=1, max_size=2))
    widths = (data.draw(channels), *(width for block in blocks for width in block))
    residual = form is stack and data.draw(st.booleans())
    options = {"batch": st.integers(1, 3), "channels": channels, "pixels": st.integers(1, 140), "shared": st.booleans()}
    check(form, device.dtype, widths=widths, residual=residual, **{name: data.draw(s) for name, s in options.items()})


@pytest.mark.exhaustive("interpreter-float16")
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_program_renders_tile_after_tile(device, monkeypatch):
    options = {"device": device.kind, "pixels": 130, "residual": True, "widths": (40, 40, 40, 24, 24)}
    alone = check(stack, device.dtype, **options)
    monkeypatch.setattr(stack, "programs_in_flight", lambda *_: 2)
    assert torch.equal(check(stack, device.dtype, **options), alone)


@FORMS
@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@pytest.mark.parametrize(("batch", "pixels"), [(2, 0), (0, 5)])
def test_nothing_to_render(form, device, batch, pixels):
    network, points = problem(device.dtype, batch=batch, pixels=pixels)
    assert colours(form, device.dtype, network, points).shape == (batch, pixels, 3)


@FORMS
@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_arguments_of_any_layout_and_batch(form, device):
    network, (coords, at) = problem(device.dtype, shared=False)
    wanted = form.infer(network, coords, at, dtype=device.dtype)
    strided = [t.movedim(0, -1).contiguous().movedim(-1, 0) for t in (*network.tensors(), coords, at)]
    *tensors, other_coords, other_at = strided
    assert torch.equal(form.infer(network.with_tensors(tensors), other_coords, other_at, dtype=device.dtype), wanted)
    one = coords[:1]
    mixed = [form.infer(network, *points, dtype=device.dtype) for points in ((one, at), (one.expand(2, -1, -1), at))]
    assert torch.equal(*mixed)


# Several tiles of pixels, of outputs and of depth; wgmma takes 64 rows at least, and half a tile is encoded at a time.
# Every warp loads rows that others have stored.
SMALL = {"sm_80": Tiles(64, 32, 64, 4, 3), "sm_90": Tiles(128, 32, 64, 4, 3)}


@pytest.fixture(params=ARCHITECTURES)
def small(request, monkeypatch, poison):
    """An architecture, its table of tiles through memory replaced, and two programs for all the work."""
    monkeypatch.setattr(stack, "stack_tiles", lambda *_: SMALL[request.param])
    monkeypatch.setattr(stack, "programs_in_flight", lambda *_: 2)
    return request.param


EXECUTED = {
    "through memory": (stack, {"widths": (96, 96, 96)}),
    "residual blocks": (stack, {"widths": (96, 96, 96, 32, 32), "residual": True}),
    "on chip": (stack_narrow, {"widths": (48, 48, 48, 32, 32)}),
}


def executed(name, architecture):
    """A form and a problem for it of three tiles, so that a program has two."""
    form, options = EXECUTED[name]
    pixels = 5 + 2 * (SMALL[architecture].rows if form is stack else 128)
    return form, {"channels": 32, "batch": 1, "pixels": pixels, **options}


@pytest.mark.exhaustive("sm_80-*", "*-fp16-*")
@pytest.mark.parametrize("name", EXECUTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["lazy", "eager", "crossed"])
def test_executed(name, dtype, mode, small):
    form, options = executed(name, small)
    with standing_in(EmulatedGPU(small, mode)) as gpu:
        check(form, dtype, **options)
    assert gpu.calls[-1].grid == ((2,) if form is stack else (3,))


@pytest.mark.exhaustive("sm_80-*", "sm_90-through memory")
@pytest.mark.parametrize("name", EXECUTED)
def test_equal_bits_in_any_order_of_warps_and_blocks(name, small):
    """In random orders what one warp stored since the last barrier is poison to the others, see tests/ptx/races.py."""
    form, options = executed(name, small)
    results = []
    for order in (None, 0, 1):
        with standing_in(EmulatedGPU(small, order=order)):
            results.append(check(form, torch.bfloat16, **options))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.exhaustive("sm_80")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_executed_with_the_table_s_tiles(architecture, poison):
    with standing_in(EmulatedGPU(architecture)):
        check(stack, torch.bfloat16, pixels=70, batch=1, widths=(24, 24, 20), shared=False, dims=3)


@pytest.mark.exhaustive("sm_80-*")
@FORMS
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_executed_in_tf32(form, architecture, poison):
    """Factors have as many bits as float16's."""
    network, points = problem(torch.float16, pixels=40, batch=1)
    with standing_in(EmulatedGPU(architecture)) as gpu, float32_products("high"):
        got = form.infer(network, *points, dtype=torch.float32)
    assert any("tf32" in name for name in gpu.counts)
    double = network.with_tensors([t.double() for t in network.tensors()])
    wanted = ref.synthesis_ref(double, *(p.double() for p in points))
    assert_as_accurate([got], [ref.synthesis_ref(network, *points, dtype=torch.float16)], [wanted], torch.float16)


@pytest.mark.parametrize("small", ["sm_80"], indirect=True)
def test_scratch_is_read_and_written_as_often_as_the_layers_say(small):
    """To the byte, warps counted one by one: so no element of a residual, which is overwritten, is read by two."""
    widths, C, (rows, cols) = (96, 96, 96, 32, 32), 24, (64, 32)
    network, points = problem(torch.bfloat16, channels=C, pixels=rows, batch=1, widths=widths, residual=True)
    with standing_in(EmulatedGPU(small, order=0)) as gpu:
        stack.infer(network, *points, dtype=torch.bfloat16)
    # Inputs and outputs of every step, the second block's shortcut among them; residuals of 96 and of 32 channels.
    steps = [(2 * C, 96), (96, 96), (96, 96), (96, 32), (96, 32), (32, 32)]
    read = sum(-(-outputs // cols) * inputs for inputs, outputs in steps) + 96 + 32
    written = 2 * C + sum(outputs for _, outputs in steps)
    moved = gpu.traffic[-1]["scratch_ptr"]
    assert (moved.loaded, moved.stored) == (rows * read * 2, rows * written * 2)


def test_scratch_does_not_grow_with_the_image():
    def scratch(pixels):
        with standing_in(Recorder("sm_90")) as recorder:
            stack.infer(paper_network(256), meta(1, pixels, 2), dtype=torch.bfloat16)
        return recorder.calls[-1].arguments["scratch_ptr"]

    assert scratch(10**5).shape == scratch(10**9).shape
    assert scratch(10**5).nbytes == 132 * 2 * 128 * 512 * 2  # 33 MiB on an H100


@FORMS
def test_memory_sees_points_and_colours_once_whatever_the_depth(form, poison, monkeypatch):
    monkeypatch.setattr(stack, "stack_tiles", lambda *_: SMALL["sm_80"])
    monkeypatch.setattr(stack, "programs_in_flight", lambda *_: 2)
    _, points = problem(torch.bfloat16, pixels=150, batch=1)
    loads = []
    for depth in (3, 7):
        network, _ = problem(torch.bfloat16, batch=1, widths=(64,) * depth)
        with standing_in(EmulatedGPU("sm_80")) as gpu:
            form.infer(network, *points, dtype=torch.bfloat16)
        moved = gpu.traffic[-1]
        written = {"rgb_ptr": 150 * 3 * 4}
        if form is stack:
            written["scratch_ptr"] = 2 * 2 * 64 * 64 * 2  # two regions of each program
        assert {name: bytes_.distinct_stored for name, bytes_ in moved.items() if bytes_.stored} == written
        assert moved["rgb_ptr"].stored == written["rgb_ptr"]
        assert moved["coords_ptr"].distinct_loaded == moved["table_coords_ptr"].distinct_loaded == 150 * 2 * 4
        weights = sum(w.numel() for w in (*network.weights, *network.tap_weights))
        assert moved["w_ptr"].distinct_loaded == weights * 2
        loads.append(
            [moved[name].loaded for name in ("coords_ptr", "table_coords_ptr", "freq_ptr", "phase_ptr", "table_ptr")]
        )
    assert loads[0] == loads[1]


@FORMS
@pytest.mark.parametrize("where", ["pixel", "sample"])
@pytest.mark.parametrize("small", ["sm_80"], indirect=True)
def test_far_addresses(form, where, small):
    """Beyond 2³¹ elements of coordinates, weights, scratch and colours: the bits of the same few pixels nearby."""
    P, far = 5, {"pixel": (1, 2**30 + 5), "sample": (2**20 + 1, 5)}[where]
    network, points = problem(torch.float16, batch=1, pixels=P, widths=(64, 64, 64), shared=False)
    with standing_in(EmulatedGPU(small)) as gpu:
        wanted = form.infer(network, *points, dtype=torch.float16)
    near = gpu.calls[-1].arguments
    styles = [[meta(far[0], s.shape[1]) for s in each] for each in (network.styles, network.tap_styles)]
    network = replace(
        network.with_tensors([t.to("meta") for t in network.tensors()]), styles=styles[0], tap_styles=styles[1]
    )
    with standing_in(Recorder(small)) as recorder:
        form.infer(network, meta(*far, 2), meta(*far, 2), dtype=torch.float16)
    # As many programs as tiles, of which the last one is run.
    call = recorder.calls[-1]
    tiles = far[0] * -(-far[1] // call.constants["BLOCK_P"])
    call, last = replace(call, grid=(tiles,)), tiles - 1
    pixels = far[0] * far[1] - P
    starts = {"coords_ptr": 2 * pixels, "table_coords_ptr": 2 * pixels, "rgb_ptr": 3 * pixels}
    starts |= {"w_ptr": (far[0] - 1) * near["w_stride_b"], "scratch_ptr": last * near.get("scratch_size", 0)}
    tensors = {name: value for name, value in near.items() if isinstance(value, torch.Tensor)}
    windows = {name: (starts.get(name, 0), tensor.numpy()) for name, tensor in tensors.items()}
    windows["rgb_ptr"] = (starts["rgb_ptr"], np.full((P, 3), np.nan, np.float32))
    got = execute_last_block(call, windows, (last, 0, 0))["rgb_ptr"]
    assert torch.equal(got, wanted[0])


def test_tiles_have_as_many_elements_as_threads():
    """Half a tile of the narrowest network: what the in-place sum of a residual block rests on."""
    for chip, table in TABLES.items():
        lanes = 64 if chip.startswith("gfx") or chip == "default" else 32
        assert all(tiles.rows * 8 >= lanes * tiles.warps for tiles in table.stack.values()), chip


LEFT_TO_MEMORY = {
    "wide": ({"widths": (144, 144, 144)}, torch.bfloat16, "sm_90"),
    "odd width": ({"widths": (32, 32, 40)}, torch.bfloat16, "sm_90"),
    "odd encoding": ({"channels": 24}, torch.bfloat16, "sm_90"),
    "residual": ({"residual": True}, torch.bfloat16, "sm_90"),
    "float32 in full": ({}, torch.float32, "sm_90"),
    "unknown chip": ({}, torch.float16, "sm_75"),
}


def launched(render, options, dtype, chip, **more):
    network, points = problem(dtype, batch=1, pixels=5, **options)
    with standing_in(Recorder(chip)) as recorder:
        render(network, *points, dtype=dtype, **more)
    return recorder.calls[-1].kernel


@pytest.mark.parametrize("case", LEFT_TO_MEMORY)
def test_what_does_not_stay_on_chip(case):
    """Asked for, it is refused; one launch for all layers goes through memory."""
    options, dtype, chip = LEFT_TO_MEMORY[case]
    with pytest.raises(ValueError, match=rf"network: got .*→.* channels in {dtype}, .* not stay on chip on {chip}"):
        launched(stack_narrow.infer, options, dtype, chip)
    assert launched(dispatch.infer, options, dtype, chip, inference="stack") is stack.stack_kernel


def test_narrow_networks_stay_on_chip():
    """However few the pixels: there are as many tiles of them in a layer."""
    widest = dict.fromkeys(("sm_80", "sm_89", "sm_90", "sm_103", "sm_120", "gfx950", "gfx1100"), 128)
    if triton_version() < (3, 8):
        widest["gfx1100"] = 64
    for chip, width in widest.items():
        narrow = {"widths": (width,) * 3}, torch.bfloat16
        assert launched(dispatch.infer, *narrow, chip, inference="stack") is stack_narrow.stack_narrow_kernel
        assert launched(dispatch.infer, *narrow, chip) is stack_narrow.stack_narrow_kernel
    with float32_products("high"):
        assert launched(dispatch.infer, narrow[0], torch.float32, "sm_80") is stack_narrow.stack_narrow_kernel


# Barriers that the kernel asks for, in the order of its text. The compiler puts others before a tile's first copies,
# for the sake of shared memory that another tile of outputs still reads. They hide the loss of the kernel's own.
BARRIERS = ["after the encoding", "after layer 1", "after a layer"]
BEFORE_COPIES = r"(bar\.sync\s+0;)(?:(?!bar\.sync|wait_group|wgmma|st\.|ldmatrix|\$L__BB)[\s\S])*?cp\.async\.c[ag]"


@dataclass
class Edited(EmulatedGPU):
    """Executes the kernel's PTX without some spans of its text."""

    left_out: Callable[[str], list[tuple[int, int]]] = lambda ptx: []

    def compiled(self, call):
        program, metadata = super().compiled(call)
        if call.kernel is not stack.stack_kernel:
            return program, metadata
        ptx = compile_call(call, self.architecture).asm["ptx"]
        for start, end in sorted(self.left_out(ptx), reverse=True):
            ptx = ptx[:start] + ptx[end:]
        return Program(ptx), metadata


def asked_for(ptx):
    """Spans of the barriers that the kernel asks for, by their place in its text."""
    lines, first = inspect.getsourcelines(stack.stack_kernel.fn)
    wanted = [first + n for n, line in enumerate(lines) if "tl.debug_barrier()" in line]
    found = [re.search(rf"\.loc\s+1 {line} \d+[^\n]*\n\s*(bar\.sync\s+0;)", ptx) for line in wanted]
    return dict(zip(BARRIERS, (match.span(1) for match in found), strict=True))


def before_copies(ptx):
    return [match.span(1) for match in re.finditer(BEFORE_COPIES, ptx)]


@pytest.mark.exhaustive("sm_90")
def test_every_barrier_between_layers_is_needed(small):
    """Without it a warp loads what others have not stored, which is poison. One tile of outputs needs no others."""
    network, points = problem(torch.float16, pixels=SMALL[small].rows, batch=1, widths=(32, 32, 32))

    def render(left_out, order):
        with standing_in(Edited(small, order=order, left_out=left_out)):
            return stack.infer(network, *points, dtype=torch.float16)

    def changes_nothing(copy):
        return all(torch.equal(render(lambda ptx: [before_copies(ptx)[copy]], order), whole) for order in (0, 1))

    found = []
    whole = render(lambda ptx: found.append(before_copies(ptx)) or [], None)
    idle = [copy for copy in range(len(found[0])) if changes_nothing(copy)]  # with Triton 3.6 one is needed
    idle_ones = lambda ptx: [before_copies(ptx)[copy] for copy in idle]
    for order in (0, 1):
        assert torch.equal(render(idle_ones, order), whole)
        for barrier in BARRIERS:
            faulty = lambda ptx, barrier=barrier: {asked_for(ptx)[barrier], *idle_ones(ptx)}
            assert render(faulty, order).isnan().any(), barrier
