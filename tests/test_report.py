"""The report: known figures, what is read from compiled code, and how the launches of an image are counted."""

import json
import re

import pytest
import torch

pytest.importorskip("triton", reason="no Triton")

from cips_fast import grids
from cips_fast import reference as ref
from cips_fast.kernels import chips, limits, mod_fc_bwd
from cips_fast.kernels.network import Network
from cips_fast.kernels.report import __main__, ledger, per_image, per_kernel, printing, published_formulation
from cips_fast.kernels.report.compile import Resources, compile_call, resources
from cips_fast.kernels.report.disassembly import instruction_counts, multiplying_loop
from cips_fast.kernels.report.occupancy import occupancy
from cips_fast.kernels.report.workload import launches, meta


def find_launch(target, kernel, words, factors="bf16"):
    wanted = (f"{kernel}_kernel", words, factors)
    calls = launches(target, (1,))
    return next(c for c in calls if (c.kernel.fn.__name__, per_kernel.describe(c), per_kernel.factors_of(c)) == wanted)


def report_on(target, *which):
    call = find_launch(target, *which)
    return per_kernel.report_on(target, call, resources(compile_call(call, target)))


def test_known_figures_of_a_layer():
    layer = report_on("sm_80", "mod_fc_fwd", "512→512")
    assert layer.flop == 2 * 65536 * 512 * 512 == 34359738368
    once = 2 * (2 * 65536 * 512 + 512 * 512) + 4 * 512  # x, y, W' and the bias
    assert layer.read["once"] + layer.written["once"] == once
    assert layer.intensity == layer.flop / once
    tiles_p, tiles_o = 65536 // 256, 4
    assert layer.read["requested"] == 2 * (tiles_o * 65536 * 512 + tiles_p * 512 * 512) + 4 * tiles_p * 512
    assert (layer.stack, layer.tile, layer.warps, layer.stages) == (0, [256, 128, 32], 8, 4)
    assert layer.loop["products"] == 64  # 256 × 128 × 32 in eight warps' HMMA.16816
    assert layer.loop["global"] == 6  # copies of 16 bytes: (256 + 128) × 32 elements for 256 threads
    assert layer.loop["waits"] > 0
    assert layer.occupancy.programs == 1
    assert layer.floors["A100 80 GB"].seconds == pytest.approx(34359738368 / 312e12)
    assert layer.floors["A100 80 GB"].bound == "arithmetic"
    assert chips.H100.floor(layer.flop, once) == (pytest.approx(once / 3.35e12), "memory")


def test_known_figures_of_a_narrow_network():
    """A program reads every weight and bias once, every point's coordinates and four of the table's cells."""
    whole = report_on("sm_90", "stack_narrow", "128 15 layers 2-D")
    weights = 128 * 256 + 14 * 128 * 128 + 7 * 3 * 128
    assert whole.flop == 2 * 65536 * weights
    assert (whole.tile, whole.programs, whole.stack) == ([128, 128, 16], 512, 0)
    parameters = 2 * weights + 4 * (15 * 128 + 3) + 4 * (128 * 2 + 128)
    assert whole.read["requested"] == 512 * parameters + 4 * 65536 * (2 + 2 + 4 * 128)
    assert whole.written["requested"] == whole.written["once"] == 4 * 65536 * 3
    assert whole.loop["products"] == 8  # 128 × 128 × 128 in two warp groups' HGMMA of 64 × 128 × 16


@pytest.mark.parametrize(("target", "products"), [("sm_90", 4), ("sm_100", 4), ("gfx942", 16), ("gfx1100", 8)])
def test_loop_of_other_targets(target, products):
    layer = report_on(target, "mod_fc_fwd", "512→512")
    assert layer.loop["products"] == products
    assert all(layer.loop[kind] for kind in ("global", "shared", "arithmetic", "waits"))
    assert list(layer.floors) == [chip.name for chip in chips.DATA_SHEETS if chip.architecture == target]


