"""Train one radiance field for many scenes: a small NeRF whose layers are ModFC, with a learned latent for each scene.

Each scene is a ball on a box, whose colours and sizes differ from scene to scene. Random rays, whose true colours are
computed by intersection, train the field and the latents together (an auto-decoder). The rows of the picture show the
true views of a camera, the views that the field renders, and views of latents half-way between one scene and the next.

    python examples/field.py --steps 600 --scenes 6 --out field.png
"""

import colorsys
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cips_fast import ModFC, functional, grids
from cips_fast.command_line import Parser, png_path, whole_number

DEVICE_HELP = "device that computes (default: %(default)s)"
NEAR, FAR, SAMPLES, DISTANCE = (
    1.6,
    4.0,
    32,
    2.8,
)  # distances and samples along a ray; distance of the eye from the centre
Z = 16  # entries of a latent


class Field(nn.Module):
    """Positions, view directions and a latent -> density and colour.   B scenes   R rays   N samples per ray"""

    def __init__(self, width: int = 64, depth: int = 3, octaves: int = 5, *, backend: str = "auto"):
        super().__init__()
        options = {"style_features": Z, "backend": backend}
        sizes = (3 + 6 * octaves, *[width] * (depth - 1))
        self.trunk = nn.ModuleList(ModFC(size, width, **options) for size in sizes)
        self.density = ModFC(width, 1, activation="linear", demodulate=False, **options)
        self.shade = ModFC(width + 3, width // 2, **options)
        self.colour = ModFC(width // 2, 3, activation="linear", demodulate=False, **options)
        self.register_buffer("frequencies", 0.5 * math.pi * 2.0 ** torch.arange(octaves))

    def forward(self, points: Tensor, directions: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Points [B, R, N, 3], directions [B, R, 3], latents [B, Z] -> density [B, R, N], colour [B, R, N, 3]."""
        waves = (points[..., None] * self.frequencies).flatten(-2)
        x = torch.cat([points, waves.sin(), waves.cos()], -1)
        for layer in self.trunk:
            x = layer(x, latent)
        # Without the clamp the density of air falls to e⁻¹⁰⁰, whose gradients are denormal numbers: slow on a CPU.
        density = F.softplus((10 * self.density(x, latent)[..., 0]).clamp(min=-20))
        x = self.shade(torch.cat([x, directions[:, :, None].expand_as(points)], -1), latent)
        return density, self.colour(x, latent).sigmoid()


def render(field, origins: Tensor, directions: Tensor, latent: Tensor, *, jitter: bool = False) -> Tensor:
    """Colours of rays in front of a white background: origins and directions [B, R, 3], latents [B, Z] -> [B, R, 3]."""
    samples = torch.arange(SAMPLES) + (torch.rand(*origins.shape[:2], SAMPLES) if jitter else 0.5)
    step = (FAR - NEAR) / SAMPLES
    distances = (NEAR + step * samples[..., None]).to(origins.device)  # [B, R, N, 1] or [N, 1]
    density, colour = field(origins[:, :, None] + directions[:, :, None] * distances, directions, latent)
    depth = step * density
    arriving = torch.exp((depth - depth.cumsum(-1)).clamp(min=-20))  # share of the light
    weights = arriving * -torch.expm1(-depth)
    return 1 - (weights[..., None] * (1 - colour)).sum(-2)


def true_colours(origins: Tensor, directions: Tensor) -> Tensor:
    """Colours of rays by intersection; each row is a scene: origins and directions [B, R, 3] -> [B, R, 3]."""
    turns = [i / len(origins) for i in range(len(origins))]
    hues = torch.tensor([[colorsys.hsv_to_rgb((t + shift) % 1, 0.8, 0.9) for t in turns] for shift in (0, 0.4)])
    wave = torch.tensor([[math.sin(2 * math.pi * t)] for t in turns])  # [B, 1]
    radius = 0.36 + 0.12 * wave
    half_sides = torch.stack([0.45 - 0.15 * wave, 0.45 + 0.15 * wave, torch.full_like(wave, 0.3)], -1)  # [B, 1, 3]

    from_box = origins - torch.tensor([0.0, 0.0, -0.4])
    sides = (
        torch.stack([-half_sides - from_box, half_sides - from_box]) / directions
    )  # distances at which rays cross the planes of the sides
    to_box, axis = sides.amin(0).max(-1)
    to_box = torch.where(to_box < sides.amax(0).amin(-1), to_box, torch.inf)  # [B, R]
    from_ball = origins - F.pad((radius - 0.1)[..., None], (2, 0))
    along = (from_ball * directions).sum(-1)
    under = along.square() - from_ball.square().sum(-1) + radius.square()
    nearest = -along - under.clamp(min=0).sqrt()
    to_ball = torch.where(under > 0, nearest, torch.inf)  # [B, R]

    is_ball = (to_ball < to_box)[..., None]
    on_ball = F.normalize(from_ball + nearest[..., None] * directions, dim=-1)
    normal = torch.where(is_ball, on_ball, -directions.sign() * F.one_hot(axis, 3))
    light = torch.tensor([0.48, -0.36, 0.8])
    facing = (normal * light).sum(-1, keepdim=True)
    gloss = ((light - 2 * facing * normal) * directions).sum(-1, keepdim=True).clamp(min=0) ** 20
    colour = torch.where(is_ball, *hues[:, :, None]) * (0.4 + 0.6 * facing.clamp(min=0)) + 0.5 * gloss * is_ball
    return torch.where(torch.minimum(to_ball, to_box)[..., None] < torch.inf, colour.clamp(max=1), 1.0)


def random_rays(scenes: int, rays: int) -> tuple[Tensor, Tensor]:
    """Rays from all sides and from above to points near the centre: origins and directions, [scenes, rays, 3] each."""
    origins = DISTANCE * F.normalize(torch.randn(scenes, rays, 3), dim=-1)
    origins[..., 2].abs_()
    targets = (torch.rand(scenes, rays, 3) - 0.5) * 1.6
    return origins, F.normalize(targets - origins, dim=-1)


def camera_rays(scenes: int, size: int) -> tuple[Tensor, Tensor]:
    """Rays of a camera's pixels, row by row: origins and directions, [scenes, size², 3] each."""
    ahead = F.normalize(torch.tensor([-1.2, 2.1, -1.4]), dim=0)
    right = F.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    xy = 0.36 * grids.plane(size, size).flatten(0, 1)
    directions = F.normalize(ahead + xy @ torch.stack([right, torch.linalg.cross(ahead, right)]), dim=-1)
    return (-DISTANCE * ahead).expand(scenes, size * size, 3), directions.expand(scenes, -1, -1)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio, in decibels, of a mean squared error of colours in [0, 1]."""
    return -10 * math.log10(error)


def train(field, latents: Tensor, steps: int, rays: int = 160) -> list[float]:
    """Fit a field and a latent for each scene, [B, Z], to random rays; the mean squared error of each step."""
    optimizer = torch.optim.Adam([*field.parameters(), latents], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.04, total_steps=steps, pct_start=0.1)
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        origins, directions = random_rays(len(latents), rays)
        wanted = true_colours(origins, directions).to(latents.device)
        got = render(field, origins.to(latents.device), directions.to(latents.device), latents, jitter=True)
        loss = F.mse_loss(got, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % max(steps // 10, 1) == 0:
            seconds = time.perf_counter() - start
            print(f"step {step:4}  loss {losses[-1]:.5f}  PSNR {psnr(losses[-1]):.2f} dB  {seconds:.0f} s", flush=True)
    return losses


@torch.no_grad()
def views(field, latents: Tensor, size: int) -> Tensor:
    """The views of a camera of all scenes, [B, size², 3]."""
    chunks = (rays.to(latents.device).split(512, 1) for rays in camera_rays(len(latents), size))
    return torch.cat([render(field, *chunk, latents) for chunk in zip(*chunks, strict=True)], 1).cpu()


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--steps", type=whole_number(1, 1_000_000), default=600, help="number of training steps (default: %(default)s)")
    add("--scenes", type=whole_number(1, 1000), default=6, help="number of scenes (default: %(default)s)")
    add("--size", type=whole_number(1, 2048), default=96, help="side of a view in pixels (default: %(default)s)")
    add(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="seed of the weights and the rays (default: %(default)s)",
    )
    add("--out", type=png_path, default=Path("field.png"), help="picture to write, a .png (default: %(default)s)")
    add(
        "--backend",
        default="auto",
        choices=functional.BACKENDS,
        help="implementation of the layers (default: %(default)s)",
    )
    add("--compile", action="store_true", help="compilation of the field by torch.compile")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=DEVICE_HELP)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    field = Field(backend=options.backend).to(options.device)
    latents = (0.3 * torch.randn(options.scenes, Z)).to(options.device).requires_grad_()
    run = torch.compile(field, fullgraph=True) if options.compile else field
    train(run, latents, options.steps)
    truth = true_colours(*camera_rays(options.scenes, options.size))
    rendered = views(run, latents, options.size)
    between = views(run, latents.lerp(latents.roll(-1, 0), 0.5), options.size)
    print(f"{options.out}: the camera's views have PSNR {psnr(F.mse_loss(rendered, truth).item()):.2f} dB")
    rows = torch.stack([truth, rendered, between]).unflatten(2, (options.size, options.size))
    rows = rows.transpose(1, 2).reshape(3 * options.size, -1, 3)
    Image.fromarray((rows * 255).round().byte().numpy()).save(options.out)


if __name__ == "__main__":
    main()
