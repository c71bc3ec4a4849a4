"""A whole network as one operation: value and gradients on every backend, in chunks and whole, and what it launches."""

import math
from dataclasses import replace

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from cips_fast import CIPSGenerator
from cips_fast import reference as ref
from cips_fast.backends import cpu_layer, cpu_network, network_ops
from cips_fast.kernels import dispatch, layered
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.report.workload import Recorder
from cips_fast.synthesis import synthesis

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .devices import DEVICES, Device
from .emulator import EmulatedGPU
from .networks import draw_network, draw_points

EMULATED = Device("emulated", "cpu", torch.bfloat16)
WIDTHS = (24, 24, 24, 16, 16)
PIXELS = 21


@pytest.fixture
def chunks_of_8(monkeypatch):
    """Layers run over 8 pixels before the next 8, as if an L2 held no more."""
    monkeypatch.setattr(layered, "chunk_pixels", lambda *_: 8)


def problem(dtype, *, shared=True, dims=2, pixels=PIXELS, widths=WIDTHS, **options):
    """A network with parameters in float32 that `dtype` can represent, points, and a gradient of their colours."""
    rng = torch.Generator().manual_seed(pixels + dims)
    network = draw_network(rng, widths=widths, dims=dims, dtype=dtype, **options)
    network = network.with_tensors([t.float() for t in network.tensors()])
    points = [draw_points(rng, 1 if shared else 2, pixels, d).to(dtype).float() for d in (dims, 2)]
    return network, points, draw(rng, 2, pixels, 3).float()


def gradients(call, network, points, upstream, dtype):
    """Colours and all gradients: call(network, coords, at)."""

    def formula(coords, at, *tensors):
        return call(network.with_tensors(tensors), coords, at)

    tensors = [t.to(dtype) for t in (*points, *network.tensors())]
    return value_and_gradients(formula, tensors, upstream)


def assert_like_the_formulas(device, network, points, upstream, *, backend="triton", **options):
    device, dtype = device.kind, device.dtype
    network = network.with_tensors([t.to(device) for t in network.tensors()])
    points, upstream = [t.to(device) for t in points], upstream.to(device)

    def ours(network, coords, at):
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            return synthesis(network, coords, at, backend=backend, **options)

    got = gradients(ours, network, points, upstream, torch.float32)
    wanted = gradients(ref.synthesis_ref, network, points, upstream, torch.float64)
    plain = gradients(lambda *a: ref.synthesis_ref(*a, dtype=dtype), network, points, upstream, torch.float32)
    if dtype == torch.float32:
        assert_as_accurate(got, plain, wanted, dtype)
    else:  # signs near the kink of lrelu flip by rounding, in either: no more than twice as far in all
        for ours, theirs, truth in zip(got, plain, wanted, strict=True):
            allowed = 2 * (theirs.double() - truth).norm() + 5e-3 * truth.norm()
            assert (ours.double() - truth).norm() <= allowed
    return got


@pytest.mark.exhaustive("shared-interpreter-float16", "own-interpreter-float16")
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(
    ("shared", "residual"), [(True, False), (False, False), (True, True)], ids=["shared", "own", "res"]
)
def test_value_and_gradients(device, shared, residual, chunks_of_8):
    pixels = PIXELS + residual  # as drawn, rounding to float16 puts no pixel on the other side of the kink
    assert_like_the_formulas(device, *problem(device.dtype, shared=shared, residual=residual, pixels=pixels))


@pytest.mark.exhaustive("interpreter-float16")
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_value_and_gradients_in_three_dimensions(device):
    assert_like_the_formulas(device, *problem(device.dtype, dims=3, align_corners=False), pixel_chunk=16)


@pytest.mark.exhaustive("*-1-False", "*-7-False", "*-21-False")
@pytest.mark.parametrize(
    ("pixel_chunk", "residual"), [(1, False), (7, False), (7, True), (PIXELS, False), (PIXELS + 1, False)]
)
@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_chunks_have_the_gradients_of_the_whole(device, pixel_chunk, residual):
    pixels = 5 if pixel_chunk == 1 else PIXELS
    assert_like_the_formulas(device, *problem(device.dtype, pixels=pixels, residual=residual), pixel_chunk=pixel_chunk)


