"""The command for a first run on a GPU: it needs a GPU, and continues after a command that fails."""

import sys

import pytest
import torch

from benchmarks import first_run


def test_the_next_command_runs_after_a_failure(tmp_path):
    commands = {"fails": [sys.executable, "-c", "print('so'); raise SystemExit(3)"], "goes": [sys.executable, "-V"]}
    assert first_run.run_commands(commands, tmp_path) == {"fails": 3, "goes": 0}
    assert (tmp_path / "fails.txt").read_text() == "so\n"
    assert (tmp_path / "goes.txt").read_text().startswith("Python 3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_no_folder_is_made(tmp_path, capsys):
    assert first_run.main([str(tmp_path / "run")]) == 2
    assert "finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert first_run.main([str(tmp_path)]) == 2
    assert "which exists" in capsys.readouterr().err