def test_json_has_everything(capsys):
    __main__.main(["--target", "sm_80", "--kernel", "embedding_bwd", "--json"])
    everything = json.loads(capsys.readouterr().out)
    assert set(everything) == {"chips", "kernels", "images"}
    (chip,) = everything["chips"]
    assert (chip["name"], chip["processors"], chip["memory"]) == ("A100 80 GB", 108, 2.039e12)
    launches = [(kernel["target"], kernel["kernel"], kernel["launch"]) for kernel in everything["kernels"]]
    names = ("embedding_bwd_table", "512"), ("embedding_bwd_table", "512 add"), ("embedding_bwd_coords", "512")
    assert launches == [("sm_80", *name) for name in names]
    for kernel in everything["kernels"]:
        assert set(kernel) == set(per_kernel.KernelReport.__dataclass_fields__)
        assert kernel["loop"] is None
        assert set(kernel["occupancy"]) == {"programs", "warps", "limit"}
        assert kernel["floors"]["A100 80 GB"]["bound"] == "memory"
        assert set(kernel["read"]) == set(kernel["written"]) == {"once", "requested"}
    assert everything["images"] == []


def test_tables_have_a_row_for_every_launch(capsys):
    __main__.main(["--target", "sm_80", "--kernel", "embedding_bwd_coords"])
    reported = report_on("sm_80", "embedding_bwd_coords", "512")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("embedding_bwd_coords")]
    takes, does = (re.split(r"\s{2,}", line) for line in lines)
    assert takes[:9] == [
        "embedding_bwd_coords",
        "512",
        "bf16",
        "8×64",
        "4",
        "1",
        str(reported.registers),
        "0",
        "0.0312",
    ]
    assert does[-1] == f"{reported.floors['A100 80 GB'].seconds * 1e6:.3g} (m)"


def test_totals_have_a_row_for_every_way(capsys):
    printing.print_totals(
        [per_image.total(*way, 256, chip) for way in per_image.PASSES for chip in (chips.H100, chips.B200)]
    )
    rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines() if line.startswith("256²")]
    assert [tuple(row[1:3]) for row in rows] == 2 * list(per_image.PASSES)
    assert rows[0][4] == "551"


def test_an_unknown_target_or_kernel_is_named(capsys):
    for arguments, message in (
        (["--target", "sm_70"], f"--target: got 'sm_70', must be one of {', '.join(chips.TARGETS)}"),
        (["--kernel", "nosuch"], "--kernel: got 'nosuch', must be part of a kernel's name"),
    ):
        with pytest.raises(SystemExit) as ended:
            __main__.main(arguments)
        assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


def test_chips_of_one_architecture_have_its_limits():
    for chip in chips.DATA_SHEETS:
        limits = chips.ARCHITECTURES[chip.architecture]
        assert (chip.processors, chip.l2, chip.program_shared) == (limits.processors, limits.l2, limits.program_shared)


@pytest.mark.parametrize(
    ("chip", "registers", "shared", "warps", "held"),
    [
        (chips.H100, 202, 144 << 10, 8, (1, 8, "registers")),
        (chips.A100, 64, 0, 4, (8, 32, "registers")),
        (chips.A100, 32, 48 << 10, 4, (3, 12, "shared memory")),
        (chips.B200, 16, 1024, 4, (16, 64, "warps")),
        (chips.MI300X, 128, 32 << 10, 8, (2, 16, "registers")),
        (chips.MI300X, 64, 64 << 10, 4, (1, 4, "shared memory")),
    ],
)
def test_occupancy(chip, registers, shared, warps, held):
    assert occupancy(chip, Resources(registers, 0, shared, 0, {}, {}), warps) == held


def test_tensor_memory_bounds_programs():
    assert occupancy(chips.B200, Resources(32, 0, 0, 256, {}, {}), 4) == (2, 8, "tensor memory")


NESTED = """
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2] ;
.L_x_1:
        /*0020*/                   LDS R4, [R2] ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/                   LDGDEPBAR ;
        /*0050*/                   IMAD.MOV.U32 R1, RZ, RZ, R2 ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
        /*0070*/              @!P1 BRA `(.L_x_0) ;
.L_x_2:
        /*0080*/                   IADD3 R1, R1, R2, RZ ;
        /*0090*/              @!P0 BRA `(.L_x_2) ;
"""


def test_the_innermost_loop_that_multiplies():
    wanted = {"products": 1, "global": 0, "shared": 1, "arithmetic": 0, "waits": 1, "other": 2}
    assert instruction_counts(multiplying_loop(NESTED)) == wanted
    assert not multiplying_loop(NESTED.replace("HMMA", "FFMA"))


