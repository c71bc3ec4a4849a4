"""Resuming a run: find the checkpoint that it continues from, and rename the checkpoints that it does not use."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from cips_fast.checkpoint import read_tensors
from cips_fast.command_line import OptionError
from cips_fast.console import say, warn
from cips_fast.run_checkpoints import PassedOver, by_step, latest_file, open_newest, reason, step_of

from .metadata import step_in
from .run_folder import RunFolder

State = tuple[dict[str, Tensor], dict[str, str]]
Check = Callable[[dict[str, Tensor], dict[str, str]], None]


@dataclass
class Found:
    """The checkpoint that a run continues from.

    Attributes:
        path: its file.
        state: its tensors and metadata.
        passed_over: checkpoints that cannot be used, with the reasons, and `latest` if it is missing or damaged.
        superseded: checkpoints of higher steps than the one that the user named in `latest`.
    """

    path: Path
    state: State
    passed_over: PassedOver
    superseded: list[Path] = field(default_factory=list)


def find(folder: RunFolder, check: Check) -> Found | None:
    """The newest sound checkpoint; None if the run has no checkpoint yet.

    All older checkpoints are checked as well, so that the run later counts only sound ones among those that it keeps.

    Args:
        folder: the run folder, which is not changed.
        check: raises ValueError if a state is not complete.

    Raises:
        OptionError: there are checkpoints, but none that can be used.
    """

    def read(path: Path) -> State:
        tensors, metadata = read_tensors(path)
        check(tensors, metadata)
        if step_in(metadata) != step_of(path):
            raise ValueError(f"is damaged (it holds step {metadata['step']})")
        return tensors, metadata

    try:
        path, state, passed_over = open_newest(folder.path, read)
    except FileNotFoundError:
        if (latest := latest_file(folder.path)).exists():
            raise OptionError(
                f"--out: {str(latest)!r} is there, but no checkpoint; delete it to start the run from its beginning"
            ) from None
        return None
    except (ValueError, OSError) as error:
        raise OptionError(f"--out: {error}; nothing was changed") from None
    found = Found(path, state, passed_over)
    for other in by_step(folder.path):
        if other == path or other in [bad for bad, _ in passed_over]:
            continue
        if step_of(other) > step_of(path):
            found.superseded.append(other)
            continue
        try:
            read(other)
        except PermissionError:  # does not count as damage
            continue
        except (ValueError, OSError) as error:
            passed_over.append((other, reason(other, error)))
    return found


def settle(folder: RunFolder, found: Found) -> None:
    """Rename the checkpoints that are passed over or superseded, let `latest` name the one that was found, and say so.

    Raises:
        OptionError: the folder cannot be written.
    """
    clauses = []
    try:
        for path, why in found.passed_over:
            is_checkpoint = step_of(path) is not None  # else it is `latest`
            kept = f", kept as {folder.set_aside(path, 'damaged').name}" if is_checkpoint else ""
            clauses.append(f"{path.name} {why}{kept}")
        aside = [folder.set_aside(path, "superseded").name for path in found.superseded]
        folder.point_at(found.path)
    except OSError as error:
        raise OptionError(f"--out: {error.filename!r} cannot be written ({error.strerror})") from None
    if clauses:
        warn(f"passed over: {'; '.join(clauses)}")
    if aside:
        say(f"going back to {found.path.name}, which checkpoints/latest names; kept as {', '.join(aside)}")
