"""Preview grids: what the averaged generator draws from fixed latents."""

import torch
from PIL import Image
from torch import Tensor

from cips_fast import CIPSGenerator, grids
from cips_fast.pictures import sheet, to_pixels

SHAPE = (3, 5)
MAX_SIDE = 256
BAND = 32


class Previewer:
    """Renders the same latents every time, so that grids of one run can be compared.

    Args:
        res: native resolution; images are rendered at that, or at 256 if it is larger.
        style_features: S.
        seed: of the latents.
        autocast: dtype of the layers, float32 for none.
    """

    def __init__(self, res: int, style_features: int, seed: int, dtype: torch.dtype):
        rng = torch.Generator().manual_seed(seed)
        self.z = torch.randn(SHAPE[0] * SHAPE[1], style_features, generator=rng)
        self.side = min(res, MAX_SIDE)
        self.dtype = dtype

    @torch.no_grad()
    def render(self, generator: CIPSGenerator) -> Image.Image:
        """The grid, rows × columns of images."""
        device = generator.mean_latent.device
        coords = grids.plane(self.side, self.side, device=device)
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            images = [self._image(generator, z[None].to(device), coords) for z in self.z]
        return Image.fromarray(sheet([to_pixels(image) for image in images], SHAPE[1]))

    def _image(self, generator: CIPSGenerator, z: Tensor, coords: Tensor) -> Tensor:
        """One image [3, H, W], in bands of rows whose activations stay in a processor's cache."""
        w = generator.mapping(z)
        bands = [generator.synthesis(w, band[None])[0].float().cpu() for band in coords.split(BAND)]
        return torch.cat(bands, 1)
