"""Resuming a run of which something is damaged: the newest sound checkpoint is used, and nothing is deleted unseen."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch

from cips_fast.checkpoint import read_tensors, write_tensors
from cips_fast.command_line import OptionError

from .training import train

EVERY_STEP = {"checkpoint_minutes": 1e-6}


def name(step):
    return f"step-{step:09d}.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of six steps; its last state."""
    return train(tmp_path_factory.mktemp("whole") / "run", kimg=0.012).latest()[0]


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    path = tmp_path_factory.mktemp("four") / "run"
    train(path, kimg=0.008, **EVERY_STEP)
    return path


@pytest.fixture
def run(four_steps, tmp_path):
    """A run folder of four steps with the checkpoints 2, 3 and 4."""
    return shutil.copytree(four_steps, tmp_path / "run")


def files(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def assert_finishes_like_whole(run, whole, capsys):
    """Resume to six steps; the state must be the undisturbed one. Returns both outputs."""
    capsys.readouterr()
    tensors, metadata = train(run, kimg=0.012, **EVERY_STEP).latest()
    assert metadata["step"] == "6"
    assert not [key for key in whole if not torch.equal(whole[key], tensors[key])]
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    return capsys.readouterr()


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)


def flip_in_step(path):
    path.write_bytes(path.read_bytes().replace(b'"step":"4"', b'"step":"q"'))


def rewritten(change):
    """Damage that a checksum does not show: the file is written whole, with other content."""

    def damage(path):
        tensors, metadata = read_tensors(path)
        change(tensors, metadata)
        write_tensors(path, tensors, metadata)

    return damage


