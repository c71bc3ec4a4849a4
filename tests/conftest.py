"""Fixtures of all tests: a cache, a data folder and two processes of their own."""

import multiprocessing

import pytest


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


@pytest.fixture(scope="module")
def pool():
    """Two fresh processes; they are slow to start, so a file's tests share them."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        yield pool
