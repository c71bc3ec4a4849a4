"""The encoding's kernels against the float64 formulas: large arguments, all gradients, equal bits."""

import math
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from cips_fast import functional, grids
from cips_fast import reference as ref
from cips_fast.backends import choice, triton_ops
from cips_fast.kernels.device import standing_in

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .devices import DEVICES
from .test_functional import read_table

FP32 = [DEVICES[0], DEVICES[2]]  # coordinates are float32, whatever the dtype of the result is


def encoding_inputs(device, *, batch=2, points=45, channels=20, dims=2, cells=(5, 7)):
    """Coordinates (some beyond the border), frequencies, phases, a table and an upstream gradient, float32."""
    rng = torch.Generator().manual_seed(points * 31 + channels)
    coords = torch.rand(batch, points, dims, generator=rng, dtype=torch.float64) * 2.4 - 1.2
    rest = [draw(rng, *shape) for shape in ((channels, dims), (channels,), (*cells, channels))]
    upstream = draw(rng, batch, points, 2 * channels)
    return [t.to(device.kind, torch.float32) for t in (coords, *rest, upstream)]


def check_encoding(inputs, upstream, ours="triton", **options):
    def call(backend):
        return lambda *tensors: functional.fourier_encode(*tensors, **options, backend=backend)

    wanted = value_and_gradients(call("reference"), [t.double() for t in inputs], upstream)
    plain = value_and_gradients(call("reference"), inputs, upstream)
    got = value_and_gradients(call(ours), inputs, upstream)
    # Near its zero a cosine has the same absolute error as elsewhere, so its relative error says nothing.
    assert_as_accurate(got, plain, wanted, torch.float32, scale=float(upstream.norm()))


@pytest.mark.parametrize("device", FP32, indirect=True)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("points", "channels"), [(1, 1), (16, 16), (17, 3), (45, 130)])
def test_waves_and_table(device, align_corners, points, channels):
    *inputs, upstream = encoding_inputs(device, points=points, channels=channels)
    check_encoding(inputs, upstream, align_corners=align_corners)


@pytest.mark.parametrize("device", FP32, indirect=True)
@pytest.mark.parametrize("dims", [2, 3])
def test_waves_alone(device, dims):
    coords, freq, phase, _, upstream = encoding_inputs(device, dims=dims)
    check_encoding([coords, freq, phase], upstream[..., :20])


@pytest.mark.parametrize("device", FP32, indirect=True)
def test_three_dimensional_waves_beside_a_table(device):
    coords, freq, phase, table, upstream = encoding_inputs(device, dims=3)
    at = coords[..., :2].flip(1)

    def call(backend):
        def encode(coords, freq, phase, table, at):
            return functional.fourier_encode(coords, freq, phase, table, table_coords=at, backend=backend)

        return encode

    inputs = [coords, freq, phase, table, at]
    wanted = value_and_gradients(call("reference"), [t.double() for t in inputs], upstream)
    plain = value_and_gradients(call("reference"), inputs, upstream)
    assert_as_accurate(value_and_gradients(call("triton"), inputs, upstream), plain, wanted, torch.float32)


@pytest.mark.parametrize("device", FP32, indirect=True)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("largest", [10.0, 1e3, 1e4])
def test_sine_is_right_for_large_arguments(device, dims, largest):
    rng = torch.Generator().manual_seed(7)
    coords = ((torch.rand(1, 200, dims, generator=rng) * 2 - 1) * 1024).to(device.kind)  # pixels of a large image
    freq = (torch.rand(40, dims, generator=rng) * 2 - 1).to(device.kind) * (largest / 1024 / dims)
    phase = torch.randn(40, generator=rng).to(device.kind)
    argument = coords.double() @ freq.double().mT + phase.double()
    assert argument.abs().max() > largest / 3
    got = functional.fourier_encode(coords, freq, phase, backend="triton")
    assert (got - argument.sin()).abs().max() < 1e-5
    if largest == 1e4:  # in plain float32 these digits are lost before the sine
        assert (functional.fourier_encode(coords, freq, phase, backend="reference") - argument.sin()).abs().max() > 1e-4


