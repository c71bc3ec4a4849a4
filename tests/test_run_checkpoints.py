"""Which checkpoint of a run folder is used."""

import os

import pytest

from cips_fast.files.untrusted import CheckpointError
from cips_fast.run_checkpoints import candidates, open_newest

STEPS = (9, 98, 99, 100)


def name(step):
    return f"step-{step:09d}.safetensors"


def read(path):
    text = path.read_text("utf-8")
    if text == "damaged":
        raise CheckpointError(path, "is damaged (bytes differ)")
    return text


@pytest.fixture
def folder(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in STEPS:
        (checkpoints / name(step)).write_text(str(step))
    for other in ("step-000000200.safetensors.damaged", "step-x.safetensors", ".12-ab.partial", "notes.txt"):
        (checkpoints / other).write_text("200")
    (checkpoints / "latest").write_text(name(100))
    return tmp_path


def steps(folder):
    return [int(path.name[5:14]) for path in candidates(folder)]


def test_the_newest_comes_first(folder):
    assert steps(folder) == [100, 99, 98, 9]
    assert open_newest(folder, read) == (folder / "checkpoints" / name(100), "100", [])


def test_steps_are_ordered_as_numbers(folder):
    (folder / "checkpoints" / "step-1000000000.safetensors").write_text("x")
    (folder / "checkpoints" / "latest").unlink()
    assert candidates(folder)[0].name == "step-1000000000.safetensors"


def test_latest_may_name_an_older_one(folder):
    (folder / "checkpoints" / "latest").write_text(name(98) + "\n")
    assert steps(folder) == [98, 100, 99, 9]
    assert open_newest(folder, read)[1:] == ("98", [])


def test_a_checkpoint_written_after_latest_is_newer(folder):
    checkpoints = folder / "checkpoints"
    (checkpoints / "latest").write_text(name(99))
    later = (checkpoints / "latest").stat().st_mtime_ns + 1_000_000
    os.utime(checkpoints / name(100), ns=(later, later))
    assert steps(folder) == [100, 99, 98, 9]
    assert open_newest(folder, read)[1:] == ("100", [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_latest_in_what_editors_write(folder, encoding):
    (folder / "checkpoints" / "latest").write_bytes((name(98) + "\r\n").encode(encoding))
    assert steps(folder)[0] == 98
    assert not open_newest(folder, read)[2]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is missing"),
        (b"", "is damaged"),
        (bytes(range(156, 256)), "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"step-000000100.safetensors\x00", "is damaged"),
        (b"../../../etc/passwd", "is damaged"),
        (name(50).encode(), f"names '{name(50)}', which is missing"),
    ],
)
def test_without_a_usable_latest_the_newest_is_used(folder, content, why):
    latest = folder / "checkpoints" / "latest"
    latest.unlink()
    if content is not None:
        latest.write_bytes(content)
    path, text, passed_over = open_newest(folder, read)
    assert (path.name, text) == (name(100), "100")
    ((place, reason),) = passed_over
    assert place == latest
    assert reason.startswith(why)


def test_damaged_ones_are_passed_over_with_their_reasons(folder):
    checkpoints = folder / "checkpoints"
    (checkpoints / name(100)).write_text("damaged")
    (checkpoints / name(99)).unlink()
    (checkpoints / name(99)).mkdir()
    _, text, passed_over = open_newest(folder, read)
    assert text == "98"
    assert [path.name for path, _ in passed_over] == [name(100), name(99)]
    assert passed_over[0][1] == "is damaged (bytes differ)"
    assert passed_over[1][1] == "cannot be read (Is a directory)"


def test_no_sound_checkpoint_is_an_error_that_names_all(folder):
    for step in STEPS:
        (folder / "checkpoints" / name(step)).write_text("damaged")
    with pytest.raises(ValueError, match=r"^no checkpoint in '.*checkpoints' can be used: ") as error:
        open_newest(folder, read)
    assert all(f"{name(step)} is damaged (bytes differ)" in str(error.value) for step in STEPS)
    assert "\n" not in str(error.value)


def test_no_checkpoint_at_all(tmp_path):
    assert candidates(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        open_newest(tmp_path, read)


def test_what_may_not_be_read_is_not_called_damaged(folder):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError, match=rf"^'.*{name(100)}' cannot be read \(Permission denied\)$"):
        open_newest(folder, forbidden)