@pytest.mark.parametrize("pixel_chunk", [None, 1, 7, PIXELS, PIXELS + 1])
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_other_backends_and_chunks(backend, residual, pixel_chunk):
    network, points, upstream = problem(torch.float32, residual=residual)
    wanted = gradients(ref.synthesis_ref, network, points, upstream, torch.float64)

    def ours(network, coords, at):
        return synthesis(network, coords, at, pixel_chunk=pixel_chunk, backend=backend)

    got = gradients(ours, network, points, upstream, torch.float32)
    plain = gradients(ref.synthesis_ref, network, points, upstream, torch.float32)
    assert_as_accurate(got, plain, wanted, torch.float32)


@pytest.mark.parametrize("pixel_chunk", [None, 70])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_on_a_cpu_in_tiles(dtype, residual, shared, at_once, pixel_chunk, monkeypatch):
    """64 pixels at a time, 128 in training, as if a core's cache held no more; three dimensions, which are as two."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"l2_cache_size": 1})
    monkeypatch.setattr(cpu_layer, "MIN_FLOP_PER_CALL", 1 << 60 if at_once else 0)  # images go through together, or not
    # With so many pixels, as drawn, no tensor has far more signs flipped by rounding than in eager PyTorch.
    drawn = problem(dtype, pixels=300, residual=residual, shared=shared, dims=3, align_corners=False)
    assert_like_the_formulas(Device("cpu", "cpu", dtype), *drawn, backend="cpu", pixel_chunk=pixel_chunk)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_on_a_cpu(dtype):
    """Without autocast: all is computed in their dtype but encoding and sums."""
    network, points, upstream = problem(dtype)
    inputs = [t.to(dtype).requires_grad_() for t in (*points, *network.tensors())]
    rgb = synthesis(network.with_tensors(inputs[2:]), *inputs[:2], backend="cpu")
    gradients = torch.autograd.grad(rgb, inputs, upstream.to(rgb.dtype))
    assert [g.dtype for g in gradients] == [dtype] * len(inputs)
    wanted = ref.synthesis_ref(
        network.with_tensors([t.double() for t in network.tensors()]), *map(torch.Tensor.double, points)
    )
    assert (rgb - wanted).norm() / wanted.norm() < 2e-2


def test_threads_may_change_between_forward_and_backward(monkeypatch):
    network, points, upstream = problem(torch.float32, pixels=400)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"l2_cache_size": 1})
    monkeypatch.setattr(cpu_layer, "MIN_FLOP_PER_CALL", 0)
    rgb = synthesis(network.with_tensors([t.requires_grad_() for t in network.tensors()]), *points, backend="cpu")
    wanted = torch.autograd.grad(rgb, network.tensors(), upstream, retain_graph=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    got = torch.autograd.grad(rgb, network.tensors(), upstream)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_cpu_has_a_tile_for_every_thread(monkeypatch):
    network, *_ = problem(torch.float32)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"l2_cache_size": 1 << 20})
    lengths = []
    for threads in (1, 2, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        lengths.append([tile.stop - tile.start for tile in cpu_network.inference_chunks(network, 1500, torch.float32)])
    assert lengths == [[1500], [750, 750], [256] * 5 + [220]]


def test_on_the_cells_of_the_table(monkeypatch):
    """Where every point reads one cell, the table's rows are taken as they are."""
    network, _, upstream = problem(torch.float32, pixels=15, cells=(3, 5))
    x, y = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 3), indexing="xy")
    at = torch.stack([x, y], -1).view(1, 15, 2)
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", None)
    assert_like_the_formulas(Device("cpu", "cpu", torch.float32), network, [at, at], upstream, backend="cpu")


