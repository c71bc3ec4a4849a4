"""A whole network in one launch: interpreted, executed as compiled, with barriers taken out, and far away in memory."""

import inspect
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cips_fast import reference as ref
from cips_fast.kernels import stack
from cips_fast.kernels.compile import compile_call
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.launch import Tiles
from cips_fast.kernels.production import Recorder, meta, paper_network

from .accuracy import assert_as_accurate, relative_error
from .emulator import EmulatedGPU
from .networks import draw_network, draw_points
from .places import PLACES
from .ptx import Program

NETWORKS = {
    "skip": {"channels": 20, "widths": (48, 48, 48, 40, 24)},
    "residual": {"channels": 16, "widths": (32, 32, 32, 32, 32), "residual": True},
    "residual that narrows": {"channels": 16, "widths": (32, 32, 32, 16, 16), "residual": True},
    "odd": {"channels": 3, "widths": (33, 33, 33)},
}


@pytest.fixture
def two_programs(monkeypatch):
    """So that a program goes on to other tiles, in the scratch that it used before."""
    monkeypatch.setattr(stack, "programs_in_flight", lambda items, architecture: min(items, 2))


def problem(dtype, *, pixels=70, shared=True, dims=2, batch=2, **options):
    rng = torch.Generator().manual_seed(pixels * 7 + dims)
    network = draw_network(rng, batch=batch, dims=dims, dtype=dtype, **options)
    network = network.with_tensors([t.float() for t in network.tensors()])
    points = [draw_points(rng, 1 if shared else batch, pixels, d) for d in (dims, 2)]
    return network, points


def check(dtype, network, points):
    rgb = stack.render(network, *points, dtype=dtype)
    plain = ref.synthesis_ref(network, *points, dtype=dtype)
    double = network.with_tensors([t.double() for t in network.tensors()])
    assert_as_accurate([rgb], [plain], [ref.synthesis_ref(double, *(p.double() for p in points))], dtype)
    return rgb


def on(place, network, points):
    return network.with_tensors([t.to(place.device) for t in network.tensors()]), [p.to(place.device) for p in points]


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(place, name, two_programs):
    check(place.dtype, *on(place, *problem(place.dtype, pixels=150, **NETWORKS[name])))


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("pixels", [0, 1, 64])
def test_pixels(place, pixels):
    rgb = check(place.dtype, *on(place, *problem(place.dtype, pixels=pixels, shared=False, dims=3)))
    assert rgb.shape == (2, pixels, 3)


