"""Loading a generator from a run folder, a checkpoint of this library or a published checkpoint."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .backends.choice import BACKENDS
from .checkpoint import SETTINGS, from_tensors, read_tensors
from .checks import ArgumentError, argument_os_error, check_choice
from .files.untrusted import OTHER, SAFETENSORS, CheckpointError, first_line, kind_of, not_a_checkpoint
from .generator import ACTIVATIONS, CIPSGenerator
from .published import load_published
from .run_checkpoints import open_newest

SOURCES = "a run folder, a checkpoint of cips_fast (.safetensors) or a published one (.pt)"


def load(
    source: str | Path,
    *,
    activation: str | None = None,
    integer_coords: bool = False,
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> CIPSGenerator:
    """The generator in a run folder or a checkpoint, in eval mode; for a run, it is the averaged generator.

    The content of a file tells its kind. In a run folder, the newest sound checkpoint is read; a warning names newer
    checkpoints that cannot be used.

    Args:
        source: a run folder; a file that training, `checkpoint.save` or `convert` wrote; or a checkpoint of the
            published code, see `load_published`.
        activation: `sin` or `sinrelu`, needed for published checkpoints with sines. For all others it may be None;
            otherwise it must be the checkpoint's activation.
        integer_coords: whether the grid of a published checkpoint is counted in pixels. A checkpoint of this library
            holds this itself; True is an error if that checkpoint's grid is not counted in pixels.
        backend: see `cips_fast.backends.choice`.
        device: the device of the parameters.

    Raises:
        FileNotFoundError: no file is there, or the folder has no checkpoints.
        OSError: a file cannot be read.
        ValueError: an argument is none of the above, or the checkpoint cannot be used: it is damaged, has values that
            are not finite, or is not a checkpoint. The message is one line.
    """
    check_choice("backend", backend, BACKENDS)
    if activation is not None:
        check_choice("activation", activation, ACTIVATIONS)
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError("source", f"got {type(source).__name__}, must be a path: {SOURCES}")
    where = _device(device)

    def read(path: Path) -> CIPSGenerator:
        return _read(path, activation, integer_coords, backend)

    generator = _newest(Path(source), read) if os.path.isdir(source) else read(Path(source))
    return generator.to(where)


def _newest(folder: Path, read: Callable[[Path], CIPSGenerator]) -> CIPSGenerator:
    """The generator in the newest sound checkpoint of a run folder; warns if newer ones cannot be used."""
    try:
        path, generator, passed_over = open_newest(folder, read)
    except FileNotFoundError:
        inner = " (give the run's folder, not the one of its checkpoints)" if folder.name == "checkpoints" else ""
        reason = f"got {str(folder)!r}, a folder without checkpoints, must be {SOURCES}{inner}"
        raise argument_os_error(FileNotFoundError, "source", reason) from None
    if passed_over:
        reasons = "; ".join(f"{file.name} {reason}" for file, reason in passed_over)
        warnings.warn(f"{str(folder)!r}: {reasons}; {path.name} is used", stacklevel=3)
    return generator


def _read(path: Path, activation: str | None, integer_coords: bool, backend: str) -> CIPSGenerator:
    """The generator in a file; ValueError if it is not what the caller's arguments say."""
    try:
        kind = kind_of(path)
    except FileNotFoundError:
        reason = f"got {str(path)!r}, which is not a file, must be {SOURCES}"
        raise argument_os_error(FileNotFoundError, "source", reason) from None
    if kind == OTHER:
        raise CheckpointError(path, f"{not_a_checkpoint(path).fault}; must be {SOURCES}")
    content: Path | dict[str, Tensor] = path
    if kind == SAFETENSORS:
        content, metadata = read_tensors(path)
        if SETTINGS in metadata:
            generator = from_tensors(path, content, metadata, backend=backend)
            _check_arguments(generator, activation, integer_coords)
            return generator
    try:
        return load_published(content, activation=activation, integer_coords=integer_coords, backend=backend)
    except ArgumentError as error:
        if error.name != "state_dict":
            raise
        raise CheckpointError(path, f"cannot be used ({error})") from None


def _check_arguments(generator: CIPSGenerator, activation: str | None, integer_coords: bool) -> None:
    """Raise ValueError if an argument contradicts a checkpoint of this library."""
    if activation not in (None, generator.activation):
        raise ArgumentError("activation", f"got {activation!r}, but the checkpoint's is {generator.activation!r}")
    if integer_coords and not generator.integer_coords:
        raise ArgumentError("integer_coords", "got True, but the checkpoint's grid is not counted in pixels")


def _device(name: str | torch.device) -> torch.device:
    """The device; ValueError if it cannot be used here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ArgumentError("device", f"got {name!r}, which cannot be used here ({first_line(error)})") from None
    if device.type == "meta":
        raise ArgumentError("device", f"got {name!r}, which holds no values")
    return device
