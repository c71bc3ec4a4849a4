"""A whole step of training, as `python -m train --res 512` takes it on this machine, with each contender's generator.

The discriminator, optimizers and moving average are the same for all. One step in 16 has the R1 penalty too; the median
step does not. On a GPU the batch is smaller than the preset's, so that the published formulation fits.
"""

from functools import lru_cache
from unittest import mock

import torch

from cips_fast import grids
from cips_fast.kernels.report import published_formulation
from cips_fast.synthesis import synthesis
from cips_fast.train import config
from cips_fast.train.trainer import Trainer

from .bench_generator import eager
from .comparison import DEVICE, DTYPES, PLAIN, QUICK, Group
from .operation import TOLERANCE

BATCH = 2 if QUICK else 16 if DEVICE == "cpu" else 4
FORMULATIONS = {"published": published_formulation.synthesis, "eager": eager, "ours": None}


class TrainingStep:
    """A step of training with the interface of an `Operation`; its losses are compared."""

    backward, products, flop, moved = True, (), 0, 0
    upstream = sparse_upstream = inputs = None

    def __init__(self, precision: str):
        given = {"res": 512, "device": DEVICE, "precision": precision, "batch": BATCH, "seed": 1}
        self.options = config.resolve(given | ({"width": 16, "crop": 8} if QUICK else {}))
        crop, rng = self.options.crop, torch.Generator().manual_seed(0)
        self.images = torch.rand(BATCH, 3, crop, crop, generator=rng) * 2 - 1
        self.coords = grids.plane(crop, crop).expand(BATCH, -1, -1, -1)

    def channels_first(self):
        return None

    def runner(self, function, inputs, upstream):
        """A function that takes a step of a new training run and returns its losses."""
        trainer = Trainer(self.options)

        def stand_in(network, coords, *_, **__):
            dtype = torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else torch.float32
            return function(network, coords, dtype=dtype).float()

        def run():
            replaced = synthesis if function is None else stand_in
            with mock.patch("cips_fast.generator.synthesis", replaced):
                losses = trainer.step(self.images, self.coords)
            return [losses.g_loss, losses.d_loss]

        return run

    def check(self, found):
        """Compare the losses with float32.

        Raises:
            AssertionError: an error is more than twice that of eager PyTorch, plus `TOLERANCE`.
        """
        precision = self.options.precision
        for loss, plain, wanted in zip(found, eager_losses(precision), eager_losses("fp32"), strict=True):
            bound = 2 * (plain - wanted).abs() + TOLERANCE[DTYPES[precision]] * wanted.abs()
            assert (loss - wanted).abs() <= bound, f"loss: got {loss:.6g}, wanted {wanted:.6g} ± {bound:.2g}"


@lru_cache(maxsize=2)
def eager_losses(precision):
    """The losses of the first step with the eager generator."""
    return TrainingStep(precision).runner(eager, None, None)()


def test_training_step(compare):
    step = lru_cache(TrainingStep)
    group = Group("training step", "forward + backward", step("fp32").options.crop, BATCH, "--res 512")
    compare(group, FORMULATIONS, step, always=PLAIN)
