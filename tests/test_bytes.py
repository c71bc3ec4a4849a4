"""Bytes as the cost model counts them, against what compiled code loads and stores when it is executed, to the byte.

Compared are bytes that instructions ask for, where several threads that ask for one element count once: how many
threads hold an element of a small tile is the compiler's choice and no property of the kernel.
"""

from functools import cache

import pytest
import torch

pytest.importorskip("triton", reason="no Triton")

from cips_fast.kernels import embedding, fourier, mod_fc, mod_fc_bwd, mod_fc_mixed, modulate, stack, stack_narrow
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.network import Network
from cips_fast.kernels.report.cost import KERNELS, cost
from cips_fast.kernels.report.workload import Recorder

from .emulator import EmulatedGPU

ARCHITECTURES = ["sm_80", "sm_90"]
# Several tiles and a ragged rest in every dimension of some kernel; and odd sizes, whose loads are narrow.
SHAPES = [(2, 140, 80, 272), (1, 70, 33, 24)]

NOT_COUNTED = ("entries_ptr",)  # a few numbers that all threads read, as often as the compiler likes


def half(*shape):
    return torch.ones(*shape, dtype=torch.bfloat16)


def run_layer(B, P, I, O):
    x, w, dz = half(B, P, I), half(B, O, I), half(B, P, O)
    mod_fc.mod_fc_fwd(x, w, torch.ones(O), lrelu=True, rgb_w=half(B, 3, O))
    mod_fc.mod_fc_fwd(x, w, None, lrelu=False)
    signs = torch.ones(B, P, O, dtype=torch.uint8)
    mod_fc.mod_fc_fwd(x, w, None, lrelu=True, around=dz, signs=signs)
    mod_fc_bwd.mod_fc_dgrad(x, w.mT, around=dz, below=signs, passed=torch.empty_like(dz))
    mod_fc_bwd.mod_fc_act_bwd(dz, half(B, P, O))
    mod_fc_bwd.mod_fc_dgrad(dz, w)
    mod_fc_bwd.mod_fc_dgrad(dz, w, below=x, drgb=torch.ones(B, P, 3), rgb_w=half(B, 3, I), want_sums=True)
    mod_fc_bwd.mod_fc_wgrad(dz, x)


def run_layer_on_shared_pixels(B, P, I, O):
    x, w, dz = half(1, P, I), half(B, O, I), half(B, P, O)
    mod_fc.mod_fc_fwd(x, w, None, lrelu=True)
    mod_fc_bwd.mod_fc_dgrad(dz, w, shared=True, below=x)
    dw = mod_fc_bwd.mod_fc_wgrad(dz, x)
    mod_fc_bwd.mod_fc_wgrad(dz[:, 20:], x[:, 20:], into=dw)


def run_pixel_styles(B, P, I, O, J):
    tensors = (half(B, P, I), torch.ones(O, I), torch.ones(J, I))
    mod_fc_mixed.mod_fc_mixed(*tensors, torch.ones(O), torch.ones(B, P, J), demodulate=True, lrelu=True, gain=1.4)
    mod_fc_mixed.mod_fc_mixed(*tensors, None, torch.ones(B, P, J), demodulate=False, lrelu=False, gain=1.0)


def run_modulation(B, I, O):
    weight, style = torch.ones(O, I), torch.ones(B, I)
    _, d = modulate.modulate_fwd(weight, style, demodulate=True, gain=1.4, dtype=torch.bfloat16)
    modulate.modulate_bwd(torch.ones(B, 3, O, I), weight, style, d, demodulate=True, gain=1.4)


def points_apart(columns, rows):
    """Points with four cells each of their own, in a table of 2·columns + 1 by 2·rows + 1 cells."""
    x, y = torch.meshgrid(torch.arange(columns) + 0.25, torch.arange(rows) + 0.25, indexing="ij")
    return torch.stack([x.flatten() / columns * 2 - 1, y.flatten() / rows * 2 - 1], 1).contiguous()


def run_encoding(C, dims):
    at, table = points_apart(6, 3), torch.ones(7, 13, C)
    coords = torch.cat([at, at[:, :1]], 1)[:, :dims].contiguous()
    freq, phase, dout = torch.ones(C, dims), torch.ones(C), half(len(at), C)
    fourier.fourier_fwd(coords, freq, phase, at, table, dtype=torch.bfloat16)
    fourier.fourier_bwd_freq(dout, coords, freq, phase)
    fourier.fourier_bwd_coords(dout, coords, freq, phase)
    dtable = embedding.embedding_bwd_table(dout, at, table.shape, align_corners=True)
    embedding.embedding_bwd_table(dout, at, table.shape, align_corners=True, into=dtable)
    embedding.embedding_bwd_coords(dout, at, table, align_corners=True)


