"""The options of a training run, as all of the trainer sees them; config.py resolves and checks them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from cips_fast.geometry import GEOMETRIES


@dataclass(frozen=True)
class Options:
    """All options of a run, resolved. Those in `MAY_CHANGE` may differ when the run is resumed."""

    res: int
    data: str
    out: str
    kimg: float
    device: str
    precision: str
    backend: str
    seed: int
    preset: str
    crop: int
    batch: int
    pixel_chunk: int | None
    stride_shares: tuple[float, ...]
    mirror: bool
    geometry: str
    variant: str
    width: int | str
    activation: str
    style_features: int
    mapping_layers: int
    embedding_size: int
    embedding_std: float
    max_frequency: float
    rgb_std: float
    style_std: float
    style_mixing: float
    d_channels: int
    d_base: int
    g_lr: float
    d_lr: float
    r1_gamma: float
    r1_every: int
    ema_kimg: float
    ema_ramp_up: float
    log_every: int
    preview_minutes: float
    checkpoint_minutes: float

    @property
    def patches(self) -> bool:
        """Whether the discriminator sees patches of images, together with their coordinates."""
        return self.crop < self.res or GEOMETRIES[self.geometry].wraps_any


MAY_CHANGE = frozenset({"out", "kimg", "device", "pixel_chunk", "log_every", "preview_minutes", "checkpoint_minutes"})


def to_dict(options: Options) -> dict[str, Any]:
    """Options as JSON values."""
    return json_values(dataclasses.asdict(options))


def json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Values with lists in place of tuples, as a JSON file has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
