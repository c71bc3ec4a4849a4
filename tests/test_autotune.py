"""Measured tiles: measured once, kept on disk, and not measured where that is not allowed. The times are made up."""

import contextlib
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.errors import OutOfResources, PTXASError

from cips_fast.kernels import autotune, device
from cips_fast.kernels.report.workload import float32_products
from cips_fast.kernels.tiles import Tiles, gemm_candidates, gemm_tiles

SHAPE = (60000, 512, 512)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as the tuner knows; its times grow with the depth of the tiles."""
    tried = []

    def milliseconds(call):
        tried.append(call())
        return tried[-1].depth + tried[-1].warps

    monkeypatch.setattr(autotune, "is_gpu", lambda device: True)
    monkeypatch.setattr(autotune, "architecture", lambda device: "sm_80")
    monkeypatch.setattr(autotune, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU 80/GB")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(autotune, "_all_refused", set())
    autotune._known.clear()
    yield tried
    autotune._known.clear()


def choose(shape=SHAPE, batch=1, dtype=torch.float16, variant=""):
    return autotune.product_tiles("fwd", shape, batch, torch.empty(1, dtype=dtype), lambda tiles: tiles, variant)


def test_the_fastest_is_chosen_once_and_kept(gpu, cache, capsys):
    chosen = choose()
    assert chosen == min(gpu, key=lambda tiles: tiles.depth + tiles.warps)
    assert gpu == gemm_candidates("fwd", SHAPE, torch.float16, "sm_80")
    assert "tiles for fwd 1x65536x512x512 float16 ieee" in capsys.readouterr().err

    gpu.clear()
    assert choose() == chosen
    assert choose((50000, 512, 512)) == chosen  # of the same size, rounded up
    autotune._known.clear()  # as in a new process
    assert choose() == chosen
    assert gpu == []
    (file,) = (cache / "tiles").iterdir()
    assert list(json.loads(file.read_text())) == ["fwd 1x65536x512x512 float16 ieee"]
    assert choose(batch=2) == chosen
    assert gpu != []


def test_a_variable_and_determinism_turn_it_off(gpu, monkeypatch):
    table = gemm_tiles("fwd", SHAPE, torch.float16, "sm_80")
    monkeypatch.setenv("CIPS_FAST_AUTOTUNE", "0")
    assert choose() == table
    monkeypatch.delenv("CIPS_FAST_AUTOTUNE")
    torch.use_deterministic_algorithms(True)
    try:
        assert choose() == table
    finally:
        torch.use_deterministic_algorithms(False)
    assert gpu == []


def test_nothing_is_measured_while_a_graph_is_captured(gpu, monkeypatch):
    table = gemm_tiles("fwd", SHAPE, torch.float16, "sm_80")
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose() == table
    assert gpu == []
    measured = choose()
    assert measured != table
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == measured  # what the warm-up ran


def test_products_that_differ_in_time_are_measured_apart(gpu, cache):
    choose()
    for change in ({"variant": "+act"}, {"batch": 2}, {"dtype": torch.bfloat16}):
        gpu.clear()
        choose(**change)
        assert gpu != [], change
    gpu.clear()
    choose((0, 512, 512))
    choose(dtype=torch.float32)  # in full, which has one choice only
    assert gpu == []
    with float32_products("high"):
        choose(dtype=torch.float32)
    assert gpu != []


def test_what_other_processes_measured_meanwhile_is_kept(gpu, cache):
    choose()
    (file,) = (cache / "tiles").iterdir()
    theirs = json.loads(file.read_text()) | {"theirs": json.loads(file.read_text()).popitem()[1]}
    file.write_text(json.dumps(theirs))
    choose(batch=2)
    assert len(json.loads(file.read_text())) == 3


GOOD, BAD = Tiles(64, 64, 32, 4, 2), Tiles(128, 256, 64, 8, 4)


class Kernel:
    """Behaves as a `triton.JITFunction`: compiling and starting it raise given errors, unless the tile is GOOD.

    Args:
        compiling: what the compiler raises.
        starting: what a launch raises.
        spills: how many registers it spills.
    """

    def __init__(self, compiling=None, starting=None, spills=0):
        self.compiling, self.starting, self.spills = compiling, starting, spills
        self.launches = []

    def warmup(self, *, grid, rows, **given):
        if self.compiling is not None and rows == BAD.rows:
            raise self.compiling

    def __getitem__(self, grid):
        return lambda rows, **given: self.launch(rows)

    def launch(self, rows):
        is_bad = rows == BAD.rows
        if self.starting is not None and is_bad:
            raise self.starting
        self.launches.append(rows)
        return SimpleNamespace(n_spills=self.spills * is_bad)

    def start(self, tiles):
        device.run(self, (1,), {"x": torch.zeros(1)}, {"rows": tiles.rows}, tiles)


def measure(call):
    call()
    return 1.0


COMPILER = [
    CompilationError(None, None, "type mismatch"),
    PTXASError("ptxas fatal"),
    RuntimeError("PassManager::run failed"),
    ValueError("num_ctas"),
    IndexError("map::at"),
    AssertionError("lhs and rhs bitwidth must be the same"),
]
RESOURCES = [
    OutOfResources(required=200, limit=100, name="shared memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("Triton Error [CUDA]: too many resources requested for launch"),
]
FAULTS = [
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)"),
]
REFUSING = [
    *({"compiling": error} for error in COMPILER),
    *({"starting": error} for error in RESOURCES),
    {"spills": 1},
]


@pytest.mark.parametrize("how", REFUSING, ids=repr)
def test_a_tile_that_is_refused_or_takes_stack_is_passed_over(how):
    kernel = Kernel(**how)
    assert autotune.fastest([BAD, GOOD], kernel.start, "", measure) == GOOD
    assert kernel.launches.count(BAD.rows) == (how == {"spills": 1})  # it ran once, and was not measured
    assert autotune.fastest([BAD], kernel.start, "", measure) is None


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_errors_of_the_program_are_raised(error):
    with pytest.raises(type(error)) as raised:
        autotune.fastest([BAD, GOOD], Kernel(starting=error).start, "", measure)
    assert raised.value is error


def test_errors_outside_of_a_launch_are_raised():
    def attempt(tiles):
        raise ValueError("x: got shape [3, 56, 7]")

    with pytest.raises(ValueError, match="got shape"):
        autotune.fastest([BAD, GOOD], attempt, "", measure)


def test_tiles_that_need_too_much_memory_are_passed_over():
    def attempt(tiles):
        if tiles == BAD:
            raise torch.OutOfMemoryError

    assert autotune.fastest([BAD, GOOD], attempt, "", measure) == GOOD


def test_a_way_is_refused_by_the_compiler_and_not_for_its_stack():
    for how, chosen in (({"spills": 1}, "bad"), ({"compiling": COMPILER[2]}, "good")):
        kernel = Kernel(**how)
        attempt = lambda way, kernel=kernel: kernel.start(BAD if way == "bad" else GOOD)
        assert autotune.fastest(["bad", "good"], attempt, "", measure) == chosen


@triton.jit
def fill_kernel(x_ptr, rows: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, rows), 0.0)


class Driver:
    """Stands in for Triton's CUDA driver: its compiler runs, the launch does nothing, one kernel spills."""

    def __init__(self, spills):
        self.launched = 0
        properties = {"max_shared_mem": 160 << 10}
        self.utils = SimpleNamespace(
            # No module: a kernel would unload it when it is collected, with the driver of that time.
            load_binary=lambda *_: (None, None, 255, spills, 1024),
            get_device_properties=lambda _: properties,
        )

    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def launcher_cls(self, source, metadata):
        return self.launch

    def launch(self, *_):
        self.launched += 1


