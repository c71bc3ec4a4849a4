"""Fast image generators with conditionally-independent pixel synthesis (CIPS, Anokhin et al., arXiv 2011.13775)."""

from importlib.util import module_from_spec as _module_from_spec
from importlib.util import spec_from_file_location as _spec_from_file_location
from pathlib import Path as _Path


def _register(name: str, folder: _Path) -> None:
    """Make a folder beside this package its sub-package `cips_fast.name`, and nothing else that lies there."""
    import sys

    spec = _spec_from_file_location(
        f"{__name__}.{name}", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = _module_from_spec(spec)
    sys.modules[spec.name] = globals()[name] = module
    spec.loader.exec_module(module)


# A wheel has `cips_fast.kernels` and `cips_fast.train` in this folder, a checkout beside it.
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
