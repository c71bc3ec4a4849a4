"""Our checkpoints: safetensors with the configuration inside."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .atomic import whole_file
from .generator import CIPSGenerator

CHECKSUM = "sha256"  # the metadata's entry that holds `checksum` of all else


def save(generator: CIPSGenerator, path: str | Path) -> None:
    """Write a generator's parameters and configuration to a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    write_tensors(path, tensors, {"cips_fast": json.dumps(generator.config)})


def load(path: str | Path, *, backend: str = "auto") -> CIPSGenerator:
    """Read a generator that `save` wrote, or the averaged one of a training checkpoint, in eval mode, on the CPU.

    Raises:
        FileNotFoundError: no file is there.
        ValueError: the file is damaged, or none of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint: got {str(path)!r}, which is not a file")
    try:
        tensors, metadata = read_tensors(path)
        config = json.loads(metadata["cips_fast"])
        averaged = {name.removeprefix("ema."): t for name, t in tensors.items() if name.startswith("ema.")}
    except KeyError:
        raise ValueError(f"checkpoint: {str(path)!r} was not written by cips_fast") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"checkpoint: {str(path)!r} is damaged ({error})") from None
    return assemble(config | {"backend": backend}, averaged or tensors)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with a checksum of its content in the metadata.

    Raises:
        OSError: the file cannot be written.
    """
    import safetensors.torch  # here and below: a machine that only runs networks needs no files

    metadata = dict(metadata) | {CHECKSUM: checksum(tensors, metadata)}
    with whole_file(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), str(temporary), metadata=metadata)
        except safetensors.SafetensorError as error:
            raise _as_os_error(error) from None


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged: it is no safetensors file, or its content differs from its checksum. A file
            without a checksum is taken as it is.
    """
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"checkpoint: {str(path)!r} is damaged ({error})") from None
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise ValueError(f"checkpoint: {str(path)!r} is damaged (its content differs from its checksum)")
    return tensors, metadata


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of contiguous CPU tensors, and of all metadata but itself."""
    digest = hashlib.sha256(json.dumps(sorted((k, v) for k, v in metadata.items() if k != CHECKSUM)).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_os_error(error: Exception) -> OSError:
    """What safetensors reports as text, such as `I/O error: No space left on device (os error 28)`, as an OSError."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def check_names_and_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], most: int = 8) -> None:
    """Raise ValueError, listing what differs, unless the state dict has just the wanted names and shapes."""
    wrong = [f"{name}: missing, must be {list(shape)}" for name, shape in wanted.items() if name not in state]
    wrong += [
        f"{name}: got {list(state[name].shape)}, must be {list(shape)}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    wrong += [f"{name}: unexpected, {list(state[name].shape)}" for name in state if name not in wanted]
    if wrong:
        more = f"\n  and {len(wrong) - most} more" if len(wrong) > most else ""
        raise ValueError("state_dict does not fit:\n  " + "\n  ".join(wrong[:most]) + more)


def assemble(config: dict, tensors: Mapping[str, Tensor]) -> CIPSGenerator:
    """A generator in eval mode around given tensors; drawing initial weights is skipped."""
    with torch.device("meta"):
        generator = CIPSGenerator(**config)
    check_names_and_shapes(tensors, {name: tuple(t.shape) for name, t in generator.state_dict().items()})
    generator.load_state_dict(tensors, assign=True)
    return generator.eval()
