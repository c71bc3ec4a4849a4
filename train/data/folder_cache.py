"""The cache of a folder's decoded images: one file, a .npy array followed by checksums.

    the header and pixels of a .npy file of uint8 [N, R, R, 3]     so every reader of .npy can open the file
    JSON: {"bad": {name: reason}, "crc32": [one number an image]}
    16 hexadecimal digits: length and CRC-32 of the JSON

Everything is checked: a file whose length, header or JSON differs from what was written counts as missing, and an image
whose checksum differs counts as damaged.
"""

from __future__ import annotations

import io
import json
import os
import stat
import threading
import weakref
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

SEAL_BYTES = 16  # the length and the checksum of the JSON, at the end of the file


class FolderCache:
    """An open file of decoded images. Threads may share it; other processes have to open the file themselves.

    Attributes:
        bad: files that were not readable when the cache was written, and why.
    """

    def __init__(self, path: Path, resolution: int) -> None:
        """Open and check a cache. Raises OSError if it cannot be read, and ValueError if it is damaged."""
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            raise ValueError("not a file")
        self._resolution = resolution
        self._lock = threading.Lock()
        self._file = open(path, "rb")  # noqa: SIM115, open as long as the cache is used
        weakref.finalize(self, self._file.close)
        self._read_trailer()

    def __len__(self) -> int:
        return len(self._checksums)

    def image(self, index: int) -> np.ndarray | None:
        """A copy of image `index`, uint8 [R, R, 3]; None if it can no longer be read as it was written."""
        size = 3 * self._resolution**2
        try:
            with self._lock:
                self._file.seek(self._start + index * size)
                content = bytearray(self._file.read(size))
        except OSError:
            return None
        if zlib.crc32(content) != self._checksums[index]:
            return None
        return np.frombuffer(content, np.uint8).reshape(self._resolution, self._resolution, 3)

    def _read_trailer(self) -> None:
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(max(end - SEAL_BYTES, 0))
        seal = self._file.read(SEAL_BYTES)
        length, checksum = int(seal[:8], 16), int(seal[8:], 16)
        if not 0 <= length <= end - SEAL_BYTES:
            raise ValueError("damaged: it is shorter than it was")
        self._file.seek(end - SEAL_BYTES - length)
        trailer = self._file.read(length)
        if zlib.crc32(trailer) != checksum:
            raise ValueError("damaged: the checksum of the list of images differs")
        trailer = json.loads(trailer)
        self.bad, self._checksums = trailer["bad"], trailer["crc32"]
        header = header_of(len(self), self._resolution)
        self._start = len(header)
        self._file.seek(0)
        pixels = 3 * self._resolution**2 * len(self)
        if self._file.read(len(header)) != header or end != len(header) + pixels + length + SEAL_BYTES:
            raise ValueError("damaged: its length or header differs")


def read_cache(path: Path, resolution: int) -> FolderCache | None:
    """The cache at a path; None if there is no cache or it is damaged."""
    try:
        return FolderCache(path, resolution)
    except (OSError, ValueError):
        return None


def write_cache(
    file: BinaryIO, decoded: Iterable[tuple[str, np.ndarray | None, str]], count: int, resolution: int
) -> dict[str, str]:
    """Write a cache from (name, image or None, reason) of `count` files.

    Returns:
        The reason for each file that has no image.
    """
    bad: dict[str, str] = {}
    checksums: list[int] = []
    file.write(header_of(count, resolution))
    for name, pixels, reason in decoded:
        if pixels is None:
            bad[name] = reason
        else:
            checksums.append(zlib.crc32(pixels))
            file.write(pixels)
    trailer = json.dumps({"bad": bad, "crc32": checksums}).encode()
    file.write(trailer + f"{len(trailer):08x}{zlib.crc32(trailer):08x}".encode())
    file.seek(0)
    file.write(header_of(len(checksums), resolution))  # its length is the same: numpy leaves room for the count
    return bad


def header_of(count: int, resolution: int) -> bytes:
    """The beginning of a .npy file of uint8 [count, R, R, 3]."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, resolution, resolution, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()
