"""Fixtures of all tests: a cache, a data folder, two processes of their own, and where kernels run."""

import contextlib
import importlib.util
import multiprocessing
import os

import pytest
import torch

from cips_fast import checkpoint
from cips_fast.kernels import launch
from cips_fast.kernels.device import standing_in

from .interpreter import Interpreter
from .places import Place

# Versions of PyTorch that ask for it do so when it is too late to be given.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
HAVE_TRITON = importlib.util.find_spec("triton") is not None
# Files that import kernels; tests elsewhere that only run them skip themselves.
NEED_TRITON = (
    *("bytes", "executed", "fourier", "large", "mod_fc", "modulate", "report", "stack", "synthesis", "targets", "tune"),
)
collect_ignore = [] if HAVE_TRITON else [f"test_{name}.py" for name in NEED_TRITON]


def pytest_report_header():
    return [] if HAVE_TRITON else f"no Triton: left out are {', '.join(collect_ignore)}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The package's cache folder, which no test shares with another or with the user."""
    path = tmp_path / "cache"
    monkeypatch.setenv("CIPS_FAST_CACHE", str(path))
    return path


@pytest.fixture
def data(tmp_path):
    """An empty folder."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def saved(generator, tmp_path):
    """The path of a checkpoint of the file's own `generator`."""
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(generator, path)
    return str(path)


@pytest.fixture(scope="module")
def pool():
    """Two fresh processes; they are slow to start, so a file's tests share them."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def interpreter():
    """Triton's interpreter, as a stand-in for a GPU; it is slow to start, so all tests share it."""
    pytest.importorskip("triton", reason="no Triton")
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture
def large_tiles(monkeypatch):
    """Tiles in the interpreter as large as a test's tensors: a step there takes its time whatever its size."""
    large = launch.Tiles(256, 512, 256, 4, 1)
    for table in (launch.TILES, launch.STACK_TILES):
        monkeypatch.setitem(table, launch.INTERPRETER, dict.fromkeys(table[launch.INTERPRETER], large))
    monkeypatch.setattr(launch, "ROW_ELEMENTS", 1 << 16)


@pytest.fixture
def poison():
    """Fill memory with NaN wherever PyTorch hands it out uninitialised."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def place(request, interpreter, poison) -> Place:
    """One of `places.PLACES`, with kernels started there."""
    where = request.param
    with standing_in(interpreter) if where.name == "interpreter" else contextlib.nullcontext():
        yield where
