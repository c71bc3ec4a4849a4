"""Where a run folder keeps its checkpoints, which is the newest, and which is the newest that can be used.

    checkpoints/step-000000100.safetensors   a checkpoint, named by its step
    checkpoints/latest                       the name of the newest one

A user who wants to go back writes the name of an older checkpoint into `latest`. If a checkpoint is newer than the file
`latest`, the run was stopped after it wrote the checkpoint and before it wrote `latest`; then the checkpoint counts.
"""

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .files.untrusted import CheckpointError

NAME = re.compile(r"step-([0-9]+)\.safetensors")
Content = TypeVar("Content")
PassedOver = list[tuple[Path, str]]  # (checkpoint, why it cannot be used)


def checkpoint_folder(run: str | Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(run) / "checkpoints"


def latest_file(run: str | Path) -> Path:
    """The file that holds the name of a run's newest checkpoint."""
    return checkpoint_folder(run) / "latest"


def checkpoint_file(run: str | Path, step: int) -> Path:
    """The file of a run's checkpoint of a step."""
    return checkpoint_folder(run) / f"step-{step:09d}.safetensors"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's file name; None if the file is not named as a checkpoint."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def by_step(folder: str | Path) -> list[Path]:
    """All files named as checkpoints in a run folder, the highest step first."""
    found = [path for path in checkpoint_folder(folder).glob("step-*") if step_of(path) is not None]
    return sorted(found, key=lambda path: (step_of(path), path.name), reverse=True)


def candidates(folder: str | Path) -> list[Path]:
    """The checkpoints of a run folder in the order in which they should be tried.

    The one that `latest` names comes first, then all others, the highest step first. If `latest` cannot be used, or a
    checkpoint of a higher step was written after it, all are in the order of their steps, the highest first.

    Raises:
        PermissionError: `latest` may not be read.
    """
    return _candidates(folder)[0]


def open_newest(folder: str | Path, read: Callable[[Path], Content]) -> tuple[Path, Content, PassedOver]:
    """Read the newest sound checkpoint of a run folder.

    Args:
        folder: the run folder.
        read: reads one checkpoint; raises ValueError or OSError if it is damaged. A PermissionError does not count as
            damage.

    Returns:
        The checkpoint's path, what `read` returned, and what was passed over: (path, reason) of every checkpoint that
        was tried before, and of `latest` if it is missing or damaged. The file's name and the reason make a clause,
        such as "step-000000100.safetensors is damaged (…)".

    Raises:
        FileNotFoundError: the folder has no checkpoints.
        ValueError: the folder has checkpoints, but none is sound; the message names them with the reasons.
        PermissionError: the user may not read a file that has to be tried before a sound one is found.
    """
    paths, passed_over = _candidates(folder)
    if not paths:
        raise FileNotFoundError(f"{str(folder)!r} has no checkpoints")
    for path in paths:
        try:
            return path, read(path), passed_over
        except PermissionError as error:
            raise PermissionError(f"{str(path)!r} {reason(path, error)}") from None
        except (ValueError, OSError) as error:
            passed_over.append((path, reason(path, error)))
    reasons = "; ".join(f"{path.name} {why}" for path, why in passed_over)
    raise ValueError(f"no checkpoint in {str(paths[0].parent)!r} can be used: {reasons}")


def reason(path: Path, error: Exception) -> str:
    """Why a checkpoint cannot be used, as the rest of a sentence that begins with its name."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    fault = error.fault if isinstance(error, CheckpointError) else str(error)
    return fault.replace("\n", " ")


def _candidates(folder: str | Path) -> tuple[list[Path], PassedOver]:
    paths = by_step(folder)
    latest = latest_file(folder)
    try:
        named = latest.with_name(_text(latest.read_bytes()))
        written = latest.stat().st_mtime_ns
    except FileNotFoundError:
        return paths, [(latest, "is missing")] if paths else []
    except PermissionError as error:
        raise PermissionError(f"{str(latest)!r} {reason(latest, error)}") from None
    except OSError as error:
        return paths, [(latest, reason(latest, error))]
    except ValueError:
        return paths, [(latest, "is damaged (it does not hold a checkpoint's name)")]
    if named not in paths:
        return paths, [(latest, f"names {named.name!r}, which is missing")]
    newer = paths[: paths.index(named)]
    if any(_written(path) > written for path in newer):
        return paths, []
    return [named, *newer, *paths[len(newer) + 1 :]], []


def _written(path: Path) -> int:
    """When a file was last written; 0 if it was removed in the meantime."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _text(content: bytes) -> str:
    """The checkpoint's name in `latest`, in UTF-8 or in the UTF-16 of PowerShell; ValueError if there is none."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    name = content.decode("utf-16" if utf16 else "utf-8-sig").strip()
    if not NAME.fullmatch(name):
        raise ValueError(f"got {name[:80]!r}, must be a checkpoint's name")
    return name
