"""The path of the cache folder, also for a user without a home folder and without platformdirs."""

import os
import subprocess
import sys

import pytest

from cips_fast.kernels.cache import cache_folder

from .pictures import ROOT

ABSENT = 2**31 - 7
"""A user that the system does not know."""


@pytest.fixture
def unnamed(monkeypatch):
    """No variable names a cache."""
    for variable in ("CIPS_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)


def test_the_variable_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIPS_FAST_CACHE", "~/here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIPS_FAST_CACHE", "below")
    assert cache_folder() == tmp_path / "below"
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # it is not asked
    assert cache_folder() == tmp_path / "below"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other cache folders")
@pytest.mark.usefixtures("unnamed")
def test_else_it_lies_in_the_user_s_cache(tmp_path, monkeypatch):
    pytest.importorskip("platformdirs", reason="platformdirs is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cips_fast"


@pytest.mark.skipif(os.name != "posix", reason="home folders of POSIX")
@pytest.mark.usefixtures("unnamed")
def test_a_user_without_a_home_folder_has_no_cache(monkeypatch):
    pytest.importorskip("platformdirs", reason="platformdirs is not installed")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: ABSENT)
    with pytest.raises(OSError, match=r"^CIPS_FAST_CACHE is not set, and there is no such home folder$"):
        cache_folder()


@pytest.mark.skipif(os.name != "posix", reason="home folders of POSIX")
def test_a_variable_with_an_unknown_user(monkeypatch):
    monkeypatch.setenv("CIPS_FAST_CACHE", "~no-such-user/x")
    with pytest.raises(OSError, match=r"^CIPS_FAST_CACHE: got '~no-such-user/x', and there is no such home folder$"):
        cache_folder()


@pytest.mark.usefixtures("unnamed")
def test_without_platformdirs_there_is_no_cache(monkeypatch):
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(OSError, match=r"^CIPS_FAST_CACHE is not set, and platformdirs is not installed$"):
        cache_folder()


def test_networks_need_no_package_of_the_trainer_and_the_commands():
    program = """
import sys
sys.modules.update(dict.fromkeys(["PIL", "dicebear", "platformdirs", "safetensors", "tifffile", "tqdm"]))
import torch
import cips_fast
import cips_fast.kernels.autotune
generator = cips_fast.CIPSGenerator(size=8, width=24, style_features=16, embedding_size=4)
print(list(generator(torch.randn(1, 16)).shape))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[1, 3, 8, 8]\n"), done.stderr