@pytest.mark.parametrize("device", FP32, indirect=True)
def test_cosines_of_the_gradient_are_right_for_large_arguments(device):
    coords, _, phase, _, upstream = encoding_inputs(device)
    freq = 4e3 * encoding_inputs(device)[1]
    wanted = value_and_gradients(
        lambda *t: functional.fourier_encode(*t, backend="reference"),
        [t.double() for t in (coords, freq, phase)],
        upstream[..., :20],
    )
    got = value_and_gradients(
        lambda *t: functional.fourier_encode(*t, backend="triton"), [coords, freq, phase], upstream[..., :20]
    )
    # Plain float32 is too inaccurate to compare with; the bound is 1e-5 of the float64 result.
    for ours, truth in zip(got, wanted, strict=True):
        assert (ours.double() - truth).norm() <= 1e-5 * truth.norm()


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_result_may_be_half(device):
    *inputs, upstream = encoding_inputs(device)
    upstream = upstream.to(device.dtype)

    def call(backend):
        return lambda *tensors: functional.fourier_encode(*tensors, dtype=device.dtype, backend=backend)

    in_float64 = lambda *tensors: functional.fourier_encode(*tensors, backend="reference")
    wanted = value_and_gradients(in_float64, [t.double() for t in inputs], upstream)
    plain = value_and_gradients(call("reference"), inputs, upstream)
    got = value_and_gradients(call("triton"), inputs, upstream)
    assert got[0].dtype == device.dtype
    assert_as_accurate(got[:1], plain[:1], wanted[:1], device.dtype)
    assert_as_accurate(got[1:], plain[1:], wanted[1:], torch.float32)


@pytest.mark.parametrize("device", FP32[:1], indirect=True)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.integers(1, 40),
    channels=st.integers(1, 40),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    align_corners=st.booleans(),
)
def test_encodings_of_drawn_shapes(device, points, channels, cells, align_corners):
    *inputs, upstream = encoding_inputs(device, points=points, channels=channels, cells=cells)
    check_encoding(inputs, upstream, align_corners=align_corners)


