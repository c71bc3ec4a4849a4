"""Reading files that `torch.save` wrote. Only tensors, numbers and texts are read, and nothing is executed."""

import os
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from .untrusted import PICKLE, ZIP, CheckpointError, first_line, kind_of, not_a_checkpoint, open_file

# What `torch.load` and `zipfile` raise if the file is damaged.
UNREADABLE = (
    *(OSError, EOFError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(ImportError, pickle.PickleError),
)


def read_torch_file(path: str | Path) -> object:
    """The content of a file of `torch.save`, on the CPU, read with weights_only=True.

    Unlike `torch.load`, this compares the checksums in the file.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: it is not such a file, it is damaged, or it holds more than tensors, numbers and texts.
    """
    kind = kind_of(path)
    if kind not in (ZIP, PICKLE):
        raise not_a_checkpoint(path)
    with open_file(path) as file:
        try:
            if kind == ZIP:
                _check_zip(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns about classes that old files name
                return torch.load(file, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise CheckpointError(path, f"cannot be read as tensors alone ({_reason(error)})") from None


def _check_zip(file: BinaryIO) -> None:
    """Raise one of `UNREADABLE` unless all parts are stored without compression and agree with their checksums."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("its parts are compressed, which torch.save does not do")
        if sum(part.file_size for part in parts) > os.fstat(file.fileno()).st_size:
            raise ValueError("its parts are larger than the file")
        # With torch.serialization.set_crc32_options(False) all checksums are 0.
        if any(part.CRC for part in parts) and (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged!r} differs from its checksum")
    file.seek(0)


def _reason(error: BaseException) -> str:
    """The reason in one line, without PyTorch's advice to switch off weights_only."""
    if isinstance(error, zipfile.BadZipFile | EOFError):
        return "it is cut off or damaged"
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {first_line(found[1])}, which is not a tensor"
    if found := re.search(r"WeightsUnpickler error: (.*)", text):
        return first_line(found[1])
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is damaged"
    return first_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
