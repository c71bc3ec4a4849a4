"""Tensors of more than 2³¹ elements: one block at the far end of a launch is executed, on windows of memory there.

A window is placed where the kernel would find it if the whole tensor stood before it. An address that was computed in
32 bits points elsewhere, and the emulator raises.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cips_fast import reference as ref
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.report.compile import recipe
from cips_fast.kernels.report.workload import Recorder, meta

from .accuracy import relative_error
from .emulator import EmulatedGPU
from .ptx import Memory

C = 512
FAR = 2**32 // C  # pixels, or points: the element number of this row's start is 2³²
REST = 5


def execute_last_block(call, windows, block):
    """Run one block on windows {argument: (start, array)}, `start` counted in elements, and return them afterwards."""
    program, metadata = EmulatedGPU("sm_80").compiled(call)
    memory = Memory()
    placed = {name: memory.place(array) for name, (_, array) in windows.items()}
    names = [name for name, kind in recipe(call).signature.items() if kind != "constexpr"]
    arguments = [
        placed[name] - windows[name][0] * windows[name][1].itemsize if name in placed else call.arguments[name]
        for name in names
    ]
    grid = (*call.grid, 1, 1)[:3]
    program.launch(memory, grid, 32 * metadata.num_warps, arguments, only=[block], shared=metadata.shared)
    return {name: torch.from_numpy(memory.fetch(address)) for name, address in placed.items()}


def record(run):
    """The launches that `run` makes for sm_80, on tensors without memory."""
    with standing_in(Recorder("sm_80")) as recorder:
        run()
    return recorder.calls


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


def poisoned(*shape, dtype=np.float16):
    return np.full(shape, np.nan, dtype)


def lrelu(x):
    return torch.nn.functional.leaky_relu(x, 0.2)


def test_layer_at_a_far_pixel(rng):
    """Where a residual block ends, so that every tensor of activations is there."""
    from cips_fast.kernels.mod_fc import mod_fc_fwd

    big, w = meta(1, FAR + REST, C, dtype=torch.float16), meta(1, C, C, dtype=torch.float16)
    signs = meta(1, FAR + REST, C, dtype=torch.uint8)
    (call,) = record(lambda: mod_fc_fwd(big, w, meta(C), lrelu=True, around=big, signs=signs))
    x, around, w, bias = (
        normal(rng, REST, C),
        normal(rng, REST, C),
        normal(rng, C, C),
        normal(rng, C).astype(np.float32),
    )
    windows = {
        "x_ptr": (FAR * C, x),
        "w_ptr": (0, w),
        "bias_ptr": (0, bias),
        "around_ptr": (FAR * C, around),
        "y_ptr": (FAR * C, poisoned(REST, C)),
        "signs_ptr": (FAR * C, np.full((REST, C), 2, np.uint8)),
    }
    found = execute_last_block(call, windows, (call.grid[0] - 1, 0, 0))
    y, signs, tile = found["y_ptr"], found["signs_ptr"], call.constants["BLOCK_O"]
    own = lrelu(torch.from_numpy(x).double() @ torch.from_numpy(w).double().mT + torch.from_numpy(bias))
    wanted = (own + torch.from_numpy(around)) / 2**0.5
    assert relative_error(y[:, -tile:], wanted[:, -tile:]) < 1e-3
    assert torch.equal(signs[:, -tile:], (own > 0).byte()[:, -tile:])
    assert y[:, :-tile].isnan().all()
    assert (signs[:, :-tile] == 2).all()


def test_gradients_at_a_far_pixel(rng):
    from cips_fast.kernels.mod_fc_bwd import mod_fc_act_bwd, mod_fc_dgrad

    half = torch.float16
    big, w = meta(1, FAR + REST, C, dtype=half), meta(1, C, C, dtype=half)
    act, dgrad = record(
        lambda: (mod_fc_act_bwd(big, big), mod_fc_dgrad(big, w, around=big, below=big, passed=torch.empty_like(big)))
    )
    dy, y, around, weights = normal(rng, REST, C), normal(rng, REST, C), normal(rng, REST, C), normal(rng, C, C)
    slope = torch.where(torch.from_numpy(y) > 0, 1.0, 0.2).double()

    sums_start = (-(-(FAR + REST) // act.constants["BLOCK_P"]) - 1) * C
    windows = {
        "dy_ptr": (FAR * C, dy),
        "y_ptr": (FAR * C, y),
        "dz_ptr": (FAR * C, poisoned(REST, C)),
        "sums_ptr": (sums_start, poisoned(C, dtype=np.float32)),
    }
    dz = execute_last_block(act, windows, (act.grid[0] - 1, 0, 0))["dz_ptr"]
    tile = act.constants["BLOCK_O"]
    assert relative_error(dz[:, -tile:], (torch.from_numpy(dy).double() * slope)[:, -tile:]) < 1e-3

    windows = {
        "dz_ptr": (FAR * C, dy),
        "w_ptr": (0, weights),
        "around_ptr": (FAR * C, around),
        "below_ptr": (FAR * C, y),
        "dx_ptr": (FAR * C, poisoned(REST, C)),
        "passed_ptr": (FAR * C, poisoned(REST, C)),
    }
    found = execute_last_block(dgrad, windows, (dgrad.grid[0] - 1, 0, 0))
    tile = dgrad.constants["BLOCK_I"]
    wanted = (torch.from_numpy(dy).double() @ torch.from_numpy(weights).double() + torch.from_numpy(around)) / 2**0.5
    assert relative_error(found["passed_ptr"][:, -tile:], wanted[:, -tile:]) < 1e-3
    assert relative_error(found["dx_ptr"][:, -tile:], (wanted * slope)[:, -tile:]) < 1e-3


def test_weight_gradient_of_a_far_split(rng):
    """The second of two splits has one pixel, which starts at element 2³³ for the stride between pixels."""
    from cips_fast.kernels.mod_fc_bwd import mod_fc_wgrad

    half, stride = torch.float16, 2**20
    pixels = 2**13 + 1
    far = torch.empty_strided((1, pixels, C), (pixels * stride, stride, 1), dtype=half, device="meta")
    (call,) = record(lambda: mod_fc_wgrad(far, far))
    call = replace(call, grid=(call.grid[0], 2), arguments=call.arguments | {"pixels": pixels - 1})
    start = (pixels - 1) * stride
    dz, x = normal(rng, 1, C), normal(rng, 1, C)
    windows = {
        "dz_ptr": (start, dz),
        "x_ptr": (start, x),
        "dw_ptr": (C * C, poisoned(C, C, dtype=np.float32)),
    }
    dw = execute_last_block(call, windows, (call.grid[0] - 1, 1, 0))["dw_ptr"]
    rows, cols = call.constants["BLOCK_O"], call.constants["BLOCK_I"]
    wanted = torch.from_numpy(dz).double().mT @ torch.from_numpy(x).double()
    assert relative_error(dw[-rows:, -cols:], wanted[-rows:, -cols:]) < 1e-3


def test_weight_gradient_of_a_far_sample(rng):
    from cips_fast.kernels.mod_fc_bwd import mod_fc_wgrad

    P = 64
    B = FAR // P + 1  # the last sample starts at element 2³², its weights' gradient far beyond
    big = meta(B, P, C, dtype=torch.float16)
    (call,) = record(lambda: mod_fc_wgrad(big, big))
    dz, x = normal(rng, P, C), normal(rng, P, C)
    assert call.grid[1:] == (1,)
    start = (B - 1) * C * C
    windows = {
        "dz_ptr": (FAR * C, dz),
        "x_ptr": (FAR * C, x),
        "dw_ptr": (start, poisoned(C, C, dtype=np.float32)),
    }
    dw = execute_last_block(call, windows, (call.grid[0] - 1, 0, 0))["dw_ptr"]
    rows, cols = call.constants["BLOCK_O"], call.constants["BLOCK_I"]
    wanted = torch.from_numpy(dz).double().mT @ torch.from_numpy(x).double()
    assert relative_error(dw[-rows:, -cols:], wanted[-rows:, -cols:]) < 1e-3


def test_encoding_of_a_far_point(rng):
    from cips_fast.kernels.fourier import fourier_fwd

    half = torch.float16
    (call,) = record(lambda: fourier_fwd(meta(FAR + REST, 2), meta(C, 2), meta(C), dtype=half))
    coords, freq, phase = (rng.standard_normal(shape).astype(np.float32) for shape in ((REST, 2), (C, 2), (C,)))
    windows = {
        "coords_ptr": (FAR * 2, coords),
        "freq_ptr": (0, freq),
        "phase_ptr": (0, phase),
        "out_ptr": (FAR * C, poisoned(REST, C)),
    }
    waves = execute_last_block(call, windows, (call.grid[0] - 1, 0, 0))["out_ptr"]
    wanted = ref.fourier_encode_ref(*(torch.from_numpy(a).double() for a in (coords, freq, phase)))
    tile = call.constants["BLOCK_C"]
    assert relative_error(waves[:, -tile:], wanted[:, -tile:]) < 1e-3


def test_gradients_of_a_far_point(rng):
    from cips_fast.kernels.embedding import embedding_bwd_coords
    from cips_fast.kernels.fourier import fourier_bwd_coords

    half, N = torch.float16, FAR + REST
    dout, freq, phase = normal(rng, REST, C), *(rng.standard_normal(s).astype(np.float32) for s in ((C, 2), (C,)))
    coords = rng.uniform(-0.9, 0.9, (REST, 2)).astype(np.float32)
    table = rng.standard_normal((4, 4, C)).astype(np.float32)
    (waves,) = record(lambda: fourier_bwd_coords(meta(N, C, dtype=half), meta(N, 2), meta(C, 2), meta(C)))
    (read,) = record(
        lambda: embedding_bwd_coords(meta(N, C, dtype=half), meta(N, 2), meta(4, 4, C), align_corners=True)
    )
    found = {
        "dout_ptr": (FAR * C, dout),
        "coords_ptr": (FAR * 2, coords),
        "freq_ptr": (0, freq),
        "phase_ptr": (0, phase),
    }
    result = {"dcoords_ptr": (FAR * 2, poisoned(REST, 2, dtype=np.float32))}
    dx = execute_last_block(waves, found | result, (waves.grid[0] - 1, 0, 0))["dcoords_ptr"][:, 0]
    found = {"dout_ptr": (FAR * C, dout), "table_coords_ptr": (FAR * 2, coords), "table_ptr": (0, table)}
    result = {"dtable_coords_ptr": (FAR * 2, poisoned(REST, 2, dtype=np.float32))}
    dat = execute_last_block(read, found | result, (read.grid[0] - 1, 0, 0))["dtable_coords_ptr"]

    at = torch.from_numpy(coords).double().requires_grad_()
    upstream = torch.from_numpy(dout).double()
    encoded = ref.fourier_encode_ref(at, torch.from_numpy(freq).double(), torch.from_numpy(phase).double())
    assert relative_error(dx, torch.autograd.grad(encoded, at, upstream)[0][:, 0]) < 1e-4
    value = ref.embed_coords_ref(at, torch.from_numpy(table).double())
    assert relative_error(dat, torch.autograd.grad(value, at, upstream)[0]) < 1e-4


def test_table_gradient_of_a_far_cell(rng):
    """2048² cells of 512 channels and more: the last cell starts at element 2³¹ or beyond."""
    from cips_fast.kernels.embedding import embedding_bwd_table

    N, side = 8, 2049
    calls = record(
        lambda: embedding_bwd_table(
            meta(N, C, dtype=torch.float16), meta(N, 2), torch.Size((side, side, C)), align_corners=True
        )
    )
    call, last = calls[-1], side * side - 1
    assert last * C >= 2**31
    dout, weights = normal(rng, N, C), rng.uniform(size=4 * N).astype(np.float32)
    order = np.arange(4 * N)
    windows = {
        "dout_ptr": (0, dout),
        "order_ptr": (0, order),
        "weights_ptr": (0, weights),
        "starts_ptr": (last, np.array([4 * N - 6, 4 * N])),  # the last six pairs are this cell's
        "dtable_ptr": (last * C, poisoned(C, dtype=np.float32)),
    }
    tile = call.constants["BLOCK_C"]
    dtable = execute_last_block(call, windows, (last, 0, call.grid[2] - 1))["dtable_ptr"]
    wanted = sum(float(weights[pair]) * torch.from_numpy(dout[pair // 4]).double() for pair in order[-6:])
    assert relative_error(dtable[-tile:], wanted[-tile:]) < 1e-5
