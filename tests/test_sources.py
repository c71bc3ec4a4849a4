"""Opening data by name: every source keeps the protocol, and bad names are told."""

import os
import re
import zipfile
from importlib import metadata

import numpy as np
import pytest

from cips_fast.train.data.images import DataError
from cips_fast.train.data.sources import check_source, open_source

from .needs import needs_landscapes, needs_map
from .pictures import R, assert_is_image, save

DRAWN = [pytest.param("landscapes", marks=needs_landscapes), pytest.param("bluemarble", marks=needs_map)]


@pytest.mark.parametrize("name", ["absent", "", "landscape"])
def test_unknown_data_lists_the_choices(name):
    with pytest.raises(DataError, match=re.escape("landscapes, bluemarble, a folder or a .zip file")) as caught:
        open_source(name, R)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plain_file_is_refused(data):
    save(data / "a.png")
    with pytest.raises(DataError, match=r"neither a folder nor a \.zip file"):
        open_source(str(data / "a.png"), R)


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and long names as POSIX has them")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loop", "cannot be opened (Too many levels of symbolic links)"),
        ("x" * 300, "cannot be opened (File name too long)"),
        ("nul\0", "cannot be opened (embedded null byte)"),
        ("\ud800", "surrogates not allowed"),
        ("~nobodyhere/photos", "cannot be opened ("),
        ("file/below", "there is no such folder or file"),
        ("pipe.zip", "is neither a folder nor a .zip file"),
    ],
)
def test_paths_that_cannot_be_opened(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.zip")
    for check in (open_source, check_source):
        with pytest.raises(DataError) as caught:
            check(name, R)
        assert reason in str(caught.value)
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resolution", [0, -1, 2.0, True])
def test_resolution_is_checked(resolution):
    with pytest.raises(DataError, match="resolution is"):
        open_source("landscapes", resolution)


def test_split_is_checked(data):
    save(data / "a.png")
    with pytest.raises(DataError, match="train or heldout"):
        open_source("landscapes", R, split="test")
    with pytest.raises(DataError, match="no split 'heldout'"):
        open_source(str(data), R, split="heldout")


def test_packages_that_draw_landscapes_are_named_where_they_are_missing(monkeypatch):
    version = metadata.version

    def some(package):
        if package in ("dicebear-styles", "resvg-py"):
            raise metadata.PackageNotFoundError(package)
        return version(package) if package != "dicebear-core" else "10"

    monkeypatch.setattr(metadata, "version", some)
    with pytest.raises(DataError, match=r"not installed: pip install dicebear-styles resvg-py$"):
        open_source("landscapes", R)


@pytest.mark.parametrize("kind", [*DRAWN, "folder", "zip"])
def test_every_source_keeps_the_protocol(kind, data):
    save(data / "a.png")
    with zipfile.ZipFile(data.parent / "b.zip", "w") as archive:
        archive.write(data / "a.png", "a.png")
    name = {"folder": str(data), "zip": str(data.parent / "b.zip")}.get(kind, kind)
    source = open_source(name, 64)
    assert (source.name, source.resolution) == ({"folder": "data", "zip": "b"}.get(kind, kind), 64)
    image = source.load(0)
    assert_is_image(image, 64)
    before = image.copy()
    image[:] = 0
    np.testing.assert_array_equal(source.load(0), before)
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source.load(index)


@pytest.mark.parametrize("kind", [*DRAWN, "folder"])
def test_every_source_works_in_another_process(kind, data, pool):
    save(data / "a.png")
    source = open_source(str(data) if kind == "folder" else kind, 64)
    np.testing.assert_array_equal(pool.apply(source.load, (0,)), source.load(0))


@needs_landscapes
def test_cache_dir_wins_over_the_environment(cache, tmp_path):
    open_source("landscapes", R, cache_dir=tmp_path / "mine").load(0)
    assert list((tmp_path / "mine").rglob("*.png"))
    assert not cache.exists()
