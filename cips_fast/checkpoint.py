"""This library's checkpoints: safetensors files that hold the configuration as well."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .backends.choice import BACKENDS
from .checks import ArgumentError, check_choice, shown
from .files.atomic import whole_file
from .files.untrusted import PICKLE, SAFETENSORS, ZIP, CheckpointError, first_line, kind_of, not_a_checkpoint, open_file
from .generator import CIPSGenerator
from .settings import check_agreement, parse_settings

SETTINGS = "cips_fast"  # the metadata's entry that holds `CIPSGenerator.config` as JSON
AVERAGED = "ema"  # with a dot, what names in a training checkpoint begin with if they are the averaged generator's
CHECKSUM = "sha256"  # the metadata's entry that holds the `checksum` of all other content
MAX_HEADER_BYTES = 1 << 24  # a header takes about a hundred bytes for a tensor
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def save(generator: CIPSGenerator, path: str | Path) -> None:
    """Write a generator's parameters and configuration to a safetensors file, whole or not at all.

    Args:
        generator: on any device.
        path: the file; its ending is usually .safetensors, but may be any.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    write_tensors(path, tensors, {SETTINGS: json.dumps(generator.config)})


def load(path: str | Path, *, backend: str = "auto") -> CIPSGenerator:
    """The generator that `save` wrote, or the averaged one in a training checkpoint, in eval mode, on the CPU.

    Args:
        path: a safetensors file of this library. `cips_fast.load` also reads run folders and published checkpoints.
        backend: see `cips_fast.backends.choice`.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: the file is damaged, another program or a later version of this library wrote it, or it has values
            that are not finite.
    """
    return from_tensors(path, *read_tensors(path), backend=backend)


def from_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, backend: str = "auto"
) -> CIPSGenerator:
    """The generator in the tensors and metadata that `read_tensors` read from a file; see `load`.

    Raises:
        ValueError: as in `load`.
    """
    check_choice("backend", backend, BACKENDS)
    if SETTINGS not in metadata:
        raise CheckpointError(path, "was not written by cips_fast")
    prefix = f"{AVERAGED}."
    averaged = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    tensors = averaged or tensors
    try:
        settings = parse_settings(metadata[SETTINGS])
        generator = unfilled(settings | {"backend": backend})
        check_agreement(settings, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        check_dtypes(tensors)
        fill(generator, tensors)
    except ValueError as error:
        raise CheckpointError(path, f"cannot be used ({error})") from None
    if reason := not_finite(generator.state_dict()):
        raise CheckpointError(path, f"cannot be used ({reason})")
    return generator


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with a checksum of the content in its metadata.

    Raises:
        OSError: the file cannot be written.
    """
    import safetensors.torch  # here and below, since a machine that only runs networks need not have it

    metadata = dict(metadata) | {CHECKSUM: checksum(tensors, metadata)}
    with whole_file(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), str(temporary), metadata=metadata)
        except safetensors.SafetensorError as error:
            raise _as_os_error(error) from None
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file by name, since safetensors writes it in an order that varies.

    The header keeps its length: that of compact JSON with padding.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise ValueError(f"the sorted header has {len(text)} bytes, must have {length}")
        file.seek(8)
        file.write(text)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file, whatever its name.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file, it is damaged, or its content differs from its checksum. A file
            without a checksum is accepted.
    """
    import safetensors

    kind = kind_of(path)
    if kind in (ZIP, PICKLE):
        raise CheckpointError(path, "is not a safetensors file: torch.save wrote it")
    if kind != SAFETENSORS:
        raise not_a_checkpoint(path)
    _check_header(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(path, f"is damaged ({first_line(error)})") from None
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise CheckpointError(path, "is damaged (its content differs from its checksum)")
    return tensors, metadata


def _check_header(path: str | Path) -> None:
    """Raise ValueError unless the header is complete and not too long to be read quickly."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        rest = os.fstat(file.fileno()).st_size - 8
    if length > min(rest, MAX_HEADER_BYTES):
        most = f"at most {MAX_HEADER_BYTES}" if length > MAX_HEADER_BYTES else f"at most {rest}"
        raise CheckpointError(path, f"is damaged (its header has {length} bytes, must have {most})")


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of contiguous CPU tensors, and of metadata except `CHECKSUM`."""
    digest = hashlib.sha256(json.dumps(sorted((k, v) for k, v in metadata.items() if k != CHECKSUM)).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_os_error(error: Exception) -> OSError:
    """An OSError from the text of a safetensors error, such as `I/O error: No space left on device (os error 28)`."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def check_names_and_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], most: int = 8) -> None:
    """Raise ValueError unless the names and shapes are those wanted; its message of one line lists what differs."""
    wrong = [f"{name}: missing, must be {list(shape)}" for name, shape in wanted.items() if name not in state]
    wrong += [
        f"{name}: got {shown(list(state[name].shape))}, must be {list(shape)}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    wrong += [
        f"{first_line(name, 60)}: unexpected, {shown(list(tensor.shape))}"
        for name, tensor in state.items()
        if name not in wanted
    ]
    if wrong:
        more = f"; and {len(wrong) - most} more" if len(wrong) > most else ""
        raise ArgumentError("state_dict", "does not fit: " + "; ".join(wrong[:most]) + more)


def check_dtypes(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError, which names a tensor, unless all tensors have the same dtype and it is one of `DTYPES`."""
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    usual = max(Counter(dtypes.values()).items(), key=lambda item: item[1], default=(None, 0))[0]
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ArgumentError(first_line(name, 60), f"got {dtype}, must be one of {', '.join(map(str, DTYPES))}")
        if dtype != usual:
            raise ArgumentError(first_line(name, 60), f"got {dtype}, must be {usual} as the other tensors")


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, in words such as `phase: 2 of 8 values are not finite`, or None."""
    for name, tensor in state.items():
        if bad := tensor.numel() - int(torch.isfinite(tensor).sum()):
            return f"{first_line(name, 60)}: {bad} of {tensor.numel()} values are not finite"
    return None


def unfilled(config: dict) -> CIPSGenerator:
    """A generator in eval mode with tensors on the meta device, so that no initial weights are drawn."""
    with torch.device("meta"):
        return CIPSGenerator(**config).eval()


def fill(generator: CIPSGenerator, tensors: Mapping[str, Tensor]) -> None:
    """Let a generator use the given tensors instead of its own; ValueError if a name or shape differs."""
    check_names_and_shapes(tensors, {name: tuple(t.shape) for name, t in generator.state_dict().items()})
    generator.load_state_dict(tensors, assign=True)