@pytest.mark.parametrize(
    ("rows", "spills", "message"),
    [(48, 0, "not compiled.*power of 2"), (64, 2, "^8 bytes of stack$"), (64, 0, None)],
    ids=["not compiled", "stack", "clean"],
)
def test_trials_ask_this_version_of_triton(monkeypatch, rows, spills, message):
    stand_in = Driver(spills)
    monkeypatch.setattr(driver, "_active", stand_in)
    fill_kernel.device_caches.clear()
    refused = contextlib.nullcontext() if message is None else pytest.raises(device.Refused, match=f"(?s){message}")
    with refused, device.on_trial(stack=False):
        device.run(fill_kernel, (1,), {"x_ptr": torch.zeros(64)}, {"rows": rows}, GOOD)
    assert stand_in.launched == (rows == 64)


def test_outside_of_a_trial_nothing_is_refused():
    kernel = Kernel(compiling=COMPILER[2], spills=1)
    kernel.start(BAD)
    autotune.fastest([BAD, GOOD], kernel.start, "", measure)
    kernel.start(BAD)
    assert kernel.launches.count(BAD.rows) == 2


def test_where_all_are_refused_the_table_decides_and_they_are_tried_once(gpu):
    kernel, tried = Kernel(spills=1), []

    def attempt(tiles):
        tried.append(tiles)
        kernel.start(BAD)

    for _ in range(2):
        chosen = autotune.product_tiles("fwd", SHAPE, 1, torch.empty(1, dtype=torch.float16), attempt)
        assert chosen == gemm_tiles("fwd", SHAPE, torch.float16, "sm_80")
    assert tried == gemm_candidates("fwd", SHAPE, torch.float16, "sm_80")
    assert gpu == []


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"rows": 1}}'])
def test_a_damaged_file_counts_as_none(gpu, cache, content):
    choose()
    (file,) = (cache / "tiles").iterdir()
    file.write_text(content)
    autotune._known.clear()
    gpu.clear()
    choose()
    assert gpu != []


def test_a_cache_that_is_a_file_costs_only_the_memory(gpu, cache):
    cache.write_text("")
    with pytest.warns(UserWarning, match="tiles are not kept"):
        chosen = choose()
    gpu.clear()
    assert choose() == chosen
    assert gpu == []


@pytest.mark.skipif(os.name != "posix", reason="home folders of POSIX")
def test_a_user_without_a_home_folder_loses_only_the_file(gpu, monkeypatch):
    for variable in ("CIPS_FAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # a user whom the system does not know
    with pytest.warns(UserWarning, match="tiles are not kept for the next run: CIPS_FAST_CACHE is not set"):
        chosen = choose()
    gpu.clear()
    assert choose() == chosen
    assert gpu == []


def test_a_machine_without_tqdm_measures_without_a_bar(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert choose() == min(gpu, key=lambda tiles: tiles.depth + tiles.warps)
