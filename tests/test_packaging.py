"""What an import does, and that a checkout that was never installed imports."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import cips_fast

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, cwd: Path) -> str:
    """The output of `code` in a fresh interpreter in the empty folder `cwd`, the checkout on its PYTHONPATH.

    -S keeps an editable install's import hook out; the dependencies' folders are handed over as plain paths.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_bare_checkout_imports(tmp_path):
    code = "import cips_fast.kernels as k, cips_fast.train as t; print([*k.__path__], [*t.__path__])"
    assert run_python(code, tmp_path) == f"{[str(ROOT / 'kernels')]} {[str(ROOT / 'train')]}"


def test_import_needs_neither_triton_nor_cuda(tmp_path):
    code = (
        "import sys, torch, cips_fast; from cips_fast import ModFC, CIPSGenerator;"
        "print('triton' in sys.modules, torch.cuda.is_initialized())"
    )
    assert run_python(code, tmp_path) == "False False"


@pytest.mark.parametrize("module", ["train", "train.plot", "cips_fast.train", "cips_fast"])
def test_no_file_is_loaded_under_two_names(tmp_path, module):
    """`python -m train` has its modules as `train.x`; as `cips_fast.train.x` they would be other modules.

    Only the map of the folder, train/__init__.py, is loaded twice.
    """
    arguments = ["sample", "--help"] if module == "cips_fast" else ["a", "b"]
    if module.endswith("train"):
        arguments = ["--res", "16", "--width", "8", "--device", "cpu", "--data", str(tmp_path), "--out", "run"]
    code = f"""
import contextlib, io, json, runpy, sys
sys.argv[1:] = {arguments!r}
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
    with contextlib.redirect_stdout(said):
        runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
files = {{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}}
print(json.dumps({{name: file for name, file in files.items() if file}}))
"""
    files = json.loads(run_python(code, tmp_path).splitlines()[-1])
    ours = [(name, Path(file)) for name, file in files.items() if Path(file).is_relative_to(ROOT)]
    assert len(ours) > 20
    loaded = Counter(file for _, file in ours if file.name != "__init__.py")
    assert [file for file, names in loaded.items() if names > 1] == []


def test_a_wheel_has_its_version_and_says_that_it_is_typed(tmp_path):
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip(
        "setuptools", minversion="77", reason="setuptools 77, which pyproject.toml asks for, is not installed"
    )
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("cips_fast", "kernels", "train"):
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir"]
    done = subprocess.run([*command, str(tmp_path), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"cips_fast-{cips_fast.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    python = {
        f"cips_fast/{path.relative_to(ROOT / 'cips_fast').as_posix()}" for path in (ROOT / "cips_fast").rglob("*.py")
    }
    for name in ("kernels", "train"):
        python |= {f"cips_fast/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / name).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == python
    assert "cips_fast/py.typed" in names


def test_what_is_public_is_there():
    assert {"checkpoint", "latents", "load", "load_published", "save_image", "__version__"} <= set(cips_fast.__all__)
    for name in cips_fast.__all__:
        value = getattr(cips_fast, name)
        assert name == "__version__" or value.__doc__, name
