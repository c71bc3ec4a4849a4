"""Runs that are killed, stopped and cut off, each in a process of its own."""

import json
import os
import random
import resource
import signal
import subprocess
import time

import pytest
import torch

from cips_fast.checkpoint import read_tensors
from cips_fast.run_checkpoints import open_newest

from .training import noise_images, start, wait_for

ENDLESS = ("--kimg", "1000")
OFTEN = ("--checkpoint-minutes", "0.002", "--preview-minutes", "0.02")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return noise_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """One cache for all runs of this file."""
    path = tmp_path_factory.getbasetemp() / "shared-cache"
    monkeypatch.setenv("CIPS_FAST_CACHE", str(path))
    return path


def newest(run):
    return open_newest(run, read_tensors)[1]


def logged(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def finish(process, seconds=300):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # or it would train for ever
        raise
    return process.returncode, out, err


def test_a_run_that_is_killed_six_times_equals_an_undisturbed_one(tmp_path, images):
    length = ("--kimg", "0.24")
    undisturbed = start(images, tmp_path / "whole", *length)
    rng, after_checkpoint = random.Random(0), 0
    for _ in range(6):
        process = start(images, tmp_path / "run", *length, *OFTEN)
        wait_for(process, "img/s")
        time.sleep(rng.uniform(0, 1))
        assert process.poll() is None
        process.kill()
        assert finish(process)[2] == ""
        after_checkpoint += any((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))
    assert after_checkpoint >= 3
    status, out, err = finish(start(images, tmp_path / "run", *length, *OFTEN))
    assert (status, err) == (0, "")
    assert f"resuming {tmp_path / 'run'} at " in out
    assert finish(undisturbed)[0] == 0
    (got, _), (wanted, metadata) = newest(tmp_path / "run"), newest(tmp_path / "whole")
    assert metadata["step"] == "60"
    assert got.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(got[name], wanted[name])]
    keys = ("step", "g_loss", "d_loss", "r1", "real_score", "fake_score")
    got, wanted = ([[r[key] for key in keys] for r in logged(tmp_path / name)] for name in ("run", "whole"))
    assert got == wanted
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_saves(tmp_path, images, number):
    process = start(images, tmp_path / "run", *ENDLESS)
    wait_for(process, "img/s")
    process.send_signal(number)
    assert wait_for(process, "stopping").startswith("stopping: what is trained is being saved")
    status, out, err = finish(process)
    assert (status, err) == (128 + number, "")
    assert out.splitlines()[-1].endswith("run the same command again to continue")
    step = int(newest(tmp_path / "run")[1]["step"])
    assert step >= 1
    assert [record["step"] for record in logged(tmp_path / "run")] == list(range(1, step + 1))


@pytest.mark.exhaustive("1", "15")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_ends_the_run_at_once(tmp_path, images, number):
    process = start(images, tmp_path / "run", *ENDLESS, "--batch", "64")  # a step takes most of a second
    wait_for(process, "img/s")
    process.send_signal(number)
    wait_for(process, "stopping")
    process.send_signal(number)
    status, out, err = finish(process)
    assert (status, err) == (128 + number, "")
    assert out.splitlines()[-1].startswith("stopped at once; ")
    assert " lost; " in out.splitlines()[-1]
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_two_signals_while_landscapes_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("CIPS_FAST_CACHE", str(tmp_path / "cache"))
    process = start("landscapes", tmp_path / "run", *ENDLESS)
    wait_for(process, "training starts after 256")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.04)
    status, out, err = finish(process)
    assert (status, err) == (128 + signal.SIGTERM, "")
    assert "stopp" in out.splitlines()[-1]


@pytest.mark.parametrize("delay", [0.3, 0.7, 1.0, 2.0, 3.0])
def test_a_signal_while_the_program_starts_is_quiet(tmp_path, images, delay):
    process = start(images, tmp_path / "run", *ENDLESS)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status in (-signal.SIGTERM, 128 + signal.SIGTERM)  # the former before the first line of ours
    assert err == ""


def test_nohup_is_respected(tmp_path, images):
    process = start(images, tmp_path / "run", *ENDLESS, prefix=("nohup",), stdin=subprocess.DEVNULL)
    wait_for(process, "img/s")
    process.send_signal(signal.SIGHUP)
    wait_for(process, "img/s")
    wait_for(process, "img/s")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 128 + signal.SIGTERM


def test_a_reader_that_goes_away_does_not_end_a_run(tmp_path, images):
    process = start(images, tmp_path / "run", "--kimg", "0.04")
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(300) == 0
    assert newest(tmp_path / "run")[1]["step"] == "10"


def test_a_log_on_a_full_disk_does_not_end_a_run(tmp_path, images):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        process = start(images, tmp_path / "run", "--kimg", "0.02", stdout=full, stderr=full)
        assert process.wait(300) == 0
    assert newest(tmp_path / "run")[1]["step"] == "5"


def test_closed_descriptors_do_not_end_a_run(tmp_path, images):
    process = start(images, tmp_path / "run", "--kimg", "0.02", prefix=("sh", "-c", 'exec "$0" "$@" >&- 2>&- <&-'))
    assert process.wait(300) == 0
    assert newest(tmp_path / "run")[1]["step"] == "5"


def test_help_for_a_reader_that_goes_away_is_quiet(tmp_path, images):
    process = start(images, tmp_path / "run", "--help")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_the_second_run_in_a_folder_is_refused(tmp_path, images):
    first = start(images, tmp_path / "run", *ENDLESS)
    wait_for(first, "img/s")
    status, _, err = finish(start(images, tmp_path / "run", *ENDLESS))
    assert status == 2
    assert err == f"error: --out: another run is at work in {str(tmp_path / 'run')!r}\n"
    assert first.poll() is None
    first.kill()
    finish(first)
    status, _, err = finish(start(images, tmp_path / "run", "--kimg", "0.004"))
    assert (status, err) == (0, "")


def test_a_run_that_is_killed_while_others_draw_for_it_leaves_no_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("CIPS_FAST_CACHE", str(tmp_path / "cache"))
    process = start("landscapes", tmp_path / "run", *ENDLESS)
    wait_for(process, "training starts after 256")
    process.kill()
    process.wait()
    again = start("landscapes", tmp_path / "run", *ENDLESS)
    wait_for(again, "training starts after")
    again.send_signal(signal.SIGINT)
    assert finish(again)[0] == 130
    process.communicate()


def test_files_that_may_not_grow_end_a_run_in_one_line(tmp_path, images):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # a preview fits, a checkpoint does not

    status, _, err = finish(start(images, tmp_path / "run", "--kimg", "0.02", preexec_fn=small_files_only))
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: the checkpoint of step 5 could not be written into ")
    assert "(File too large); there is no checkpoint yet; " in err
    assert not list((tmp_path / "run").rglob("*.partial"))
    status, _, err = finish(start(images, tmp_path / "run", "--kimg", "0.02"))
    assert (status, err) == (0, "")


def test_learning_rates_that_explode_end_the_run_in_one_line(tmp_path, images):
    explode = ("--kimg", "0.08", "--g-lr", "1e30", "--checkpoint-minutes", "0.0001")
    for _ in range(2):  # the same command meets the same numbers
        status, _, err = finish(start(images, tmp_path / "run", *explode))
        assert status == 3
        assert err.count("\n") == 1
        assert err.startswith("error: step ")
        assert "not finite: " in err
        assert "--g-lr, --d-lr or --r1-gamma" in err
        tensors, metadata = newest(tmp_path / "run")
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert f"step {metadata['step']} is the newest checkpoint" in err