def test_an_operator_is_a_launch_and_a_view_is_none():
    a, b = meta(4, 8), meta(8)

    def run():
        y = (a + b).view(32)
        y.mul_(2)
        y.copy_(a.flatten())
        torch.add(y, y[:1], out=torch.empty_like(y))
        return a.T @ a

    launches = ledger.launches_of(run, "sm_90")
    sizes = {"add": 4 * (32 + 8 + 32), "mul_": 4 * 64, "copy_": 4 * 64, "mm": 4 * (32 + 32 + 64)}
    assert [launch.name for launch in launches] == ["add", "mul_", "copy_", "add", "mm"]
    assert launches[3].moved == 4 * (32 + 1 + 32)
    assert {launch.name: launch.moved for launch in launches if launch is not launches[3]} == sizes
    assert launches[-1].flop == 2 * 8 * 4 * 8


def test_kernels_and_operators_are_counted_in_order():
    half = torch.bfloat16
    dz, w, x = meta(1, 512, 64, dtype=half), meta(1, 64, 64, dtype=half), meta(1, 512, 64, dtype=half)

    def run():
        dx, sums = mod_fc_bwd.mod_fc_dgrad(dz, w, below=x, want_sums=True)
        return sums.sum(0), mod_fc_bwd.mod_fc_wgrad(dx, x)

    launches = ledger.launches_of(run, "sm_90")
    assert [launch.name for launch in launches] == ["mod_fc_dgrad_kernel", "sum", "mod_fc_wgrad_kernel"]
    tensor = 512 * 64 * 2
    assert launches[0].moved == 3 * tensor + 64 * 64 * 2 + 4 * 64 * 4
    # x and dx, which the first launch read and wrote, fit in a cache of five such tensors, but not in one of one. The
    # sums fit in both.
    cached = ledger.found_in_cache(launches, 5 * tensor)
    assert cached == [0, 4 * 64 * 4, 2 * tensor]
    assert ledger.found_in_cache(launches, tensor) == [0, 4 * 64 * 4, 0]
    assert ledger.floor_of(launches, chips.H100) == pytest.approx(sum(launch.moved for launch in launches) / 3.35e12)
    saved = sum(cached) / 3.35e12
    assert ledger.floor_of(launches, chips.H100, cached) == pytest.approx(ledger.floor_of(launches, chips.H100) - saved)


def small_network(rng):
    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    width = 6
    return Network(
        freq=draw(width, 2),
        phase=draw(width),
        table=draw(5, 4, width),
        weights=[draw(width, width if layer else 2 * width) for layer in range(5)],
        biases=[draw(width) for _ in range(5)],
        styles=[draw(2, width if layer else 2 * width) for layer in range(5)],
        tap_weights=[draw(3, width) for _ in range(2)],
        tap_biases=[draw(3) for _ in range(2)],
        tap_styles=[draw(2, width) for _ in range(2)],
    )


def test_the_published_formulation_computes_the_same_colours():
    network = small_network(torch.Generator().manual_seed(0))
    coords = grids.plane(7, 7).double().view(1, 49, 2)
    got = published_formulation.synthesis(network, coords, dtype=torch.float64)
    torch.testing.assert_close(got, ref.synthesis_ref(network, coords))


def test_ways_to_an_image():
    of = {way: per_image.total(*way, 256, chips.H100) for way in per_image.PASSES}
    stack, layered, eager = (of[way, "forward"] for way in ("stack", "layered", "published"))
    assert stack.flop == layered.flop == 2 * 65536 * (512 * 1024 + 14 * 512 * 512 + 7 * 3 * 512)
    assert eager.flop == stack.flop + 2 * 65536 * 2 * 512  # it multiplies coordinates by frequencies as matrices
    assert of["layered", "backward"].flop == 2 * layered.flop
    assert stack.launches < layered.launches < eager.launches
    assert stack.bytes < layered.bytes < eager.bytes
    assert stack.floor == pytest.approx(stack.flop / 989e12, rel=0.05)
    # A layer finds the output of the layer before it in cache; eager passes over 64 MiB find nothing in 50 MiB.
    assert layered.cached > 14 * 65536 * 512 * 2 > 5 * eager.cached
    assert layered.floor_cached < layered.floor


def test_limits_have_a_row_for_every_target(monkeypatch, capsys):
    used = [Resources(255, 0, 96 << 10, 0, {}, {}), Resources(128, 8, 16 << 10, 0, {}, {})]
    monkeypatch.setattr(limits, "compile_all", lambda target: used[: 1 + (target == "gfx942")])
    limits.main(["--target", "sm_90", "gfx942", "sm_90"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    version = limits.triton.__version__
    assert rows == [[version, "sm_90", "1", "0", "255", "96"], [version, "gfx942", "2", "1", "255", "96"]]