@pytest.mark.parametrize("place", PLACES[:1], indirect=True)
def test_drawn_shapes(place):
    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(
        pixels=st.integers(1, 140),
        channels=st.integers(1, 40),
        widths=st.lists(st.integers(1, 80), min_size=1, max_size=2),
        batch=st.integers(1, 3),
        residual=st.booleans(),
        shared=st.booleans(),
    )
    def agrees(pixels, channels, widths, batch, residual, shared):
        layers = (widths[0], *(width for width in widths for _ in range(2)))
        options = {"channels": channels, "widths": layers, "residual": residual}
        check(torch.float32, *problem(torch.float32, pixels=pixels, shared=shared, batch=batch, **options))

    agrees()


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of compiled code that small networks have several of."""
    monkeypatch.setattr(stack, "stack_tiles", lambda *_: Tiles(64, 64, 64, 4, 3))


@pytest.mark.parametrize("mode", ["lazy", "eager", "crossed"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "residual"])
def test_executed(architecture, mode, dtype, residual, two_programs, small_tiles, poison):
    options = {"channels": 24, "widths": (80, 80, 80, 48, 48), "residual": residual, "batch": 1}
    with standing_in(EmulatedGPU(architecture, mode)):
        check(dtype, *problem(dtype, pixels=150, **options))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_equal_bits_in_any_order_of_warps(architecture, two_programs, small_tiles, poison):
    network, points = problem(torch.bfloat16, channels=24, widths=(80, 80, 80), residual=True, batch=1)
    results = []
    for order in (None, 0, 1):
        with standing_in(EmulatedGPU(architecture, order=order)):
            results.append(stack.render(network, *points, dtype=torch.bfloat16))
    assert all(torch.equal(results[0], other) for other in results[1:])


BARRIER = r"(?:bar\.sync|barrier\.sync)\s+0\s*;"


def asked_for(ptx):
    """Source lines of `tl.debug_barrier()` in the order of the kernel, and where the barriers made of them stand."""
    lines, first = inspect.getsourcelines(stack.stack_kernel.fn)
    found, line = {}, 0
    for match in re.finditer(rf"\.loc\s+\d+ (\d+) |{BARRIER}", ptx):
        if match[1]:
            line = int(match[1])
        elif 0 <= line - first < len(lines) and "debug_barrier" in lines[line - first]:
            found[line] = match.start()
    return [found[line] for line in sorted(found)]


class WithoutBarriers(EmulatedGPU):
    """Executes the whole network without some barriers: the place-th asked for, unless kept, and some after it."""

    place, following, kept = 0, 0, False

    def compiled(self, call):
        program, metadata = super().compiled(call)
        if call.kernel is not stack.stack_kernel:
            return program, metadata
        ptx = compile_call(call, self.architecture).asm["ptx"]
        spans = [match.span() for match in re.finditer(BARRIER, ptx)]
        first = [start for start, _ in spans].index(asked_for(ptx)[self.place])
        for start, end in reversed(spans[first + self.kept : first + 1 + self.following]):
            ptx = ptx[:start] + ptx[end:]
        return Program(ptx), metadata


# After the encoding; and after the first layer, which a barrier of the compiler's doubles: either is enough, without
# both it shows. What doubles the barrier after later layers guards shared memory too: its loss cannot be told apart.
@pytest.mark.parametrize(("architecture", "place", "following"), [("sm_80", 0, 0), ("sm_90", 0, 0), ("sm_90", 1, 1)])
def test_missing_barriers_show(architecture, place, following, two_programs, small_tiles, poison):
    network, points = problem(torch.float16, pixels=140, channels=24, widths=(80, 80, 80), batch=1)
    wanted = ref.synthesis_ref(network, *points)

    def right(order, *, kept):
        gpu = WithoutBarriers(architecture, order=order)
        gpu.place, gpu.following, gpu.kept = place, following, kept
        with standing_in(gpu):
            return relative_error(stack.render(network, *points, dtype=torch.float16), wanted) < 5e-3

    assert all(right(order, kept=True) for order in range(2))
    assert not any(right(order, kept=False) for order in range(2))


def test_scratch_does_not_grow_with_the_image():
    def scratch(pixels):
        with standing_in(Recorder("sm_90")) as recorder:
            stack.render(paper_network(256), meta(1, pixels, 2), dtype=torch.bfloat16)
        return recorder.calls[-1].arguments["scratch_ptr"]

    assert scratch(10**5).shape == scratch(10**9).shape
    assert scratch(10**5).nbytes == 132 * 2 * 128 * 512 * 2  # 33 MiB on an H100


@pytest.mark.parametrize("layers", [3, 7, 15])
def test_memory_sees_points_and_colours_once_whatever_the_depth(layers, small_tiles):
    network, points = problem(torch.bfloat16, channels=16, widths=(32,) * layers, batch=1, pixels=150)
    gpu = EmulatedGPU("sm_80")
    with standing_in(gpu):
        stack.render(network, *points, dtype=torch.bfloat16)
    traffic = gpu.traffic[-1]
    assert traffic["rgb_ptr"].stored == 150 * 3 * 4
    assert traffic["coords_ptr"].distinct_loaded == traffic["at_ptr"].distinct_loaded == 150 * 2 * 4
    stored = {name for name, moved in traffic.items() if moved.stored}
    assert stored == {"rgb_ptr", "scratch_ptr"}
    assert traffic["w_ptr"].distinct_loaded == sum(w.numel() for w in (*network.weights, *network.tap_weights)) * 2
    assert traffic["scratch_ptr"].distinct_stored <= 3 * 2 * 64 * 32 * 2  # three tiles' programs, two regions each
