"""The trainer: resuming bit for bit, the run folder, signals, the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cips_fast import checkpoint
from cips_fast.command_line import OptionError
from cips_fast.kernels.device import standing_in
from cips_fast.train import loop, plot
from cips_fast.train.__main__ import main
from cips_fast.train.config import parse, resolve
from cips_fast.train.data.patches import Patches
from cips_fast.train.losses import ema_decay, gradient_penalty
from cips_fast.train.run_folder import RunFolder
from cips_fast.train.signals import StopRequest
from cips_fast.train.trainer import Trainer

from .needs import needs_landscapes
from .training import ROOT, Stripes, options, train


def final_state(run_folder):
    tensors, metadata = run_folder.latest()
    return tensors, metadata


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("crop", [8, 16], ids=["patches", "whole"])
def test_resumed_run_equals_an_unbroken_one(tmp_path, precision, crop):
    changes = {"precision": precision, "crop": crop, "style_mixing": 0.5, "mirror": True}
    whole, _ = final_state(train(tmp_path / "whole", kimg=0.012, **changes))
    train(tmp_path / "parts", kimg=0.006, **changes)
    torch.randn(7)  # nothing may hang on the process's own random state
    parts, metadata = final_state(train(tmp_path / "parts", kimg=0.012, **changes))
    assert metadata["step"] == "6"
    assert whole.keys() == parts.keys()
    differing = [name for name in whole if not torch.equal(whole[name], parts[name])]
    assert not differing
    records = [json.loads(line) for line in (tmp_path / "parts" / "stats.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    unbroken = [json.loads(line) for line in (tmp_path / "whole" / "stats.jsonl").read_text().splitlines()]
    for key in ("g_loss", "d_loss", "r1", "real_score", "fake_score"):
        assert [r[key] for r in records] == [r[key] for r in unbroken]


def test_run_folder_holds_what_it_should(tmp_path):
    folder = train(tmp_path / "run", kimg=0.010)
    assert json.loads((folder.path / "options.json").read_text())["res"] == 16
    record = json.loads((folder.path / "stats.jsonl").read_text().splitlines()[-1])
    assert record.keys() == {
        "step", "kimg", "seconds", "g_loss", "d_loss", "r1", "real_score", "fake_score", "images_per_second",
        "peak_memory_mib",
    }  # fmt: skip
    assert all(np.isfinite(value) for value in record.values())
    previews = sorted(folder.samples.glob("*.png"))
    assert [p.name for p in previews] == ["kimg-000000.000.png", "kimg-000000.010.png"]
    assert Image.open(previews[0]).size == (5 * 16, 3 * 16)
    assert not list(folder.path.rglob("*.partial"))
    generator = checkpoint.load(folder.checkpoints / (folder.checkpoints / "latest").read_text())
    tensors, _ = final_state(folder)
    assert torch.equal(generator.layers[3].weight, tensors["ema.layers.3.weight"])
    assert generator.mean_latent.abs().sum() > 0
    assert not torch.equal(tensors["ema.layers.3.weight"], tensors["generator.layers.3.weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("variant", ["skip", "res"])
def test_both_networks_learn(precision, variant):
    trainer = Trainer(options(precision=precision, variant=variant))
    before = {name: t.clone() for name, t in trainer.state()[0].items()}
    patches = Patches(Stripes(), 2, 8, (0.5, 0.5))
    for step in range(3):
        trainer.last_r1 = None
        trainer.step(*patches.step(step))
        assert (trainer.last_r1 is not None) == (step % 2 == 0)
    after = trainer.state()[0]
    still = [name for name in before if "noise_strength" not in name and torch.equal(before[name], after[name])]
    assert not still


def first_steps(count=20, **changes):
    """Losses and scores of the first steps, [count, 4]."""
    trainer = Trainer(options(**changes))
    patches = Patches(Stripes(), 2, trainer.options.crop, trainer.options.stride_shares)
    return torch.tensor([[float(x) for x in vars(trainer.step(*patches.step(step))).values()] for step in range(count)])


@pytest.mark.parametrize("changes", [{}, {"crop": 16}, {"pixel_chunk": 13}, {"variant": "res", "pixel_chunk": 64}])
def test_losses_are_those_of_the_reference_formulas(changes):
    wanted = first_steps(backend="reference", **{name: changes[name] for name in changes if name != "pixel_chunk"})
    torch.testing.assert_close(first_steps(backend="cpu", **changes), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.exhaustive("20")
@pytest.mark.parametrize("steps", [3, 20])
def test_losses_of_the_kernels_are_those_of_the_reference_formulas(interpreter, large_tiles, steps):
    tiny = {"res": 8, "crop": 4, "embedding_size": 4, "mapping_layers": 1}
    with standing_in(interpreter):
        got = first_steps(steps, backend="triton", **tiny)
    torch.testing.assert_close(got, first_steps(steps, backend="reference", **tiny), rtol=1e-5, atol=1e-5)


def test_the_newest_checkpoints_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(options())
    for step in range(1, 6):
        folder.save(step, {"x": torch.tensor([step])}, {"step": str(step)})
    assert [p.name for p in sorted(folder.checkpoints.glob("*.safetensors"))] == [
        f"step-{step:09d}.safetensors" for step in (3, 4, 5)
    ]
    tensors, metadata = folder.latest()
    assert (tensors["x"].item(), metadata["step"]) == (5, "5")


def test_statistics_of_lost_steps_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(1, 5):
        folder.log({"step": step})
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 5, "g_lo')
    folder.forget_stats_after(2)
    assert (tmp_path / "stats.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(tmp_path, number):
    folder = RunFolder(tmp_path / "run")
    made = options(out=str(folder.path), kimg=1000)
    handler = signal.getsignal(number)
    step = Trainer.step

    def step_and_signal(self, *batch):
        losses = step(self, *batch)
        if self.step_number == 3:
            os.kill(os.getpid(), number)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_signal)
        assert loop.run(made, folder, Stripes()) == 128 + number
    assert folder.latest()[1]["step"] == "3"
    assert signal.getsignal(number) == handler


def test_patches_are_pixels_at_their_coordinates():
    source = Stripes()
    patches = Patches(source, 4, 8, (0.5, 0.5), mirror=False, seed=3)
    images, coords = patches.step(0)
    assert images.shape == (4, 3, 8, 8)
    assert coords.shape == (4, 8, 8, 2)
    assert images.abs().max() <= 1
    for number in range(4):
        wholes = [torch.from_numpy(source.load(i).copy()).float() / 127.5 - 1 for i in range(5)]
        pixels = ((coords[number] + 1) * 15 / 2).round().long()  # [H, W, 2]
        there = [whole[pixels[..., 1], pixels[..., 0]] for whole in wholes]
        assert any(torch.allclose(images[number].permute(1, 2, 0), patch) for patch in there)
    again, _ = patches.step(0)
    assert torch.equal(images, again)
    assert not torch.equal(images, patches.step(1)[0])
    strides = {int(p) for n in range(40) for p in np.diff(patches._patch(n)[1][0, :2, 0] * 7.5).round()}
    assert strides == {1, 2}


def test_the_pool_of_images_grows_with_the_patches():
    class Noted(Stripes):
        def __init__(self):
            self.loaded = []

        def load(self, index):
            self.loaded.append(index)
            return super().load(index)

    source = Noted()
    patches = Patches(source, 8, 8, first_pool=2)
    for step in range(40):
        patches.step(step)
    first = source.loaded.index(4)
    assert set(source.loaded[:8]) == {0, 1}
    assert first >= 8 * 3
    assert set(source.loaded[-100:]) == {0, 1, 2, 3, 4}


def test_whole_images_are_the_native_grid():
    from cips_fast import grids

    _, coords = Patches(Stripes(), 1, 16).step(0)
    torch.testing.assert_close(coords[0], grids.plane(16, 16))


def test_gradient_penalty_is_the_mean_squared_norm():
    images = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert gradient_penalty((images**2).sum(1), images).item() == pytest.approx((4 + 16 + 36 + 64) / 2)


def test_ema_half_life():
    assert ema_decay(8, 100_000, 1000, 0.05) ** (1000 / 8) == pytest.approx(0.5)
    assert ema_decay(8, 1000, 1000, 0.05) == pytest.approx(0.5 ** (8 / 50))
    assert ema_decay(8, 0, 1000, 0.05) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--res", "500"], "--res: got 500, must be a power of two"),
        (["--res", "64", "--crop", "48"], "--crop: got 48, must be a power of two from 4 to 64"),
        (["--res", "64", "--crop", "128"], "--crop: got 128"),
        (["--res", "64", "--colour", "blue"], "unrecognized arguments: --colour blue"),
        (["--res", "64", "--batch", "0"], "--batch: got 0, must be a positive number"),
        (["--res", "64", "--batch", "x"], "--batch: got 'x', must be a whole number"),
        (["--res", "64", "--precision", "int8"], "--precision: got 'int8', must be one of auto, fp32, bf16, fp16"),
        (["--res", "64", "--device", "cuda:99"], "--device: got 'cuda:99', must be auto, cpu"),
        (["--res", "64", "--device", "toaster"], "--device: got 'toaster', must be auto, cpu"),
        (["--res", "128", "--crop", "64", "--stride-shares", "1"], "--stride-shares: got"),
        (["--res", "64", "--kimg", "-1"], "--kimg: got -1.0, must be a positive number"),
        (["--res", "64", "--kimg", "inf"], "--kimg: got inf, must be a positive number"),
        (["--res", "64", "--seed", "-3"], "--seed: got -3, must be a number from 0"),
        ([], "required: --res"),
    ],
)
def test_bad_options_are_named(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=words.replace("(", r"\(")):
        parse(arguments)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_run_folders_are_left_alone(tmp_path, capsys):
    folder = train(tmp_path / "run", kimg=0.004)
    tiny = ["--res", "16", "--crop", "8", "--batch", "2", "--device", "cpu", "--out", str(folder.path)]
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    assert main([*tiny, "--width", "9"]) == 2
    assert "--width 8, not 9" in capsys.readouterr().err
    newest = folder.checkpoints / (folder.checkpoints / "latest").read_text()
    whole = newest.read_bytes()
    newest.write_bytes(whole[:100])
    with pytest.raises(OptionError, match="is damaged"):
        loop.run(options(out=str(folder.path), kimg=0.008), folder, Stripes())
    newest.write_bytes(whole)
    assert before == {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}

    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"x")
    assert main([*tiny[:-1], str(tmp_path / "holiday")]) == 2
    assert "must be empty, absent or a run's folder" in capsys.readouterr().err
    assert main([*tiny[:-1], str(tmp_path / "holiday" / "photo.jpg")]) == 2
    assert "must be a folder" in capsys.readouterr().err


def test_statistics_are_plotted(tmp_path, capsys):
    run_folder = train(tmp_path / "run", kimg=0.010)
    assert plot.main([str(run_folder.path), str(tmp_path / "plot.png")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    assert pixels.shape[1] > pixels.shape[0] > 200
    assert (pixels < 128).mean() > 0.005
    required = "the following arguments are required: RUN_FOLDER, OUT.png (see python -m train.plot --help)"
    for arguments, words in {
        (
            str(tmp_path),
            "x.png",
        ): f"RUN_FOLDER: got {str(tmp_path)!r}, must be the folder of a run, which has a stats.jsonl",
        (str(run_folder.path), "x.xyz"): "OUT.png: got 'x.xyz', must end in one of .eps, ",
        (): required,
    }.items():
        assert plot.main([*arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {words}")
    assert plot.main(["--help"]) == 0
    assert "RUN_FOLDER" in capsys.readouterr().out


def test_few_statistics_are_plotted_clearly(tmp_path):
    """Of a short run every value is a mark in full colour; what is null leaves a gap."""
    names = ("seconds", "g_loss", "d_loss", "r1", "real_score", "fake_score", "images_per_second")
    lines = [{"step": step} | dict.fromkeys(names, float(step)) for step in (1, 2, 3)]
    lines[1]["g_loss"] = None
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "g_')
    assert plot.main([str(tmp_path), str(tmp_path / "plot.png")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's blue and orange, not mixed with white
        assert (pixels == colour).all(1).sum() > 300


def test_shares_with_few_digits_are_taken():
    exact = Patches(Stripes(), 4, 4, (1 / 3,) * 3, seed=3).step(0)
    for shares in ((0.3333333,) * 3, (0.333333, 0.333333, 0.333333), (1.0, 1.0, 1.0)):
        rounded = Patches(Stripes(), 4, 4, shares, seed=3).step(0)
        assert all(torch.equal(a, b) for a, b in zip(exact, rounded, strict=True))


def test_training_does_not_wait_for_landscapes_that_are_cached(tmp_path, monkeypatch, capsys):
    from cips_fast.train.data.landscapes import LandscapeSource

    class Drawing:
        total, running, done = 4700, True, 0

        def stop(self):
            stopped.append(True)

    stopped = []
    source = LandscapeSource(16, tmp_path)
    source.folder.mkdir()
    for index in range(256):
        (source.folder / f"{index:06d}.png").touch()
    monkeypatch.setattr(source, "prepare", lambda indices, workers: Drawing())
    monkeypatch.setattr(loop.time, "sleep", lambda seconds: pytest.fail("waited"))
    with loop.drawing_ahead(source, StopRequest()):
        assert not stopped
    assert stopped
    assert "drawing 4700 landscapes into" in (out := capsys.readouterr().out)
    assert "training starts at once" in out


def test_missing_data_folder_creates_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--res", "64", "--data", "no/such/folder"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --data: no data called 'no/such/folder'")
    assert "it may be landscapes, bluemarble, a folder or a .zip file" in error
    assert not (tmp_path / "runs").exists()


def test_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--res", "512", "--preset", "cips", "--device", "cpu", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert '"width": 512' in out
    assert "parameters" in out
    assert "MiB" in out
    assert not list(tmp_path.iterdir())


def test_dry_run_knows_the_memory_of_chunks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def estimate(*arguments):
        assert main(["--res", "512", "--preset", "cips", "--device", "cpu", "--dry-run", *arguments]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "activations in a step" in line]
        return int(line.split()[0].replace(",", ""))

    assert estimate() == pytest.approx(estimate("--pixel-chunk", "4096") * 16, rel=0.01)  # 16 chunks of a 256² crop
    assert main(["--res", "512", "--pixel-chunk", "0", "--dry-run"]) == 2
    assert "--pixel-chunk: got 0, must be a positive number of pixels" in capsys.readouterr().err


def test_presets_follow_the_device_and_the_command_line():
    cpu = resolve({"res": 512, "device": "cpu"})
    assert (cpu.preset, cpu.crop < 512, cpu.out) == ("cpu", True, str(Path("runs/landscapes-512")))
    published = resolve({"res": 256, "device": "cpu", "preset": "cips", "batch": 4})
    assert (published.width, published.batch, published.r1_gamma, published.crop) == (512, 4, 10.0, 256)
    assert len(resolve({"res": 512, "device": "cpu", "crop": 64}).stride_shares) == 4
    assert (cpu.mirror, published.mirror) == (True, False)
    assert not resolve({"res": 512, "device": "cpu", "data": "my/photos"}).mirror


@needs_landscapes
def test_landscapes_are_drawn_before_and_beside_the_training(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr(loop, "FIRST_POOL_IMAGES", 12)
    arguments = [
        "--res",
        "16",
        "--kimg",
        "0.004",
        "--batch",
        "2",
        "--width",
        "8",
        "--d-channels",
        "8",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "drawing 5000 landscapes into" in capsys.readouterr().out
    drawn = list(cache.glob("landscapes-*-16/*.png"))
    assert 12 <= len(drawn) < 5000  # the workers ended with the run


def test_command_line_trains_on_a_folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
            images / f"{index}.png"
        )
    command = [sys.executable, "-m", "train", "--res", "16", "--data", str(images), "--kimg", "0.008", "--batch", "4"]
    command += ["--width", "8", "--d-channels", "8", "--log-every", "1", "--out", str(tmp_path / "run")]
    environment = os.environ | {"CIPS_FAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "preset cpu on cpu" in done.stdout or "preset cips" in done.stdout
    assert "0.008 / 0.008 kimg" in done.stdout
    assert "done: 0.008 kimg" in done.stdout
