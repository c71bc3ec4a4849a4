"""Files that `torch.save` wrote, read as tensors alone: nothing in them is executed."""

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

# What `torch.load` and `zipfile` raise over bytes that are not what they should be.
UNREADABLE = (
    *(OSError, EOFError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(ImportError, pickle.PickleError),
)


def read_torch_file(path: str | Path) -> object:
    """What a file of `torch.save` holds, on the CPU, read with weights_only=True.

    The checksums that the file holds of its parts are compared, which `torch.load` does not do.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: it is no such file, it is damaged, or it holds more than tensors, numbers and texts.
    """
    kind = kind_of(path)
    if kind not in (ZIP, PICKLE):
        raise not_a_checkpoint(path)
    with open_file(path) as file:
        try:
            if kind == ZIP:
                _check_zip(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on classes that old files name
                return torch.load(file, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise CheckpointError(path, f"cannot be read as tensors alone ({_reason(error)})") from None


def _check_zip(file: BinaryIO) -> None:
    """Raise one of `UNREADABLE` unless all parts are stored as they are, once, and fit their checksums."""
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
    """One line, without PyTorch's advice to switch the protection off."""
    if isinstance(error, zipfile.BadZipFile | EOFError):
        return "it is cut off or damaged"
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {first_line(found[1])}, which is no tensor"
    if found := re.search(r"WeightsUnpickler error: (.*)", text):
        return first_line(found[1])
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is damaged"
    return first_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
