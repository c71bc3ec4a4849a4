"""The file stats.jsonl: one JSON object a line, one line a logged step, in the order of the steps."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cips_fast.files.atomic import write_whole


def append_record(file: Path, record: Mapping[str, Any]) -> None:
    """Append a line, with null for numbers that are not finite. If that fails, raise OSError and restore the file."""
    line = _line(record)
    with open(file, "ab", buffering=0) as stream:
        end = stream.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[stream.write(line) :]
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(end)
            raise


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records in the order of their steps, without lines that are damaged or cut off.

    If two records are of the same step, the later one counts.
    """
    records = {}
    for line in file.read_text("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def forget_after(file: Path, step: int) -> None:
    """Keep only the records up to a step; write the file only if that changes it.

    Raises:
        OSError: the file cannot be read or written.
    """
    if file.exists():
        kept = b"".join(_line(record) for record in read_records(file) if record["step"] <= step)
        if kept != file.read_bytes():
            write_whole(file, kept)


def _line(record: Mapping[str, Any]) -> bytes:
    finite = {name: None if _is_not_finite(value) else value for name, value in record.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