def without_checksum(change):
    def damage(path):
        tensors, metadata = read_tensors(path)
        del metadata["sha256"]
        change(tensors, metadata)
        safetensors.torch.save_file(tensors, str(path), metadata=metadata)

    return damage


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "one byte of a tensor": (flip_last_byte, "its content differs from its checksum"),
    "one byte of the step": (flip_in_step, "is damaged"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "random bytes": (lambda path: path.write_bytes(bytes(range(256)) * 8), "is not a checkpoint"),
    "a folder": (replace_by_folder, "cannot be read"),
    "a weight is NaN": (rewritten(lambda t, m: t["ema.layers.0.weight"][0].fill_(float("nan"))), "not finite: ema"),
    "a moment is infinite": (rewritten(lambda t, m: t["d_optimizer.0.exp_avg_sq"].fill_(float("inf"))), "not finite"),
    "another step": (rewritten(lambda t, m: m.update(step="5")), "holds step 5"),
    "a step that is no number": (rewritten(lambda t, m: m.update(step="4.0")), "step is '4.0'"),
    "no step": (rewritten(lambda t, m: m.pop("step")), "lacks 'step'"),
    "r1 is NaN": (rewritten(lambda t, m: m.update(last_r1="nan")), "last_r1 is 'nan'"),
    "scalers of another type": (rewritten(lambda t, m: m.update(scalers="[]")), "scalers must be"),
    "no configuration": (rewritten(lambda t, m: m.update(cips_fast="[" * 100_000)), "cips_fast cannot be read"),
    "a tensor is missing": (rewritten(lambda t, m: t.pop("d_optimizer.3.exp_avg")), "d_optimizer.3.exp_avg: missing"),
    "a tensor too many": (rewritten(lambda t, m: t.update(x=torch.ones(1))), "x: unexpected"),
    "another shape": (rewritten(lambda t, m: t.update({"ema.mean_latent": torch.ones(3)})), "ema.mean_latent: got [3]"),
    "another dtype": (rewritten(lambda t, m: t.update({"ema.mean_latent": torch.ones(8).double()})), "torch.float64"),
    "the checksum's name": (without_checksum(lambda t, m: m.update(sha257="x")), "unknown entry 'sha257'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_and_kept(run, whole, capsys, kind):
    damage, reason = DAMAGE[kind]
    damage(run / "checkpoints" / name(4))
    damaged = run / "checkpoints" / name(4)
    content = None if damaged.is_dir() else damaged.read_bytes()
    out, err = assert_finishes_like_whole(run, whole, capsys)
    assert err.startswith(f"warning: passed over: {name(4)} ")
    assert reason in err
    assert f"kept as {name(4)}.damaged" in err
    assert err.count("\n") == 1
    assert f"resuming {run} at 0.006 kimg" in out
    kept = run / "checkpoints" / (name(4) + ".damaged")
    assert kept.is_dir() if content is None else kept.read_bytes() == content
    assert sorted(p.name for p in (run / "checkpoints").glob("*.safetensors")) == [name(4), name(5), name(6)]


def test_a_checkpoint_without_checksum_is_taken(run, whole, capsys):
    without_checksum(lambda t, m: None)(run / "checkpoints" / name(4))
    out, err = assert_finishes_like_whole(run, whole, capsys)
    assert f"resuming {run} at 0.008 kimg" in out
    assert err == ""


def test_a_damaged_older_checkpoint_is_kept_and_not_counted(run, whole, capsys):
    flip_last_byte(run / "checkpoints" / name(3))
    out, err = assert_finishes_like_whole(run, whole, capsys)
    assert f"resuming {run} at 0.008 kimg" in out
    assert f"{name(3)} is damaged" in err
    assert (run / "checkpoints" / (name(3) + ".damaged")).exists()


@pytest.mark.parametrize(
    "content",
    [None, b"", bytes(range(156, 256)), b"\xff\xfe\x00", b"step-000000007.safetensors", b"..", "²".encode("latin-1")],
)
def test_without_a_usable_latest_the_newest_checkpoint_is_used(run, whole, capsys, content):
    latest = run / "checkpoints" / "latest"
    latest.unlink()
    if content is not None:
        latest.write_bytes(content)
    out, err = assert_finishes_like_whole(run, whole, capsys)
    assert f"resuming {run} at 0.008 kimg" in out
    assert err.startswith("warning: passed over: latest ")
    assert err.count("\n") == 1
    assert latest.read_text() == name(6)


def test_latest_as_powershell_writes_it(run, whole, capsys):
    (run / "checkpoints" / "latest").write_bytes((name(4) + "\r\n").encode("utf-16"))
    out, err = assert_finishes_like_whole(run, whole, capsys)
    assert f"resuming {run} at 0.008 kimg" in out
    assert err == ""


def test_a_user_may_go_back(run, whole, capsys):
    newest = (run / "checkpoints" / name(4)).read_bytes()
    (run / "checkpoints" / "latest").write_text(name(3) + "\n")
    out, _ = assert_finishes_like_whole(run, whole, capsys)
    assert f"resuming {run} at 0.006 kimg" in out
    assert f"going back to {name(3)}, which checkpoints/latest names; kept as {name(4)}.superseded" in out
    assert (run / "checkpoints" / (name(4) + ".superseded")).read_bytes() == newest


def test_a_save_that_was_stopped_before_latest_is_not_lost(run, whole, capsys):
    latest = run / "checkpoints" / "latest"
    latest.write_text(name(3))
    earlier = (run / "checkpoints" / name(4)).stat().st_mtime_ns - 1_000_000
    os.utime(latest, ns=(earlier, earlier))
    out, _ = assert_finishes_like_whole(run, whole, capsys)
    assert f"resuming {run} at 0.008 kimg" in out


def test_without_a_sound_checkpoint_nothing_is_changed(run):
    for step in (2, 3, 4):
        flip_last_byte(run / "checkpoints" / name(step))
    before = files(run)
    with pytest.raises(
        OptionError, match=r"^--out: no checkpoint in .* can be used: .*; nothing was changed$"
    ) as error:
        train(run, kimg=0.012)
    assert "\n" not in str(error.value)
    assert files(run) == before


def test_latest_alone_is_an_error(run):
    for step in (2, 3, 4):
        (run / "checkpoints" / name(step)).unlink()
    before = files(run)
    with pytest.raises(OptionError, match="is there, but no checkpoint"):
        train(run, kimg=0.012)
    assert files(run) == before


def test_damaged_lines_of_the_statistics_are_dropped(run, whole, capsys):
    with (run / "stats.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "g_loss": 7}\n[]\n{"step": true}\n{"step": "3"}\nnull\n')
        file.write(bytes(range(256)) * 12)
    assert_finishes_like_whole(run, whole, capsys)


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"", b"{", b"\x00" * 9, '{"res": 16}'.encode("utf-16"), b"[" * 100_000, b'{"res": 16}']
)
def test_damaged_options_are_one_line(run, content):
    (run / "options.json").write_bytes(content)
    before = files(run)
    with pytest.raises(OptionError, match=r"^--out: '.*options.json' is damaged \(") as error:
        train(run, kimg=0.012)
    assert "\n" not in str(error.value)
    assert files(run) == before
