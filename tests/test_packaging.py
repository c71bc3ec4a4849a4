"""What an import does, and that a checkout that was never installed imports."""

import os
import subprocess
import sys
from pathlib import Path

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
