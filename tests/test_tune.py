"""Measured tiles: tried once, kept on disk, never where they may not be. Times are given, no GPU is measured."""

import contextlib
import json
import os
import sys

import pytest
import torch
from triton.runtime.errors import OutOfResources

from cips_fast.kernels import tune
from cips_fast.kernels.launch import Tiles, gemm_candidates, gemm_tiles
from cips_fast.kernels.production import float32_products

SHAPE = (60000, 512, 512)


@pytest.fixture
def gpu(monkeypatch):
    """Something that looks like a GPU to the tuner, and takes a time that grows with the tile's depth."""
    tried = []

    def milliseconds(call):
        tried.append(call())
        return tried[-1].depth + tried[-1].warps

    monkeypatch.setattr(tune, "is_gpu", lambda device: True)
    monkeypatch.setattr(tune, "architecture", lambda device: "sm_80")
    monkeypatch.setattr(tune, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU 80/GB")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    tune._known.cache_clear()
    yield tried
    tune._known.cache_clear()


def choose(shape=SHAPE, batch=1, dtype=torch.float16, variant=""):
    return tune.product_tiles("fwd", shape, batch, torch.empty(1, dtype=dtype), lambda tiles: tiles, variant)


def test_the_fastest_is_chosen_once_and_kept(gpu, cache, capsys):
    chosen = choose()
    assert chosen == min(gpu, key=lambda tiles: tiles.depth + tiles.warps)
    assert gpu == gemm_candidates("fwd", SHAPE, torch.float16, "sm_80")
    assert "tiles for fwd 1x65536x512x512 float16 ieee" in capsys.readouterr().err

    gpu.clear()
    assert choose() == chosen
    assert choose((50000, 512, 512)) == chosen  # of the same size, rounded up
    tune._known.cache_clear()  # as in a new process
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


def test_what_the_chip_refuses_is_passed_over():
    refused, taken = Tiles(128, 256, 64, 8, 4), Tiles(64, 64, 32, 4, 2)

    def attempt(tiles):
        if tiles == refused:
            raise OutOfResources(required=200, limit=100, name="shared memory")

    def measure(call):
        call()
        return 1.0

    assert tune.fastest([refused, taken], attempt, "", measure) == taken
    assert tune.fastest([refused], attempt, "", measure) is None


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"rows": 1}}'])
def test_a_damaged_file_counts_as_none(gpu, cache, content):
    choose()
    (file,) = (cache / "tiles").iterdir()
    file.write_text(content)
    tune._known.cache_clear()
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
