"""Every kernel as compiled for sm_80 and sm_90, executed instruction by instruction, against the float64 formulas.

Unlike the interpreter this runs what a GPU would run, in bfloat16 too: the table's tiles, asynchronous copies, tensor
core instructions, swizzled shared memory. What it cannot show stands in docs/verification.md.
"""

import pytest
import torch

from cips_fast import functional, grids
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.report.workload import float32_products
from cips_fast.kernels.tiles import gemm_tiles

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .emulator import EmulatedGPU
from .layers import off_the_kink
from .test_pixel_styles import check_kernel as check_pixel_styles

# Most of the time of a case is compilation. In the quick tier an architecture has one dtype, in all modes; what is not
# a plain layer runs on sm_90 alone.
pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.exhaustive("sm_80-*-bf16*", "sm_90-*-fp16*")]

ARCHITECTURES = ["sm_80", "sm_90"]
MODES = ["lazy", "eager", "crossed"]
HALVES = [torch.bfloat16, torch.float16]
# One tile and a ragged rest in every dimension, rows of whole 16 bytes; and odd sizes, whose loads are narrow.
SHAPES = [(1, 130, 80, 272), (2, 65, 33, 24)]
IDS = [f"B{b}-P{p}-I{i}-O{o}" for b, p, i, o in SHAPES]


@pytest.fixture(params=HALVES, ids=["bf16", "fp16"])
def dtype(request):
    return request.param


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture(params=ARCHITECTURES)
def gpu(request, mode):
    with standing_in(EmulatedGPU(request.param, mode)) as gpu:
        yield gpu


def layer_inputs(shape, dtype, *, shared=False):
    batch, pixels, inputs, outputs = shape
    rng = torch.Generator().manual_seed(batch * 1009 + pixels * 31 + inputs)
    shapes = [(1 if shared else batch, pixels, inputs), (outputs, inputs), (batch, inputs), (outputs,)]
    *tensors, upstream = [draw(rng, *shape).to(dtype) for shape in [*shapes, (batch, pixels, outputs)]]
    return tensors, off_the_kink(tensors, upstream)


def check_layer(shape, dtype, *, shared=False, **options):
    inputs, upstream = layer_inputs(shape, dtype, shared=shared)

    def call(backend):
        return lambda *tensors: functional.mod_fc(*tensors, **options, backend=backend)

    wanted = value_and_gradients(call("reference"), [t.double() for t in inputs], upstream)
    plain = value_and_gradients(call("reference"), inputs, upstream)
    got = value_and_gradients(call("triton"), inputs, upstream)
    assert_as_accurate(got, plain, wanted, dtype)
    return got


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_layer_and_its_gradients(gpu, dtype, shape):
    check_layer(shape, dtype)


@pytest.mark.exhaustive("sm_80-*")
def test_gradients_whose_pixels_are_split(gpu, dtype):
    pixels = 8 * 64 * 2 + 7
    splits = pixels // (8 * gemm_tiles("wgrad", (24, 33, pixels), dtype, gpu.architecture).depth)
    check_layer((1, pixels, 33, 24), dtype)
    assert splits > 1
    assert any(call.grid[1:] == (splits,) for call in gpu.calls)


@pytest.mark.exhaustive("sm_80-*")
def test_layer_on_shared_pixels(gpu, dtype):
    check_layer((2, 130, 80, 96), dtype, shared=True)


@pytest.mark.exhaustive("sm_80-*")
def test_colours(gpu, dtype):
    check_layer((2, 130, 80, 3), dtype, activation="linear", demodulate=False)


@pytest.mark.exhaustive("high-sm_80", "highest-sm_90")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("setting", ["highest", "high"])
def test_float32_layer_as_pytorch_is_set(architecture, setting):
    inputs, upstream = layer_inputs((1, 40, 24, 40), torch.float32)
    layer = lambda *t: functional.mod_fc(*t, backend="triton")
    reference = lambda *t: functional.mod_fc(*t, backend="reference")
    with standing_in(EmulatedGPU(architecture)) as gpu, float32_products(setting):
        got = value_and_gradients(layer, inputs, upstream)
    assert any("tf32" in name for name in gpu.counts) == (setting == "high")
    wanted = value_and_gradients(reference, [t.double() for t in inputs], upstream)
    if setting == "highest":
        assert_as_accurate(got, value_and_gradients(reference, inputs, upstream), wanted, torch.float32)
    else:  # factors of 11 bits, as float16 has; sums in float32
        halves = value_and_gradients(reference, [t.half() for t in inputs], upstream)
        assert_as_accurate(got, halves, wanted, torch.float16)


