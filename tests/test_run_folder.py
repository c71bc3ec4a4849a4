"""The run folder: what is written, by whom, and what becomes of it when something cannot be written."""

import errno
import json
import os

import pytest
import torch

from cips_fast.command_line import OptionError
from cips_fast.train import loop, session
from cips_fast.train import run_folder as module
from cips_fast.train.failure import RunFailure
from cips_fast.train.run_folder import RunFolder
from cips_fast.train.trainer import Trainer

from .training import options, train

EVERY_STEP = {"checkpoint_minutes": 1e-6}


def steps(path):
    return sorted(int(p.name[5:14]) for p in (path / "checkpoints").glob("step-*.safetensors"))


def records(path):
    def refuse(token):
        raise ValueError(f"{token} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (path / "stats.jsonl").read_text().splitlines()]


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("log_every", [1, 3, 25])
def test_the_last_step_is_always_logged_once(tmp_path, log_every):
    train(tmp_path / "run", kimg=0.006, log_every=log_every)
    assert [record["step"] for record in records(tmp_path / "run")] == ([1, 2, 3] if log_every == 1 else [3])


def test_further_loggers_get_the_same_records(tmp_path, monkeypatch):
    got = []

    class WithLogger(session.Session):
        def __init__(self, *given):
            super().__init__(*given)
            self.loggers.append(got.append)

    monkeypatch.setattr(loop, "Session", WithLogger)
    train(tmp_path / "run", kimg=0.006, log_every=1)
    assert len(got) == 3
    assert got == records(tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    train(tmp_path / "run", kimg=0.006)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    train(tmp_path / "run", kimg=0.004)
    assert capsys.readouterr().out == f"the run in {tmp_path / 'run'} already has 0.006 kimg; nothing to do\n"
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}


def test_a_resumed_run_says_so(tmp_path, capsys):
    train(tmp_path / "run", kimg=0.004)
    assert "resuming" not in capsys.readouterr().out
    train(tmp_path / "run", kimg=0.006)
    assert f"resuming {tmp_path / 'run'} at 0.004 kimg\n" in capsys.readouterr().out


def test_options_may_change_until_there_is_a_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(options(batch=4000))
    folder.check(options(batch=2))
    train(folder.path, kimg=0.004, batch=2)
    assert json.loads((folder.path / "options.json").read_text())["batch"] == 2
    with pytest.raises(OptionError, match="--batch 2, not 4"):
        folder.check(options(batch=4))


def test_a_run_killed_before_its_options_were_written_can_be_started(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for path in (folder.samples, folder.checkpoints):
        path.mkdir(parents=True)
    (folder.path / ".lock").touch()
    (folder.checkpoints / ".99-0.partial").write_bytes(b"x")
    (folder.path / ".99-0123abcd.partial").write_bytes(b"x")
    folder.check(options())
    (folder.samples / "holiday.png").write_bytes(b"x")
    with pytest.raises(OptionError, match="must be empty, absent or a run's folder"):
        folder.check(options())


def test_two_runs_never_share_a_folder(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked():
        with pytest.raises(OptionError, match="another run is at work in"), second.locked():
            pass
        with pytest.raises(OptionError, match="another run is at work in"):
            train(tmp_path / "run", kimg=0.004)
        with first.locked():  # its own
            pass
        assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    with second.locked(create=False):
        pass


def test_locking_does_not_make_a_folder_that_no_run_uses(tmp_path):
    with RunFolder(tmp_path).locked(create=False), RunFolder(tmp_path / "absent").locked(create=False):
        assert not list(tmp_path.iterdir())


def test_what_killed_runs_left_is_cleared(tmp_path):
    folder = train(tmp_path / "run", kimg=0.004)
    names = (".1-0123abcd.partial", "step-000000127.partial", ".tmp2DsLXE")
    left = [folder.checkpoints / name for name in names]
    left += [folder.samples / ".1-0123abcd.partial", folder.samples / "kimg-000000.010.partial"]
    left += [folder.path / f".{os.getpid()}-0123abcd.partial", folder.path / "stats.partial"]
    others = [folder.path / f".{os.getppid()}-0123abcd.partial", folder.path / "picture.partial"]
    for file in left + others:
        file.write_bytes(b"x")
    (folder.path / "large.tif.partial").mkdir()
    train(folder.path, kimg=0.006)
    assert not [file for file in left if file.exists()]
    assert all(file.exists() for file in others)  # of a living process; of the user
    assert (folder.path / "large.tif.partial").is_dir()


def test_only_older_checkpoints_are_removed_and_never_the_new_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(options())
    for step in (98, 99, 100, 7, 8, 9, 10):
        file = folder.save(step, {"x": torch.tensor([step])}, {"step": str(step)})
        assert file.exists()
    assert steps(tmp_path) == [8, 9, 10, 98, 99, 100]


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(options())
    folder.save(1, {"x": torch.ones(3)}, {"step": "1"})
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(ArithmeticError, match=r"^not finite: x$"):
            folder.save(2, {"x": torch.tensor([1.0, float(value)])}, {"step": "2"})
    assert steps(tmp_path) == [1]
    assert (folder.checkpoints / "latest").read_text() == "step-000000001.safetensors"


def test_a_full_disk_ends_the_run_in_one_line(tmp_path, monkeypatch):
    write = module.write_tensors

    def write_two(path, tensors, metadata):
        return no_space() if metadata["step"] == "3" else write(path, tensors, metadata)

    monkeypatch.setattr(module, "write_tensors", write_two)
    with pytest.raises(RunFailure) as failure:
        train(tmp_path / "run", kimg=0.02, **EVERY_STEP)
    monkeypatch.setattr(module, "write_tensors", write)
    assert failure.value.status == 2
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith("the checkpoint of step 3 could not be written into ")
    assert str(failure.value).endswith(
        "(No space left on device); step 2 is the newest checkpoint; run the same command again once there is room"
    )
    assert steps(tmp_path / "run") == [1, 2]
    resumed = train(tmp_path / "run", kimg=0.02).latest()
    whole = train(tmp_path / "whole", kimg=0.02).latest()
    assert not [name for name in whole[0] if not torch.equal(whole[0][name], resumed[0][name])]


def test_a_folder_for_checkpoints_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *args: pytest.fail("a step was trained"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").touch()
    (tmp_path / "other" / "checkpoints").touch()
    with pytest.raises(OptionError, match=r"checkpoints' cannot be written \(File exists\)"):
        train(tmp_path / "other", kimg=0.004)
    monkeypatch.setattr(module, "_try_writing", no_space)
    with pytest.raises(OptionError, match=r"cannot be written \(No space left on device\)"):
        train(tmp_path / "run", kimg=0.004)


def test_previews_that_cannot_be_written_do_not_end_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RunFolder, "preview", no_space)
    train(tmp_path / "run", kimg=0.008, preview_minutes=1e-6)
    err = capsys.readouterr().err
    assert err.startswith("warning: a preview could not be written into ")
    assert err.endswith("(No space left on device)\n")
    assert err.count("\n") == 1
    assert steps(tmp_path / "run") == [4]


def test_a_file_in_place_of_samples_is_a_warning(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").touch()
    train(tmp_path / "run", kimg=0.004)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: previews cannot be written into ")
    assert all(line.startswith("warning: ") for line in lines)
    assert steps(tmp_path / "run") == [2]


def test_the_checkpoint_is_saved_before_the_preview(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(RunFolder, "preview", lambda self, kimg, image: there.append((kimg, steps(self.path))))
    train(tmp_path / "run", kimg=0.004, preview_minutes=1e-6, **EVERY_STEP)
    assert there == [(0.0, []), (0.002, [1]), (0.004, [1, 2]), (0.004, [1, 2])]


def test_statistics_that_cannot_be_written_do_not_end_a_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    folder = train(tmp_path / "run", kimg=0.004)
    (folder.path / "stats.jsonl").unlink()
    (folder.path / "stats.jsonl").mkdir()
    capsys.readouterr()
    train(folder.path, kimg=0.010)
    err = capsys.readouterr().err
    assert "cannot be rewritten (Is a directory)" in err
    assert err.count("the statistics cannot be written (Is a directory)") == 1
    assert 5 in steps(folder.path)


def test_a_line_that_is_cut_off_by_a_full_disk_leaves_none(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "g_loss": float("nan"), "r1": float("-inf")})
    assert records(tmp_path) == [{"step": 1, "g_loss": None, "r1": None}]
    before = (tmp_path / "stats.jsonl").read_bytes()

    class Full:
        """A file on a disk with room for five bytes."""

        def __init__(self, path, mode, buffering):
            self.file = open(path, mode, buffering=buffering)  # noqa: SIM115, closed by __exit__
            self.room = 5

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, line):
            if not self.room:
                no_space()
            written, self.room = self.file.write(line[: self.room]), 0
            return written

    monkeypatch.setattr("cips_fast.train.stats_file.open", Full, raising=False)
    with pytest.raises(OSError, match="No space"):
        folder.log({"step": 2})
    assert (tmp_path / "stats.jsonl").read_bytes() == before


NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"
)


@pytest.mark.parametrize(
    "error", [RuntimeError(NO_MEMORY), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_too_little_memory_is_one_line_and_saves(tmp_path, monkeypatch, error):
    discriminator_step = Trainer._discriminator_step

    def fail_in_third(self, *args):
        if self.step_number == 2:
            raise error
        return discriminator_step(self, *args)

    monkeypatch.setattr(Trainer, "_discriminator_step", fail_in_third)
    with pytest.raises(
        RunFailure, match=r"^out of memory \(.*step 2 is the newest checkpoint; lower --batch"
    ) as failure:
        train(tmp_path / "run", kimg=0.02)
    assert failure.value.status == 2
    assert all(option in str(failure.value) for option in ("--batch", "--crop", "--pixel-chunk", "--dry-run"))
    assert "\n" not in str(failure.value)
    assert steps(tmp_path / "run") == [2]


def test_half_a_step_is_not_saved(tmp_path, monkeypatch):
    def fail(self, *args):
        raise MemoryError

    monkeypatch.setattr(Trainer, "_generator_step", fail)
    with pytest.raises(RunFailure, match=r"out of memory \(MemoryError\); there is no checkpoint yet"):
        train(tmp_path / "run", kimg=0.02)
    assert steps(tmp_path / "run") == []


def test_images_that_vanish_do_not_lose_what_was_trained(tmp_path, monkeypatch):
    from cips_fast.train.data.images import DataError

    from .training import Stripes

    def load(self, index, original=Stripes.load):
        if len(loaded) >= 6:
            raise FileNotFoundError(2, "No such file or directory", "3.png")
        loaded.append(index)
        return original(self, index)

    loaded = []
    monkeypatch.setattr(Stripes, "load", load)
    with pytest.raises(DataError, match=r"cannot be read any more .*3\.png"):
        train(tmp_path / "run", kimg=0.02)
    assert steps(tmp_path / "run") == [3]


def test_previews_whose_colours_are_not_finite_are_a_warning(tmp_path, monkeypatch, capsys):
    """Weights may be finite and still give colours that are not."""
    monkeypatch.setattr(
        "cips_fast.train.preview.render.image", lambda *args, **kwargs: torch.full((3, 8, 8), torch.inf)
    )
    train(tmp_path / "run", kimg=0.004)
    assert "warning: a preview could not be drawn (colours are not finite" in capsys.readouterr().err
    assert steps(tmp_path / "run") == [2]


def test_previews_too_large_for_the_memory_are_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError(NO_MEMORY)

    monkeypatch.setattr(session.Previewer, "render", fail)
    train(tmp_path / "run", kimg=0.004)
    assert "warning: a preview could not be drawn (" in capsys.readouterr().err
    assert steps(tmp_path / "run") == [2]
