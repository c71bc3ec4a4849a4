"""Fast image generators with conditionally-independent pixel synthesis (CIPS, Anokhin et al., arXiv 2011.13775)."""

import sys as _sys
from importlib.util import module_from_spec as _module_from_spec
from importlib.util import spec_from_file_location as _spec_from_file_location
from pathlib import Path as _Path


def _register(name: str, folder: _Path) -> None:
    """Make a folder the sub-package `cips_fast.name`, although it does not lie in this package's folder."""
    spec = _spec_from_file_location(
        f"{__name__}.{name}", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = _module_from_spec(spec)
    _sys.modules[spec.name] = globals()[name] = module
    spec.loader.exec_module(module)


# In a wheel the folders `kernels` and `train` are in this folder. In a checkout they are next to it.
_here = _Path(__file__).resolve().parent
for _name in ("kernels", "train"):
    if not (_here / _name).is_dir():
        _register(_name, _here.parent / _name)

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