@pytest.mark.exhaustive("sm_80-*")
def test_work_of_the_neighbours_in_the_epilogues(gpu, dtype):
    from cips_fast.kernels.mod_fc import mod_fc_fwd
    from cips_fast.kernels.mod_fc_bwd import mod_fc_dgrad

    B, P, I, O = 2, 70, 144, 80
    rng = torch.Generator().manual_seed(1)
    shapes = [(B, P, I), (B, O, I), (O,), (B, 3, O), (B, P, O), (B, P, I), (B, 3, I)]
    tensors = [draw(rng, *shape).to(dtype) for shape in shapes]
    drgb = draw(rng, B, P, 3).float()

    def formula(x, w, bias, tap_above, dz, below, tap_below, drgb):
        y = torch.nn.functional.leaky_relu(x @ w.mT + 1.5 * bias, 0.2)
        dx = dz @ w + drgb.to(dz.dtype) @ tap_below
        dx = torch.where(below > 0, dx, 0.2 * dx)
        return [y, y @ tap_above.mT, dx, dx.sum((0, 1))]

    x, w, bias, tap_above, dz, below, tap_below = tensors
    y, parts = mod_fc_fwd(x, w, bias, lrelu=True, gain=1.5, rgb_w=tap_above)
    dx, sums = mod_fc_dgrad(dz, w, below=below, drgb=drgb, rgb_w=tap_below, want_sums=True)
    wanted = formula(*(t.double() for t in (*tensors, drgb)))
    assert_as_accurate([y, parts.sum(0), dx, sums.sum(0)], formula(*tensors, drgb), wanted, dtype)


@pytest.mark.exhaustive("sm_80-*")
@pytest.mark.parametrize("shape", [(1, 130, 80, 272, 2), (2, 65, 33, 24, 3)], ids=str)
def test_layer_of_pixel_styles(gpu, dtype, shape):
    check_pixel_styles(shape, "cpu", dtype)


@pytest.mark.exhaustive("sm_80-*")
@pytest.mark.parametrize("dims", [2, 3])
def test_encoding_and_its_gradients(gpu, dtype, dims):
    rng = torch.Generator().manual_seed(2)
    coords = (torch.rand(1, 45, dims, generator=rng) * 2.4 - 1.2) * 100
    freq, phase, table = torch.randn(24, dims, generator=rng), torch.randn(24, generator=rng), draw(rng, 4, 5, 24)
    at = (coords[..., :2] / 100).contiguous()
    inputs = [coords, freq, phase, table.float(), at]
    upstream = draw(rng, 1, 45, 48).to(dtype)

    def call(backend):
        def encode(coords, freq, phase, table, at):
            return functional.fourier_encode(coords, freq, phase, table, table_coords=at, dtype=dtype, backend=backend)

        return encode

    wanted = value_and_gradients(
        lambda c, f, p, t, at: functional.fourier_encode(c, f, p, t, table_coords=at, backend="reference"),
        [t.double() for t in inputs],
        upstream,
    )
    plain = value_and_gradients(call("reference"), inputs, upstream)
    got = value_and_gradients(call("triton"), inputs, upstream)
    assert_as_accurate(got[:1], plain[:1], wanted[:1], dtype)
    for ours, truth in zip(got[1:], wanted[1:], strict=True):  # arguments of hundreds, all in float32
        assert (ours.double() - truth).norm() <= 1e-5 * truth.norm()


@pytest.mark.exhaustive("1-*")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", [0, 1])
def test_warps_in_any_order_give_the_same_bits(architecture, seed):
    results = []
    for order in (None, seed):
        with standing_in(EmulatedGPU(architecture, order=order)):
            results.append(check_layer((1, 70, 80, 144), torch.bfloat16))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.exhaustive("*-sm_80")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("where", ["anywhere", "one place"])
def test_encoding_gradients_have_the_same_bits_in_any_order(architecture, where):
    rng = torch.Generator().manual_seed(4)
    coords = torch.rand(1, 45, 2, generator=rng) * 2.4 - 1.2 if where == "anywhere" else torch.full((1, 45, 2), 0.3)
    inputs = [coords, torch.randn(24, 2, generator=rng), torch.randn(24, generator=rng), draw(rng, 2, 2, 24).float()]
    upstream = draw(rng, 1, 45, 48).bfloat16()
    encode = lambda *t: functional.fourier_encode(*t, dtype=torch.bfloat16, backend="triton")
    results = []
    for order in (None, 0, 1):
        with standing_in(EmulatedGPU(architecture, order=order)):
            results.append(value_and_gradients(encode, inputs, upstream))
    for first, *others in zip(*results, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_native_grid_gradient_is_the_upstream_gradient(architecture):
    from cips_fast.kernels.embedding import embedding_bwd_table

    at = grids.plane(9, 9).view(81, 2)
    dread = torch.randn(81, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    with standing_in(EmulatedGPU(architecture)):
        dtable = embedding_bwd_table(dread, at, torch.Size((9, 9, 32)), align_corners=True)
    assert torch.equal(dtable.view(81, 32), dread.float())
