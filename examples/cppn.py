"""Draw patterns with an untrained network: a CPPN whose layers are ModFC, so that every latent gives another pattern.

A compositional pattern producing network (Stanley, 2007) maps the coordinates of a pixel, x, y and the distance r from
the centre, to its colour. Here a latent modulates the weights of every layer, and chooses the palette.

    python examples/cppn.py --latents 12 --seed 0 --out cppn.png
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from cips_fast import ModFC, functional, grids
from cips_fast.command_line import Parser, png_path, whole_number

DEVICE_HELP = "device that computes (default: %(default)s)"


class CPPN(nn.Module):
    """(x, y, r) and a latent -> colour; with random weights the network draws smooth patterns.

    Args:
        latent_features: entries of a latent.
        width: channels between the layers.
        activations: activations of the layers between the first and the last.
        inks: colours of a palette.
        contrast: how sharply a pixel chooses its ink.
        backend: see `cips_fast.functional`.
    """

    def __init__(
        self,
        latent_features: int = 8,
        width: int = 32,
        activations: tuple[str, ...] = ("sinrelu", "sinrelu", "sin"),
        *,
        inks: int = 5,
        contrast: float = 8.0,
        backend: str = "auto",
    ):
        super().__init__()
        options = {"style_features": latent_features, "backend": backend}
        self.first = ModFC(3, width, activation="lrelu", **options)
        # Without demodulation a latent also scales a layer's output, which makes a pattern plain or busy.
        self.hidden = nn.ModuleList(
            ModFC(width, width, activation=activation, demodulate=False, **options) for activation in activations
        )
        self.choice = ModFC(width, inks, activation="linear", **options)
        self.palette = nn.Linear(latent_features, inks * 3)
        self.contrast = contrast
        for layer in (self.first, *self.hidden):
            nn.init.normal_(layer.bias, std=0.5)  # with biases of zero all patterns would look alike
        nn.init.normal_(self.palette.weight, std=0.75)
        nn.init.normal_(self.palette.bias, std=1.5)

    def forward(self, coords: Tensor, latent: Tensor) -> Tensor:
        """Coordinates [B|1, H, W, 3], latents [B, Z] -> colours in [0, 1], [B, H, W, 3]."""
        x = self.first(coords, latent)
        for layer in self.hidden:
            x = layer(x, latent)
        shares = (self.contrast * self.choice(x, latent)).softmax(-1)  # [B, H, W, inks]
        inks = self.palette(latent).sigmoid().view(latent.shape[0], 1, -1, 3)  # [B, 1, inks, 3]
        return shares @ inks


def coordinates(size: int, zoom: float = 3.0) -> Tensor:
    """(x, y, r) of a square's pixels, x and y from -zoom to zoom, [1, size, size, 3]."""
    xy = grids.plane(size, size, (-zoom, -zoom, zoom, zoom))
    return torch.cat([xy, xy.norm(dim=-1, keepdim=True)], -1)[None]


def contact_sheet(pictures: Tensor) -> Image.Image:
    """Pictures in [0, 1], [B, H, W, 3], row by row in a grid about as wide as high; the rest is white."""
    count, height, width, _ = pictures.shape
    columns = next(n for n in range(1, count + 1) if n * n >= count)
    rows = -(-count // columns)
    sheet = pictures.new_ones(rows * columns, height, width, 3)
    sheet[:count] = pictures
    sheet = sheet.view(rows, columns, height, width, 3).transpose(1, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray((sheet * 255).round().byte().cpu().numpy())


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--latents", type=whole_number(1, 10_000), default=12, help="number of patterns (default: %(default)s)")
    add(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="seed of the weights and latents (default: %(default)s)",
    )
    add("--size", type=whole_number(1, 8192), default=256, help="side of a pattern in pixels (default: %(default)s)")
    add("--out", type=png_path, default=Path("cppn.png"), help="picture to write, a .png (default: %(default)s)")
    add(
        "--backend",
        default="auto",
        choices=functional.BACKENDS,
        help="implementation of the layers (default: %(default)s)",
    )
    add("--compile", action="store_true", help="compilation of the network by torch.compile")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=DEVICE_HELP)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    network = CPPN(backend=options.backend).to(options.device)
    latents = torch.randn(options.latents, 8).to(options.device)
    coords = coordinates(options.size).to(options.device)
    draw = torch.compile(network, fullgraph=True) if options.compile else network
    with torch.no_grad():
        patterns = torch.cat([draw(coords, latent) for latent in latents.split(1)])
    contact_sheet(patterns).save(options.out)
    print(f"{options.out}: {options.latents} patterns")


if __name__ == "__main__":
    main()
