"""The run folder: options, statistics, previews and checkpoints, each written whole or not at all.

options.json  stats.jsonl  samples/*.png  checkpoints/step-*.safetensors  checkpoints/latest  .lock
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from cips_fast.checkpoint import read_tensors, write_tensors
from cips_fast.command_line import OptionError
from cips_fast.console import warn
from cips_fast.files import lock
from cips_fast.files.atomic import TEMPORARY, temporary_path, whole_file, write_whole
from cips_fast.run_checkpoints import (
    by_step,
    candidates,
    checkpoint_file,
    checkpoint_folder,
    latest_file,
    open_newest,
    step_of,
)

from .finite import NotFinite, not_finite
from .options import MAY_CHANGE, Options, to_dict
from .stats_file import append_record, forget_after

KEPT_CHECKPOINTS = 3
OLD_DEFAULTS = {"geometry": "plane"}  # options that options.json of earlier versions lacks, and what those runs did
LOCK = ".lock"
# Temporary files that earlier versions of this library, or safetensors, left when a run was killed.
OTHER_TEMPORARY = re.compile(r"(options|stats|latest|step-.*|kimg-.*)\.partial|\.tmp\w+")
BEFORE_OPTIONS = ("samples", "checkpoints", LOCK)  # what a run creates before it writes options.json


class RunFolder:
    """The folder of one run: it belongs to one configuration and, while it is locked, to one process.

    Only `locked` and `open` create the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.samples = self.path / "samples"
        self.checkpoints = checkpoint_folder(self.path)
        self._lock = None

    def check(self, options: Options) -> None:
        """Raise OptionError if the folder holds anything but a run with these options.

        The options may change as long as the run has no checkpoint.
        """
        file = self.path / "options.json"
        try:
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise OptionError(f"--out: got {str(self.path)!r}, must be a folder")
            if not file.exists():
                if not self._is_unused():
                    raise OptionError(f"--out: got {str(self.path)!r}, must be empty, absent or a run's folder")
                return
            held = _options_in(file)
        except OSError as error:
            raise OptionError(f"--out: got {str(self.path)!r}, which cannot be read ({error.strerror})") from None
        wanted = to_dict(options)
        differing = [name for name in wanted if name not in MAY_CHANGE and held[name] != wanted[name]]
        if differing and any(self.checkpoints.glob("step-*")):
            pairs = ", ".join(f"--{n.replace('_', '-')} {held[n]!r}, not {wanted[n]!r}" for n in differing)
            raise OptionError(f"--out: the run in {str(self.path)!r} has {pairs}; give another folder or those options")

    @contextlib.contextmanager
    def locked(self, create: bool = True) -> Iterator[None]:
        """Keep other runs out of the folder while the block runs. Within such a block, another one has no effect.

        Args:
            create: make the folder if it is absent. If False, a folder that no run has used yet is neither changed nor
                locked.

        Raises:
            OptionError: another run is working in the folder, or the folder cannot be written.
        """
        if self._lock is not None or not (create or self._is_known()):
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "ab")  # noqa: SIM115, closed below
        except OSError as error:
            raise self._unwritable(error) from None
        with file:
            try:
                lock.hold(file)
            except BlockingIOError:
                raise OptionError(f"--out: another run is at work in {str(self.path)!r}") from None
            self._lock = file
            try:
                yield
            finally:
                self._lock = None

    def open(self, options: Options) -> None:
        """Make the folders, remove temporary files of killed runs, test that files can be written, write the options.

        Raises:
            OptionError: a folder or a file cannot be written. If that is true of samples/ only, it is a warning.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._clear_temporary_files()
            _try_writing(self.checkpoints)
            write_whole(self.path / "options.json", json.dumps(to_dict(options), indent=2).encode())
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self.samples.mkdir(exist_ok=True)
            _try_writing(self.samples)
        except OSError as error:
            warn(f"previews cannot be written into {str(self.samples)!r} ({error.strerror})")

    def latest(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and metadata of the newest sound checkpoint; None if there is no checkpoint yet.

        Raises:
            OptionError: there are checkpoints, but none is sound.
        """
        try:
            return open_newest(self.path, read_tensors)[1]
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise OptionError(f"--out: {error}") from None

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
        """Write a checkpoint, let `latest` name it, and remove all but the newest few checkpoints.

        Raises:
            NotFinite: a tensor is not finite; nothing is written.
            OSError: the checkpoint or `latest` cannot be written; then no checkpoint is removed.
        """
        if bad := not_finite(tensors):
            raise NotFinite(bad)
        file = checkpoint_file(self.path, step)
        write_tensors(file, tensors, metadata)
        self.point_at(file)
        up_to_this = [path for path in by_step(self.path) if step_of(path) <= step]
        for old in up_to_this[KEPT_CHECKPOINTS:]:
            try:
                old.unlink()
            except OSError as error:
                warn(f"the old checkpoint {str(old)!r} cannot be removed ({error.strerror})")
        return file

    def point_at(self, file: Path) -> None:
        """Let `latest` name a checkpoint; OSError if `latest` cannot be written."""
        latest = latest_file(self.path)
        name = file.name.encode()
        if not latest.is_file() or latest.read_bytes() != name:
            write_whole(latest, name)

    def set_aside(self, path: Path, ending: str) -> Path:
        """Rename a checkpoint: it is kept for the user, but the run no longer uses or counts it."""
        aside = path.with_name(f"{path.name}.{ending}")
        number = 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.name}.{ending}-{number}")
        return path.rename(aside)

    def newest_in_words(self) -> str:
        """Which checkpoint is the newest, as a part of a message."""
        paths = candidates(self.path)
        return f"step {step_of(paths[0])} is the newest checkpoint" if paths else "there is no checkpoint yet"

    def keep_inputs(self, step: int, tensors: Mapping[str, Tensor], not_finite: str) -> Path:
        """Write the inputs of a step that gave a number that is not finite; OSError if they cannot be written."""
        file = self.path / f"nonfinite-step-{step:09d}.safetensors"
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(file, contiguous, {"step": str(step), "not_finite": not_finite})
        return file

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to stats.jsonl. If that fails, raise OSError and leave the file as it was."""
        append_record(self.path / "stats.jsonl", record)

    def forget_stats_after(self, step: int) -> None:
        """Remove the lines of later steps from stats.jsonl: those steps will be done again."""
        forget_after(self.path / "stats.jsonl", step)

    def preview(self, kimg: float, image: Image.Image) -> Path:
        """Write a preview grid, named after the number of images seen."""
        file = self.samples / f"kimg-{kimg:010.3f}.png"
        with whole_file(file) as temporary:
            image.save(temporary, format="PNG")
        return file

    def _is_known(self) -> bool:
        """Whether a run has used the folder."""
        try:
            return any((self.path / name).exists() for name in (LOCK, "options.json"))
        except OSError:  # such as a name that is too long, which `check` reports
            return False

    def _is_unused(self) -> bool:
        """Whether a folder without options.json holds nothing but what a run makes before it writes that file."""
        entries = [entry for entry in self.path.iterdir() if entry.name not in BEFORE_OPTIONS]
        for folder in (self.samples, self.checkpoints):
            entries += folder.iterdir() if folder.is_dir() else []
        return all(_is_temporary(entry) for entry in entries)

    def _clear_temporary_files(self) -> None:
        for folder in (self.path, self.samples, self.checkpoints):
            if folder.is_dir():
                for file in folder.iterdir():
                    in_use = folder == self.path and _is_of_a_living_process(file)
                    if _is_temporary(file) and file.is_file() and not in_use:
                        file.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> OptionError:
        file = error.filename or str(self.path)
        return OptionError(f"--out: got {str(self.path)!r}, but {file!r} cannot be written ({error.strerror})")


def _options_in(file: Path) -> dict[str, Any]:
    """The options that a run was started with; OptionError if the file is damaged."""
    advice = "start a run with the same options in a new folder and copy its options.json here"
    try:
        held = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--out: {str(file)!r} is damaged ({error}); {advice}") from None
    names = [name for name in Options.__dataclass_fields__ if name not in MAY_CHANGE and name not in OLD_DEFAULTS]
    if not isinstance(held, dict):
        raise OptionError(f"--out: {str(file)!r} is damaged (it holds no options); {advice}")
    if missing := [name for name in names if name not in held]:
        raise OptionError(f"--out: {str(file)!r} is damaged (it lacks {missing[0]!r}); {advice}")
    return OLD_DEFAULTS | held


def _try_writing(folder: Path) -> None:
    """Raise OSError unless a file can be written into the folder."""
    file = temporary_path(folder / "file")
    try:
        file.write_bytes(b"x" * 4096)
    finally:
        file.unlink(missing_ok=True)


def _is_temporary(file: Path) -> bool:
    """Whether a killed run may have left the file, by its name."""
    return TEMPORARY.fullmatch(file.name) is not None or OTHER_TEMPORARY.fullmatch(file.name) is not None


def _is_of_a_living_process(file: Path) -> bool:
    """Whether another command, such as `sample`, may still be writing this temporary file."""
    number = re.match(r"\.([0-9]+)-", file.name)
    if number is None or int(number[1]) == os.getpid():
        return False
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(int(number[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process exists and belongs to another user
        return True
    return True