def run_stack(residual, device="cpu", form=stack):
    """A ragged tile of pixels; tiles cover the channels exactly."""
    C, layers, taps, at = 32, 5, 1 if residual else 2, points_apart(15, 10).to(device)

    def ones(*shape):
        return torch.ones(*shape, device=device)

    network = Network(
        freq=ones(C, 2),
        phase=ones(C),
        table=ones(21, 31, C),
        weights=[ones(2 * C, 2 * C)] * layers,
        biases=[ones(2 * C)] * layers,
        styles=[ones(1, 2 * C)] * layers,
        tap_weights=[ones(3, 2 * C)] * taps,
        tap_biases=[ones(3)] * taps,
        tap_styles=[ones(1, 2 * C)] * taps,
        residual=residual,
    )
    form.infer(network, at[None].clone(), at[None], dtype=torch.bfloat16)


def run_layers():
    for shape in SHAPES:
        run_layer(*shape)
    run_layer_on_shared_pixels(2, 130, 80, 96)
    mod_fc_bwd.mod_fc_wgrad(half(1, 8 * 64 * 2 + 7, 24), half(1, 8 * 64 * 2 + 7, 33))  # pixels in two splits


def run_encodings():
    run_encoding(150, dims=2)
    run_encoding(24, dims=3)
    points = 1100  # in two splits
    fourier.fourier_bwd_freq(half(points, 8), torch.ones(points, 2), torch.ones(8, 2), torch.ones(8))


# What launches a kernel, by the first words of its name.
RUNS = {
    "mod_fc_mixed": lambda: [run_pixel_styles(*shape, 2) for shape in SHAPES],
    "mod_fc": run_layers,
    "modulate": lambda: run_modulation(2, 80, 272),
    "fourier": run_encodings,
    "embedding": run_encodings,
    "stack_narrow": lambda: run_stack(residual=False, form=stack_narrow),
    "stack": lambda: [run_stack(residual) for residual in (False, True)],
}


@cache
def execute(architecture, run):
    with standing_in(EmulatedGPU(architecture)) as gpu:
        run()
    return gpu


def executed(architecture, kernel):
    """The launches of a kernel, and the traffic of each."""
    gpu = execute(architecture, next(run for words, run in RUNS.items() if kernel.startswith(words)))
    return [(c, t) for c, t in zip(gpu.calls, gpu.traffic, strict=True) if c.kernel.fn.__name__ == kernel]


@pytest.mark.exhaustive("sm_80-*")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bytes_are_those_of_the_model(architecture, kernel):
    launches = executed(architecture, kernel)
    assert launches
    for call, traffic in launches:
        modelled = cost(call)

        def seen(what, traffic=traffic):
            moved = {name: getattr(bytes_, what) for name, bytes_ in traffic.items() if name not in NOT_COUNTED}
            return {name: size for name, size in moved.items() if size}

        assert {name: b.requested for name, b in modelled.loads.items()} == seen("loaded")
        assert {name: b.requested for name, b in modelled.stores.items()} == seen("stored")
        assert {name: b.once for name, b in modelled.loads.items()} == seen("distinct_loaded")
        assert {name: b.once for name, b in modelled.stores.items()} == seen("distinct_stored")


REACHED = {
    "wgrad in splits": ("mod_fc_wgrad", lambda c: c.grid[1] > 1),
    "wgrad that adds": ("mod_fc_wgrad", lambda c: c.constants["ADD"]),
    "table gradient that adds": ("embedding_bwd_table", lambda c: c.constants["ADD"]),
    "frequency gradient in splits": ("fourier_bwd_freq", lambda c: c.grid[1] > 1),
    "dgrad with sums": ("mod_fc_dgrad", lambda c: c.constants["SUM_B"]),
    "shared pixels": ("mod_fc_fwd", lambda c: c.arguments["x_ptr"].shape[0] < c.arguments["w_ptr"].shape[0]),
}


@pytest.mark.exhaustive("sm_80-*")
@pytest.mark.parametrize("case", REACHED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_launches_reach_what_the_model_tells_apart(architecture, case):
    kernel, holds = REACHED[case]
    assert any(holds(call) for call, _ in executed(architecture, f"{kernel}_kernel"))


@pytest.mark.exhaustive("sm_80-*")
@pytest.mark.parametrize("residual", [False, True], ids=["skip", "res"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_without_memory_are_those_of_a_network_of_one_width(architecture, residual):
    """All but the table's read, of which the points decide."""
    with standing_in(Recorder(architecture)) as recorder:
        run_stack(residual, "meta")
    wanted, _ = executed(architecture, "stack_kernel")[residual]
    got, wanted = cost(recorder.calls[-1]), cost(wanted)
    assert (got.flop, got.stores) == (wanted.flop, wanted.stores)
    assert {**got.loads, "table_ptr": None} == {**wanted.loads, "table_ptr": None}


def test_traffic_goes_by_argument():
    """A strided operand counts where it is touched."""
    wide = half(1, 33, 64)
    with standing_in(EmulatedGPU("sm_80")) as gpu:
        mod_fc_bwd.mod_fc_act_bwd(wide[..., :24], half(1, 33, 24))
    (traffic,) = gpu.traffic
    assert traffic["dy_ptr"].loaded == traffic["dy_ptr"].distinct_loaded == 33 * 24 * 2
    assert traffic["dy_ptr"].stored == 0
    assert traffic["dz_ptr"].stored == traffic["dz_ptr"].distinct_stored == 33 * 24 * 2
    assert traffic["sums_ptr"].stored == 2 * 24 * 4  # two tiles of pixels
