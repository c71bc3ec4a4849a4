"""What an import does, and that a checkout that was never installed imports."""

import os
import shutil
import subprocess
import sys
import zipfile
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
