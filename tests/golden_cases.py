"""The golden cases of the published code: weights drawn by the recipe in the cases' README, inputs and outputs read."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def load_case(name: str) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray], dict]:
    """The state dict in the checkpoint's own names, the arrays of NAME.npz, and NAME.json less its `params`."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    params = meta.pop("params")
    state = {key: torch.from_numpy(_draw(key, entry, meta["seed"])) for key, entry in params.items()}
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return state, dict(arrays), meta


def _draw(key: str, entry: dict, seed: int) -> np.ndarray:
    if "fixed" in entry:
        return np.array(entry["fixed"], dtype=np.float32).reshape(entry["shape"])
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    value = rng.standard_normal(entry["shape"], dtype=np.float32)
    return value * np.float32(entry["scale"]) + np.float32(entry["shift"])