@pytest.mark.exhaustive("native grid-interpreter-*", "one place-interpreter-*", "few cells-interpreter-*")
@pytest.mark.parametrize("device", FP32, indirect=True)
@pytest.mark.parametrize("where", ["native grid", "anywhere", "one place", "few cells"])
def test_table_gradient_has_equal_bits_in_two_runs(device, where):
    cells = (2, 2) if where == "few cells" else (12, 12)
    _, freq, phase, table, upstream = encoding_inputs(device, batch=1, points=144, channels=8, cells=cells)
    coords = {
        "native grid": grids.plane(12, 12).view(1, 144, 2).to(device.kind),
        "one place": torch.full((1, 144, 2), 0.3, device=device.kind),
    }.get(where, encoding_inputs(device, batch=1, points=144)[0])
    inputs = [coords, freq, phase, table]
    encode = lambda *t: functional.fourier_encode(*t, backend="triton")
    first, second = (value_and_gradients(encode, inputs, upstream) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    check_encoding(inputs, upstream)


@pytest.mark.parametrize("device", FP32, indirect=True)
@pytest.mark.parametrize("align_corners", [True, False])
def test_coordinates_on_the_border_have_the_gradient_of_grid_sample(device, align_corners):
    """All pixels on the rim of a native grid are there."""
    coords = grids.plane(6, 6, (-1.5, -1.5, 1.5, 1.5)).view(1, 36, 2).clone()
    coords[0, :25] = grids.plane(5, 5).view(25, 2)
    coords = coords.to(device.kind)
    rng = torch.Generator().manual_seed(5)
    table, upstream = draw(rng, 5, 5, 3).to(device.kind).float(), draw(rng, 1, 36, 3).to(device.kind).float()

    def by_grid_sample(coords):
        cells = table.movedim(-1, 0)[None]
        options = {"padding_mode": "border", "align_corners": align_corners}
        return torch.nn.functional.grid_sample(cells, coords[:, None], **options)[:, :, 0].mT

    wanted = value_and_gradients(by_grid_sample, [coords], upstream)
    for backend in ("triton", "reference"):
        read = partial(read_table, table=table, align_corners=align_corners, backend=backend)
        for ours, theirs in zip(value_and_gradients(read, [coords], upstream), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def check_second_derivatives(device, ours):
    *inputs, upstream = encoding_inputs(device, batch=1, points=6, channels=3)

    def second(tensors, backend, autocast=False):
        tensors = [t.detach().requires_grad_() for t in tensors]
        with torch.autocast(device.kind, dtype=torch.bfloat16, enabled=autocast):
            encoded = functional.fourier_encode(*tensors, backend=backend)
            gradients = torch.autograd.grad(encoded, tensors, upstream.to(encoded.dtype), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)

    wanted, plain = second([t.double() for t in inputs], "reference"), second(inputs, "reference")
    assert_as_accurate(second(inputs, ours), plain, wanted, torch.float32)
    assert_as_accurate(second(inputs, ours, autocast=True), plain, wanted, torch.float32)


@pytest.mark.parametrize("device", FP32, indirect=True)
def test_second_derivatives_are_those_of_the_formula(device):
    check_second_derivatives(device, "triton")


def test_operators_are_registered_as_pytorch_asks(interpreter):
    *inputs, upstream = encoding_inputs(DEVICES[0].values[0], batch=1, points=6, channels=3)
    coords, freq, phase, table = (t.requires_grad_() for t in inputs)
    rows, dout = coords.detach()[0], upstream[0]
    with standing_in(interpreter):
        opcheck(triton_ops.fourier, (coords[0], freq, phase, coords[0], table, True, torch.float32))
        opcheck(triton_ops.fourier, (coords[0], freq, phase, None, None, True, torch.float16))
        freq, phase, table = freq.detach(), phase.detach(), table.detach()
        opcheck(triton_ops.fourier_bwd_freq, (dout[:, :3], rows, freq, phase))
        opcheck(triton_ops.fourier_bwd_coords, (dout[:, :3], rows, freq, phase))
        opcheck(triton_ops.embedding_bwd_table, (dout[:, 3:], rows, table, True))
        opcheck(triton_ops.embedding_bwd_coords, (dout[:, 3:], rows, table, True))


@pytest.mark.parametrize("device", FP32, indirect=True)
def test_autocast_rounds_the_result_and_never_the_phase(device):
    coords = torch.full((1, 1, 2), 0.7, device=device.kind)
    freq, phase = torch.full((4, 2), 300.0, device=device.kind), torch.zeros(4, device=device.kind)
    with torch.autocast(device.kind, dtype=torch.float16):
        got = functional.fourier_encode(coords, freq, phase, dtype=torch.float16, backend="triton")
    argument = 2 * 300.0 * float(torch.tensor(0.7))
    assert abs(float(got[0, 0, 0]) - math.sin(argument)) < 5e-4


@pytest.mark.parametrize("device", FP32, indirect=True)
def test_unserved_dimensions_are_named(device):
    inputs = [torch.zeros(*shape, device=device.kind) for shape in ((1, 5, 1), (3, 1), (3,))]
    with pytest.raises(ValueError, match="freq: got 1 coordinate dimensions, backend 'triton' takes 2 or 3"):
        functional.fourier_encode(*inputs, backend="triton")


@pytest.mark.skipif(not choice._have_triton, reason="Triton is not installed")
def test_auto_encodes_dimensions_that_the_kernels_do_not_take_by_the_reference():
    """A GPU is not needed to choose: the layers of such a network keep the kernels."""
    gpu = torch.device("cuda", 0)
    assert choice.resolve_encoding_backend("auto", gpu, torch.float32, 3) == "triton"
    assert choice.resolve_encoding_backend("auto", gpu, torch.float32, 4) == "reference"
    assert choice.resolve_backend("auto", gpu, torch.float32) == "triton"
    assert choice.resolve_encoding_backend("auto", torch.device("cpu"), torch.float32, 4) == "cpu"


STRAY = [math.nan, math.inf, -math.inf, 1e38, -1e38]


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_stray_coordinate_is_its_own_points_alone(interpreter, large_tiles, backend, align_corners):
    """Values and gradients of the other points do not change, and no address is computed from the stray coordinate."""
    coords, freq, phase, table, upstream = encoding_inputs(DEVICES[0].values[0], batch=1, points=24)
    stray = coords.clone()
    points = torch.arange(2 * len(STRAY)).view(len(STRAY), 2) + 3
    for axis in range(2):
        stray[0, points[:, axis], axis] = torch.tensor(STRAY)
    others = torch.ones(24, dtype=torch.bool).index_fill_(0, points.flatten(), False)
    upstream = upstream * others[:, None]  # so that stray points do not add to the gradients of the parameters

    def encode(*tensors):
        return functional.fourier_encode(*tensors, align_corners=align_corners, backend=backend)

    with standing_in(interpreter):
        got = value_and_gradients(encode, [stray, freq, phase, table], upstream)
    wanted = value_and_gradients(
        lambda *t: functional.fourier_encode(*t, align_corners=align_corners, backend="reference"),
        [t.double() for t in (coords, freq, phase, table)],
        upstream,
    )
    for ours, truth in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours[:, others].double(), truth[:, others], rtol=1e-4, atol=1e-4)
    assert got[0][0, points[0]].isnan().all()  # a NaN in either coordinate: the waves and the read are NaN
    assert got[0][0, points[1:3], :20].isnan().all()  # infinite: the waves are NaN; the table is read at its border
    for infinite, x in ((points[1, 0], 1.5), (points[2, 0], -1.5)):
        border = torch.tensor([[[x, coords[0, infinite, 1]]]])
        wanted_read = ref.embed_coords_ref(border, table, align_corners)[0, 0]
        torch.testing.assert_close(got[0][0, infinite, 20:], wanted_read, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
def test_where_a_table_is_read_may_be_nan(interpreter, large_tiles, backend):
    coords, freq, phase, table, upstream = encoding_inputs(DEVICES[0].values[0], batch=1, points=9)
    at = coords.clone()
    at[0, 4, 1] = math.nan

    def encode(at, table):
        return functional.fourier_encode(coords, freq, phase, table, table_coords=at, backend=backend)

    with standing_in(interpreter):
        encoded, dat, dtable = value_and_gradients(encode, [at, table], upstream)
    assert encoded[0, 4, 20:].isnan().all()
    assert not encoded[0, 4, :20].isnan().any()
    assert encoded.isnan().sum() == 20
    assert dat[:, torch.arange(9) != 4].isfinite().all()
    assert dtable.shape == table.shape


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 5, 2), (1, 0, 2), (0, 0, 2)])
def test_no_points(interpreter, backend, shape):
    _, freq, phase, table, _ = encoding_inputs(DEVICES[0].values[0], batch=1)
    with standing_in(interpreter):
        encoded, *gradients = value_and_gradients(
            lambda *t: functional.fourier_encode(*t, backend=backend),
            [torch.zeros(shape), freq, phase, table],
            torch.zeros(*shape[:2], 40),
        )
    assert encoded.shape == (*shape[:2], 40)
    assert [g.shape for g in gradients] == [shape, freq.shape, phase.shape, table.shape]
    assert not any(g.any() for g in gradients)
