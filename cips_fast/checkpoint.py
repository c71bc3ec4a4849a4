"""Our checkpoints: safetensors with the configuration inside."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .generator import CIPSGenerator


def save(generator: CIPSGenerator, path: str | Path) -> None:
    """Write a generator's parameters and configuration to a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    safetensors.torch.save_file(tensors, str(path), metadata={"cips_fast": json.dumps(generator.config)})


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
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint: {str(path)!r} is damaged ({error})") from None
    return assemble(config | {"backend": backend}, averaged or tensors)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; SafetensorError where it is damaged."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


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
