"""Training on panoramas: windows over the edge, and a run on the map of the Earth."""

import numpy as np
import torch
from PIL import Image

from cips_fast import checkpoint
from cips_fast.train.__main__ import main
from cips_fast.train.data.patches import Patches

from .needs import needs_map


class Panorama:
    """One image, 8 × 16, whose pixels tell their row and column."""

    name, resolution = "panorama", 8

    def __len__(self):
        return 1

    def load(self, index):
        rows, columns = np.mgrid[:8, :16]
        return np.stack([rows * 16, columns * 8, 0 * rows], -1).astype(np.uint8)


def test_windows_of_a_panorama_go_over_its_edge_and_begin_anywhere():
    patches = Patches(Panorama(), 4, 4, (0.5, 0.5), seed=3, geometry="cylinder")
    images, coords = (torch.cat(parts) for parts in zip(*(patches.step(n) for n in range(50)), strict=True))
    rows, columns, _ = ((images + 1) * 127.5).round().unbind(1)
    torch.testing.assert_close(coords[..., 1], rows / 16 * 2 / 7 - 1)
    steps = (columns[:, 0].diff() / 8) % 16
    assert set(steps.flatten().tolist()) == {1.0, 2.0}
    torch.testing.assert_close(coords[:, 0, :, 0].diff() * 8, steps)
    assert (columns[:, 0, -1] < columns[:, 0, 0]).any()  # over the edge
    offsets = (columns[:, 0, 0] / 8 - (coords[:, 0, 0, 0] + 1) * 8) % 16  # of the map against the coordinates
    assert len(set(offsets.tolist())) == 16


@needs_map
def test_a_cylinder_is_trained_on_the_map_and_previewed(tmp_path):
    arguments = ["--geometry", "cylinder", "--data", "bluemarble", "--res", "16", "--crop", "16", "--kimg", "0.008"]
    small = ["--width", "8", "--style-features", "8", "--batch", "4", "--device", "cpu"]
    folder = tmp_path / "run"
    assert main([*arguments, *small, "--out", str(folder)]) == 0
    generator = checkpoint.load(next((folder / "checkpoints").glob("*.safetensors")))
    assert generator.geometry == "cylinder"
    with Image.open(next((folder / "samples").iterdir())) as image:
        assert image.size == (3 * 32, 5 * 16)
    assert main([*arguments, *small, "--geometry", "plane", "--out", str(folder)]) == 2
