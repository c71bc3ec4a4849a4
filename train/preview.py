"""Preview grids: the averaged generator's images of fixed latents."""

from collections.abc import Callable

import torch
from PIL import Image

from cips_fast import CIPSGenerator, render
from cips_fast.files.pictures import sheet, to_pixels
from cips_fast.geometry import GEOMETRIES

IMAGES = 15
COLUMNS = {1: 5, 2: 3}  # of the grid, by how many times wider than high an image is
MAX_SIDE = 256


class Previewer:
    """Renders the same latents every time, so that grids of one run can be compared.

    Args:
        res: native resolution; images have this height, at most 256 pixels.
        style_features: S.
        seed: of the latents.
        dtype: dtype of the layers; float32 means no autocast.
    """

    def __init__(self, res: int, style_features: int, seed: int, dtype: torch.dtype):
        self.z = torch.randn(IMAGES, style_features, generator=torch.Generator().manual_seed(seed))
        self.side = min(res, MAX_SIDE)
        self.dtype = dtype

    @torch.no_grad()
    def render(self, generator: CIPSGenerator, unwanted: Callable[[], bool] = lambda: False) -> Image.Image | None:
        """The grid, rows × columns of images; None if it became `unwanted`, which is asked before each image."""
        geometry = GEOMETRIES[generator.geometry]
        height, width = geometry.size(self.side)
        latents = [generator.mapping(z[None])[0] for z in self.z.to(generator.mean_latent.device)]
        images = []
        for w in latents:
            if unwanted():
                return None
            images.append(render.image(generator, w, height, width, dtype=self.dtype))
        return Image.fromarray(sheet([to_pixels(image) for image in images], COLUMNS[geometry.aspect]))