@pytest.mark.parametrize("pixel_chunk", [None, 2])
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
def test_gradcheck_in_float64(residual, pixel_chunk):
    rng = torch.Generator().manual_seed(2)
    network = draw_network(rng, batch=1, channels=2, widths=(3, 3, 2), cells=(2, 2), residual=residual)
    points = [draw_points(rng, 1, 3, 2).double() * 0.9 for _ in range(2)]

    def colours(coords, at, *tensors):
        made = network.with_tensors(tensors)
        return synthesis(made, coords, at, pixel_chunk=pixel_chunk, backend="reference")

    inputs = [t.requires_grad_() for t in (*points, *network.tensors())]
    assert torch.autograd.gradcheck(colours, inputs)
    if pixel_chunk is None:
        assert torch.autograd.gradgradcheck(colours, inputs)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
def test_second_derivatives_are_those_of_the_formulas(device, residual):
    network, points, upstream = problem(device.dtype, pixels=6, residual=residual)

    def second(call, dtype):
        tensors = [t.to(dtype).requires_grad_() for t in (*points, *network.tensors())]
        rgb = call(network.with_tensors(tensors[2:]), *tensors[:2])
        first = torch.autograd.grad(rgb, tensors, upstream.to(dtype), create_graph=True)
        total = sum((g * torch.linspace(-1, 2, g.numel()).view_as(g)).sum() for g in first)
        return torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)

    got = second(lambda *a: synthesis(*a, backend="triton"), torch.float32)
    wanted = second(ref.synthesis_ref, torch.float64)
    assert_as_accurate(got, second(ref.synthesis_ref, torch.float32), wanted, torch.float32)


