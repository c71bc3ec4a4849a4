"""Fast image generators with conditionally-independent pixel synthesis (CIPS, Anokhin et al., arXiv 2011.13775)."""

from pathlib import Path as _Path

# In a bare checkout `cips_fast.kernels` and `cips_fast.train` lie beside this folder, not in it.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))

from . import checkpoint, functional, grids, render
from .generator import CIPSGenerator
from .loading import load
from .modules import FourierEncoding, Mapping, ModFC, ToRGB
from .published import load_published
from .sampling import latents, save_image

__version__ = "0.1.0"

__all__ = [
    "CIPSGenerator",
    "FourierEncoding",
    "Mapping",
    "ModFC",
    "ToRGB",
    "__version__",
    "checkpoint",
    "functional",
    "grids",
    "latents",
    "load",
    "load_published",
    "render",
    "save_image",
]
