"""The run folder: options, statistics, previews and checkpoints, each written whole or not at all.

options.json  stats.jsonl  samples/*.png  checkpoints/step-*.safetensors  checkpoints/latest
"""

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from cips_fast.atomic import whole_file, write_whole
from cips_fast.checkpoint import read_tensors, write_tensors

from .config import MAY_CHANGE, OptionError, Options, to_dict

KEPT_CHECKPOINTS = 3
BEFORE_IT_WAS = {"geometry": "plane"}  # what a run did before there was such an option


class RunFolder:
    """A folder that belongs to one configuration. Nothing is created before `open`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"

    def check(self, options: Options) -> None:
        """Raise OptionError if the folder holds something else than a run with these options."""
        file = self.path / "options.json"
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise OptionError(f"--out: got {str(self.path)!r}, must be a folder")
        if not file.exists():
            if any(self.path.iterdir()):
                raise OptionError(f"--out: got {str(self.path)!r}, must be empty, absent or a run's folder")
            return
        try:
            held = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise OptionError(f"--out: {str(file)!r} is damaged ({error})") from None
        differing = [
            name
            for name, value in to_dict(options).items()
            if name not in MAY_CHANGE and held.get(name, BEFORE_IT_WAS.get(name)) != value
        ]
        if differing:
            pairs = ", ".join(
                f"--{n.replace('_', '-')} {held.get(n)!r}, not {to_dict(options)[n]!r}" for n in differing
            )
            raise OptionError(f"--out: the run in {str(self.path)!r} has {pairs}; give another folder or those options")

    def open(self, options: Options) -> None:
        """Make the folder, if it is not there, and write the options."""
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            write_whole(self.path / "options.json", json.dumps(to_dict(options), indent=2).encode())
        except OSError as error:
            raise OptionError(f"--out: got {str(self.path)!r}, which cannot be written ({error.strerror})") from None

    def latest(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and metadata of the newest checkpoint; None if there is none yet; OptionError if it is damaged."""
        pointer = self.checkpoints / "latest"
        if not pointer.exists():
            return None
        file = self.checkpoints / pointer.read_text().strip()
        try:
            return read_tensors(file)
        except (ValueError, OSError) as error:
            others = sorted(p.name for p in self.checkpoints.glob("step-*.safetensors") if p != file)
            advice = f"write {others[-1]!r} into {str(pointer)!r} to go on from there" if others else "no other is kept"
            raise OptionError(f"--out: checkpoint {str(file)!r} is damaged ({error}); {advice}") from None

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
        """Write a checkpoint, point `latest` at it, and drop the oldest beyond the newest few."""
        file = self.checkpoints / f"step-{step:09d}.safetensors"
        write_tensors(file, tensors, metadata)
        write_whole(self.checkpoints / "latest", file.name.encode())
        for old in sorted(self.checkpoints.glob("step-*.safetensors"))[:-KEPT_CHECKPOINTS]:
            old.unlink()
        return file

    def log(self, record: dict[str, float]) -> None:
        """Append a line to stats.jsonl."""
        with (self.path / "stats.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_stats_after(self, step: int) -> None:
        """Drop the lines of steps that no checkpoint holds and that will be run again."""
        file = self.path / "stats.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if _step_of(line, beyond=step + 1) <= step]
            write_whole(file, "".join(line + "\n" for line in lines).encode())

    def preview(self, kimg: float, image: Image.Image) -> Path:
        """Write a preview grid, named by the images seen."""
        file = self.samples / f"kimg-{kimg:010.3f}.png"
        with whole_file(file) as temporary:
            image.save(temporary, format="PNG")
        return file


def _step_of(line: str, beyond: int) -> int:
    """The step of a statistics line; `beyond` for one that was cut off by a crash."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return beyond