@pytest.mark.exhaustive("*-sm_80-*")
@pytest.mark.parametrize("mode", ["lazy", "eager", "crossed"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("widths", "residual"), [((32, 32, 32), False), ((32, 32, 32, 16, 16), True)], ids=["skip", "res"]
)
def test_executed(architecture, mode, widths, residual, chunks_of_8, poison):
    """As compiled, in bfloat16; chunks within chunks, so that all that adds has something to add to."""
    drawn = problem(torch.bfloat16, channels=16, widths=widths, residual=residual)
    with standing_in(EmulatedGPU(architecture, mode)):
        assert_like_the_formulas(EMULATED, *drawn, pixel_chunk=13)


@pytest.mark.exhaustive("sm_80")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_equal_bits_in_any_order_of_warps_and_blocks(architecture, chunks_of_8):
    network, points, upstream = problem(torch.bfloat16, channels=16, widths=(32, 32, 32))
    results = []
    for order in (None, 0):
        with standing_in(EmulatedGPU(architecture, order=order)), torch.autocast("cpu", dtype=torch.bfloat16):
            call = lambda *a: synthesis(*a, pixel_chunk=13, backend="triton")
            results.append(gradients(call, network, points, upstream, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.exhaustive("triton-skip")
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_operators_are_registered_as_pytorch_asks(backend, residual, interpreter):
    network, points, upstream = problem(torch.float32, pixels=6, widths=(8, 8, 6), residual=residual)
    tensors = network.tensors()
    options = (3, residual, True, torch.float32, backend)
    with standing_in(interpreter):
        opcheck(network_ops.infer, (*points, tensors, *options, "stack"))
        for pixel_chunk in (0, 4):
            _, saved = network_ops.synthesis(*points, tensors, *options, pixel_chunk)
            opcheck(network_ops.synthesis_bwd, (upstream, *points, tensors, saved, *options, pixel_chunk, True))
            needed = [t.detach().requires_grad_() for t in tensors]
            opcheck(network_ops.synthesis, (*points, needed, *options, pixel_chunk))


class Written(TorchDispatchMode):
    """Counts PyTorch's own passes over tensors of at least so many elements."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.passes = elements, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        moves_nothing = function.is_view or function.__name__.startswith(("empty", "new_empty", "_reshape_alias"))
        if function.namespace == "aten" and not moves_nothing:
            results = out if isinstance(out, list | tuple) else [out]
            if any(isinstance(t, torch.Tensor) and t.numel() >= self.elements for t in results):
                self.passes.append(function.__name__)
        return out


OUTPUTS = [
    ("fourier_fwd_kernel", "out_ptr"),
    ("mod_fc_fwd_kernel", "y_ptr"),
    ("mod_fc_fwd_kernel", "signs_ptr"),
    ("mod_fc_dgrad_kernel", "dx_ptr"),
    ("mod_fc_dgrad_kernel", "passed_ptr"),
]


@pytest.mark.parametrize("pixel_chunk", [None, 2048])
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
def test_training_writes_each_activation_once_and_passes_over_none(pixel_chunk, residual):
    """Every kernel and every pass of a training step at 64² on an H100, on tensors without memory."""
    rng = torch.Generator().manual_seed(1)
    widths = {"channels": 128, "widths": (128,) * 11}
    network = draw_network(rng, batch=4, cells=(64, 64), dtype=torch.float32, residual=residual, **widths)
    pixels, layers, blocks = 64 * 64, 11, 5 if residual else 0
    tensors = [t.to("meta").requires_grad_() for t in network.tensors()]
    coords = torch.empty(1, pixels, 2, device="meta")
    with standing_in(Recorder("sm_90")) as recorder, Written(4 * (pixel_chunk or pixels) * 128) as written:
        rgb = layered_step(network.with_tensors(tensors), coords, pixel_chunk)
    assert rgb.shape == (4, pixels, 3)
    assert written.passes == []
    elements = dict.fromkeys(OUTPUTS, 0)
    for call in recorder.calls:
        for kernel, output in OUTPUTS:
            out = call.arguments[output] if call.kernel.fn.__name__ == kernel else None
            elements[kernel, output] += 0 if out is None else out.numel()
    times = 1 if pixel_chunk is None else 2  # forward, and once more before going back
    assert elements == {
        ("fourier_fwd_kernel", "out_ptr"): times * pixels * 256,
        ("mod_fc_fwd_kernel", "y_ptr"): times * layers * 4 * pixels * 128,
        ("mod_fc_fwd_kernel", "signs_ptr"): blocks * 4 * pixels * 128,  # nobody reads those of the first pass
        ("mod_fc_dgrad_kernel", "dx_ptr"): layers * 4 * pixels * 128 + pixels * 256,
        ("mod_fc_dgrad_kernel", "passed_ptr"): blocks * 4 * pixels * 128,
    }


def layered_step(network, coords, pixel_chunk):
    """Forward and backward by the operators' own implementation, which fake tensors would replace."""
    dtype, points = torch.bfloat16, layered.Points(coords, coords)
    with torch.no_grad():
        weights = layered.modulate(network, dtype)
        rgb = coords.new_empty(network.batch, coords.shape[1], 3)
        drgb = torch.empty_like(rgb)
        gradients = layered.Gradients(network, weights, points, want_coords=False)
        if pixel_chunk is None:
            activations = layered.forward(network, weights, layered.encode(network, points, dtype), rgb)
            gradients.add(0, coords.shape[1], activations, drgb)
        else:
            layered.forward_in_chunks(network, weights, points, rgb)
            gradients.recompute(pixel_chunk, drgb, dtype)
        gradients.of_network(drgb)
    return rgb


def test_a_generator_compiles_and_exports_whole(interpreter):
    torch.manual_seed(0)
    generator = CIPSGenerator(4, width=16, style_features=8, mapping_layers=1, pixel_chunk=10, backend="triton")
    z = torch.randn(2, 8)
    with standing_in(interpreter):
        compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
        image, plain = compiled(z), generator(z)
        assert torch.equal(image, plain)
        parameters = [p for p in generator.parameters() if p.requires_grad]
        got, wanted = (torch.autograd.grad(each.square().mean(), parameters) for each in (image, plain))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        with torch.no_grad():
            torch.testing.assert_close(compiled(z), plain)
        exported = torch.export.export(generator, (z,))
        torch.testing.assert_close(exported.module()(z), plain)


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_image(interpreter):
    def kept(pixels, pixel_chunk):
        network, points, _ = problem(torch.float32, pixels=pixels)
        with standing_in(interpreter):
            _, saved = network_ops.synthesis(
                *points, network.tensors(), 5, False, True, torch.float32, "triton", pixel_chunk
            )
        return sum(t.nbytes for t in saved)

    assert kept(9, 4) == kept(90, 4)
    assert kept(90, 0) - kept(9, 0) == 81 * 4 * (2 * sum(WIDTHS) + 24)  # two images, and x₀ of both


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_no_points(device, backend):
    for pixel_chunk in (None, 3):
        nothing = problem(device.dtype, pixels=0)
        rgb, *others = assert_like_the_formulas(device, *nothing, pixel_chunk=pixel_chunk, backend=backend)
        assert rgb.shape == (2, 0, 3)
        assert not any(g.any() for g in others)


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("pixel_chunk", [None, 3])
def test_no_images(interpreter, backend, residual, pixel_chunk):
    network, points, upstream = problem(torch.float32, residual=residual)
    styles = [[style[:0] for style in each] for each in (network.styles, network.tap_styles)]
    network = replace(network, styles=styles[0], tap_styles=styles[1])
    with standing_in(interpreter):
        for shared in (points, [p[:0] for p in points]):
            rgb, *others = gradients(
                lambda *a: synthesis(*a, pixel_chunk=pixel_chunk, backend=backend),
                network, shared, upstream[:0], torch.float32,
            )  # fmt: skip
            assert rgb.shape == (0, PIXELS, 3)
            assert [g.shape for g in others] == [t.shape for t in (*shared, *network.tensors())]
            assert not any(g.any() for g in others)
            with torch.no_grad():
                assert synthesis(network, *shared, pixel_chunk=pixel_chunk, backend=backend).shape == (0, PIXELS, 3)


WAYS = [(backend, "auto") for backend in ("cpu", "reference")] + [("triton", way) for way in ("stack", "layered")]


@pytest.mark.parametrize(("backend", "inference"), WAYS)
@pytest.mark.parametrize("widths", [(24, 24, 24), (16, 16, 16)], ids=["stack", "narrow"])
def test_a_stray_coordinate_colours_its_own_pixel_alone(interpreter, large_tiles, backend, inference, widths):
    network, (coords, _), _ = problem(torch.float32, widths=widths)
    stray = coords.clone()
    stray[0, 4, 1], stray[0, 7, 0], stray[0, 11, 1], stray[0, 15, 0] = math.nan, math.inf, -math.inf, 1e38
    own = torch.tensor([4, 7, 11, 15])
    others = torch.ones(PIXELS, dtype=torch.bool).index_fill_(0, own, False)
    wanted = ref.synthesis_ref(network.with_tensors([t.double() for t in network.tensors()]), coords.double())
    with standing_in(interpreter), torch.no_grad():
        rgb = synthesis(network, stray, backend=backend, inference=inference)
    assert rgb[:, own[:3]].isnan().all()
    torch.testing.assert_close(rgb[:, others].double(), wanted[:, others], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
@pytest.mark.parametrize("pixel_chunk", [None, 10])
def test_a_stray_coordinate_leaves_other_pixels_gradients_alone(interpreter, large_tiles, backend, pixel_chunk):
    network, (coords, _), upstream = problem(torch.float32, widths=(16, 16, 16))
    stray = coords.clone()
    stray[0, 4, 1] = math.nan
    others = torch.arange(PIXELS) != 4
    upstream = upstream * others[:, None]

    def of_coords(coords, dtype, **options):
        coords = coords.to(dtype).requires_grad_()
        made = network.with_tensors([t.to(dtype).requires_grad_() for t in network.tensors()])
        rgb = synthesis(made, coords, **options)
        return torch.autograd.grad(rgb, [coords, *made.tensors()], upstream.to(dtype))

    with standing_in(interpreter):
        got, *rest = of_coords(stray, torch.float32, backend=backend, pixel_chunk=pixel_chunk)
    (wanted, *_) = of_coords(coords, torch.float64, backend="reference")
    torch.testing.assert_close(got[:, others].double(), wanted[:, others], rtol=1e-3, atol=1e-3)
    assert [g.shape for g in rest] == [t.shape for t in network.tensors()]


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_tensors_of_any_strides(device):
    network, points, upstream = problem(device.dtype)

    def strided(t):
        return t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t

    network = network.with_tensors([strided(t) for t in network.tensors()])
    assert not network.table.is_contiguous()
    points = [p.repeat_interleave(2, 1)[:, ::2] for p in points]
    assert_like_the_formulas(device, network, points, upstream.mT.contiguous().mT, pixel_chunk=16)
    with torch.no_grad():
        ways = [synthesis(network, *points, backend="triton", inference=way) for way in ("stack", "layered")]
    torch.testing.assert_close(*ways, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("inference", "residual"), [("stack", False), ("layered", False), ("layered", True)])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_ways_to_render(device, inference, residual):
    network, points, _ = problem(device.dtype, residual=residual)
    network = network.with_tensors([t.to(device.kind) for t in network.tensors()])
    points = [t.to(device.kind) for t in points]
    with torch.no_grad(), torch.autocast(device.kind, dtype=device.dtype, enabled=device.dtype != torch.float32):
        rgb = synthesis(network, *points, backend="triton", inference=inference)
    with torch.no_grad():
        plain = ref.synthesis_ref(network, *points, dtype=device.dtype)
        double = network.with_tensors([t.double() for t in network.tensors()])
        wanted = ref.synthesis_ref(double, *(t.double() for t in points))
    assert_as_accurate([rgb], [plain], [wanted], device.dtype)


def test_the_way_is_the_table_s_unless_asked_for(monkeypatch):
    network = draw_network(torch.Generator().manual_seed(0), batch=1, dtype=torch.float32)

    def way(pixels, architecture, residual=False):
        made = draw_network(torch.Generator(), batch=1, widths=(512,) * 3, residual=residual, dtype=torch.float32)
        with standing_in(Recorder(architecture)):
            return dispatch.method_for(made, torch.empty(1, pixels, 2, device="meta"), None, torch.bfloat16)

    assert way(65536, "sm_90") == "stack"
    assert way(4096, "sm_90") == "layered"  # 32 tiles for 132 processors
    assert way(65536, "sm_86") == "layered"  # its L2 does not hold the scratch
    assert way(65536, "sm_90", residual=True) == "stack"
    monkeypatch.setenv("CIPS_FAST_INFERENCE", "layered")
    assert way(65536, "sm_90") == "layered"
    monkeypatch.setenv("CIPS_FAST_INFERENCE", "quick")
    with standing_in(Recorder("sm_90")), pytest.raises(ValueError, match="got 'quick', may be 'auto', 'stack'"):
        dispatch.infer(network, torch.empty(1, 4, 2, device="meta"), dtype=torch.float16)


def test_bad_arguments_are_named():
    network, points, _ = problem(torch.float32)
    for chunk, named in ((0, "0"), ("a", "'a'"), (2.0, r"2\.0"), (True, "True"), (1 << 70, "1180591620717411303424")):
        with pytest.raises(
            ValueError, match=f"pixel_chunk: got {named}, must be a whole number of at least 1, or None"
        ):
            synthesis(network, *points, pixel_chunk=chunk)
    with pytest.raises(ValueError, match=r"coords: got shape \[3, 21, 2\], must be \[2\|1, P, 2\]"):
        synthesis(network, points[0].expand(3, -1, -1))
    with pytest.raises(ValueError, match=r"table_coords: got shape \[1, 20, 2\], must be \[1, 21, 2\]"):
        synthesis(network, points[0], points[1][:, 1:])
    with pytest.raises(ValueError, match=r"table_coords: got shape \[1, 21, 3\]"):
        synthesis(*problem(torch.float32, dims=3)[:1], points[0].new_zeros(1, 21, 3))
    with pytest.raises(ValueError, match="inference: got 'fast', may be 'auto', 'stack', 'layered'"):
        synthesis(network, *points, inference="fast")
