"""Numbers that are not finite are found within the step, and kept out of everything that is written."""

import json

import pytest
import torch

from cips_fast.checkpoint import read_tensors
from cips_fast.train.data.patches import Patches
from cips_fast.train.failure import RunFailure
from cips_fast.train.finite import NotFinite, not_finite, probably_finite
from cips_fast.train.trainer import Trainer

from .training import Stripes, options, train

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_element_is_enough(value):
    sound = {"a": torch.ones(3, 3), "b": torch.tensor(1e30), "n": torch.tensor(3)}
    bad = {"c": torch.tensor([0.0, value]), "d": torch.tensor(value)}
    assert not_finite(sound) == []
    assert not_finite(sound | bad) == ["c", f"d ({value:g})"]
    assert probably_finite([sound["a"], torch.tensor(2.0)])
    assert not probably_finite([sound["a"], bad["c"]])
    assert not probably_finite([bad["d"], sound["a"]])


def trainer_after_a_step(**changes):
    trainer = Trainer(options(**changes))
    patches = Patches(Stripes(), 2, 8, (0.5, 0.5))
    trainer.step(*patches.step(0))
    return trainer, patches.step(1)


def test_large_finite_numbers_are_no_error():
    trainer, batch = trainer_after_a_step(g_lr=1e-30)
    trainer.g_optimizer.state[trainer.generator.to_rgb[0].weight]["exp_avg_sq"].fill_(3e38)
    trainer.step(*batch)
    assert trainer.whole


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda t: t.generator.layers[0].weight.data[0].fill_(NAN), "g_loss (nan)"),
        (lambda t: t.discriminator.blocks[0].conv1.weight.data[0].fill_(INF), "d_loss (nan)"),
        (lambda t: t.generator.mean_latent.fill_(NAN), "mean_latent"),
        (lambda t: t.g_optimizer.state[t.generator.to_rgb[0].weight]["exp_avg_sq"].fill_(INF), "gradient of generator"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_raises(spoil, name, precision):
    trainer, batch = trainer_after_a_step(precision=precision)
    assert trainer.whole
    spoil(trainer)
    with pytest.raises(NotFinite) as error:
        trainer.step(*batch)
    assert any(entry.startswith(name) for entry in error.value.names), error.value.names
    assert not trainer.whole


def test_gradients_that_overflow_for_their_scale_are_left_out():
    trainer, batch = trainer_after_a_step(precision="fp16")
    state = trainer.g_scaler.state_dict()
    trainer.g_scaler.load_state_dict(state | {"scale": 2.0**126})
    before = trainer.generator.layers[0].weight.detach().clone()
    trainer.step(*batch)
    assert trainer.whole
    assert trainer.g_scaler.get_scale() == 2.0**125
    assert torch.equal(trainer.generator.layers[0].weight, before)


def test_gradients_that_overflow_without_a_scale_are_an_error():
    trainer, batch = trainer_after_a_step(precision="fp16")
    trainer.d_scaler.load_state_dict(trainer.d_scaler.state_dict() | {"scale": 0.5})
    with pytest.raises(NotFinite, match="gradients of D"):
        trainer.step(*batch)


def test_the_run_stops_and_keeps_the_steps_inputs(tmp_path, monkeypatch):
    step = Trainer._generator_step

    def spoiled(self, *args):
        loss = step(self, *args)
        return loss * NAN if self.step_number == 3 else loss

    monkeypatch.setattr(Trainer, "_generator_step", spoiled)
    with pytest.raises(RunFailure) as failure:
        train(tmp_path / "run", kimg=0.02, checkpoint_minutes=1e-6, precision="bf16")
    assert failure.value.status == 3
    message = str(failure.value)
    assert message.startswith("step 4: not finite: g_loss (nan); step 3 is the newest checkpoint, ")
    assert "nonfinite-step-000000004.safetensors" in message
    assert message.endswith("a lower --g-lr, --d-lr or --r1-gamma or --precision fp32")
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert checkpoints == [f"step-{n:09d}.safetensors" for n in (1, 2, 3)]
    kept, metadata = read_tensors(tmp_path / "run" / "nonfinite-step-000000004.safetensors")
    made = options()
    images, coords = Patches(Stripes(), 2, 8, made.stride_shares).step(3)
    assert torch.equal(kept["images"], images)
    assert torch.equal(kept["coords"], coords)
    assert kept["g_loss"].isnan()
    assert kept["d_loss"].isfinite()
    assert metadata["step"] == "4"
    assert json.loads(metadata["not_finite"]) == ["g_loss (nan)"]
    assert "NaN" not in (tmp_path / "run" / "stats.jsonl").read_text()
    monkeypatch.undo()
    assert train(tmp_path / "run", kimg=0.02, precision="bf16").latest()[1]["step"] == "10"
