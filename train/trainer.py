"""The state of a training run and one step of it."""

import copy
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cips_fast import CIPSGenerator
from cips_fast.checkpoint import AVERAGED, check_names_and_shapes
from cips_fast.geometry import GEOMETRIES
from cips_fast.hardware import PRECISIONS

from .discriminator import Discriminator
from .finite import NotFinite, not_finite, probably_finite
from .losses import discriminator_loss, ema_decay, generator_loss, gradient_penalty, update_average
from .metadata import check_metadata
from .options import Options

ADAM_BETAS = (0.0, 0.99)


@dataclass
class StepLosses:
    """Losses and mean scores of a step: tensors [], so that only reading them waits for the device."""

    g_loss: Tensor
    d_loss: Tensor
    real_score: Tensor
    fake_score: Tensor


class Trainer:
    """Both networks, the generator's average, and their optimizers.

    All random numbers of a step come from the seed and the step's number, so resuming needs no random state.

    Attributes:
        step_number: steps done.
        whole: whether the state is finite and that after `step_number` whole steps; only then may it be saved. False
            while a step changes weights, and forever after a step that ended in an error.
    """

    def __init__(self, options: Options):
        torch.manual_seed(options.seed)
        self.options = options
        self.device = torch.device(options.device)
        self.generator = make_generator(options).to(self.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.discriminator = make_discriminator(options).to(self.device, memory_format=torch.channels_last)
        self.g_optimizer = _adam(self.generator, options.g_lr, 1.0)
        # R1 is an additional step after every r1_every steps: the usual correction (arXiv 1912.04958, appendix B).
        self.d_optimizer = _adam(self.discriminator, options.d_lr, options.r1_every / (options.r1_every + 1))
        enabled = options.precision == "fp16"
        self.g_scaler = torch.amp.GradScaler(self.device.type, enabled=enabled)
        self.d_scaler = torch.amp.GradScaler(self.device.type, enabled=enabled)
        self.step_number = 0
        self.whole = True
        self.last_r1 = 0.0  # E‖∇D‖² when it was last evaluated

    @property
    def images_seen(self) -> int:
        return self.step_number * self.options.batch

    def step(self, images: Tensor, coords: Tensor) -> StepLosses:
        """One step of the discriminator and one of the generator: images [B, 3, H, W], their coordinates [B, H, W, 2].

        Raises:
            NotFinite: a loss, a gradient or a weight is no longer finite. With fp16, gradients that overflow only
                because of the loss scale do not count: the scale is lowered and the update is left out.
        """
        images = images.to(self.device, memory_format=torch.channels_last)
        coords = coords.to(self.device)
        rng = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step_number)
        d_loss, real_score, fake_score = self._discriminator_step(images, coords, rng)
        penalty = {}
        if self.step_number % self.options.r1_every == 0:
            penalty["r1"] = self._penalty_step(images, coords)
            self.last_r1 = penalty["r1"].item()
        g_loss = self._generator_step(coords, rng)
        self.step_number += 1
        half_life = self.options.ema_kimg * 1000
        decay = ema_decay(self.options.batch, self.images_seen, half_life, self.options.ema_ramp_up)
        update_average(self.average, self.generator, decay)
        losses = StepLosses(g_loss, d_loss, real_score, fake_score)
        self._check_finite(vars(losses) | penalty)
        self.whole = True
        return losses

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        """Raise NotFinite unless the losses, the weights and Adam's mean squares are finite.

        Adam's mean squares stand for the gradients: they are kept between updates, and they overflow first.
        """
        named = {name: value.float() for name, value in losses.items()}
        checked = {"mean_latent": self.generator.mean_latent}
        for prefix, optimizer in self._optimizers().items():
            module = "generator" if prefix == "g_optimizer" else "discriminator"
            for name, parameter in self._modules()[module].named_parameters(module):
                checked[name] = parameter.detach()
                if parameter in optimizer.state:
                    checked[f"gradient of {name}"] = optimizer.state[parameter]["exp_avg_sq"]
        bad = [] if probably_finite([*named.values(), *checked.values()]) else not_finite(named | checked)
        # Once the scale is below 1, the gradients themselves overflow, and not only their multiples.
        bad += [f"gradients of {name.upper()}" for name, scaler in self._scalers().items() if scaler.get_scale() < 1]
        if bad:
            raise NotFinite(bad, {name: value.item() for name, value in named.items()})

    def _discriminator_step(self, images: Tensor, coords: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        with self._autocast():
            with torch.no_grad():
                fakes = self._fakes(coords, rng)
            fake_logits = self._logits(fakes, coords)
            real_logits = self._logits(images, coords)
        loss = discriminator_loss(real_logits.float(), fake_logits.float())
        self._update(loss, self.discriminator, self.d_optimizer, self.d_scaler)
        return loss.detach(), real_logits.detach().mean(), fake_logits.detach().mean()

    def _penalty_step(self, images: Tensor, coords: Tensor) -> Tensor:
        """γ/2·E‖∇D‖² times the number of steps between its evaluations, in float32 since it squares small gradients."""
        images = images.detach().requires_grad_(True)
        penalty = gradient_penalty(self._logits(images, coords), images)
        loss = self.options.r1_gamma / 2 * self.options.r1_every * penalty
        self._update(loss, self.discriminator, self.d_optimizer, self.d_scaler)
        return penalty.detach()

    def _generator_step(self, coords: Tensor, rng: torch.Generator) -> Tensor:
        self.discriminator.requires_grad_(False)
        with self._autocast():
            logits = self._logits(self._fakes(coords, rng), coords)
        loss = generator_loss(logits.float())
        self._update(loss, self.generator, self.g_optimizer, self.g_scaler)
        self.discriminator.requires_grad_(True)
        return loss.detach()

    def _update(
        self, loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        self.whole = False
        scaler.step(optimizer)
        scaler.update()

    def _fakes(self, coords: Tensor, rng: torch.Generator) -> Tensor:
        """Images [B, 3, H, W] of latents drawn from `rng`."""
        z = torch.randn(2, coords.shape[0], self.options.style_features, generator=rng).to(self.device)
        w = self.generator.mapping(z[0])
        if torch.is_grad_enabled():
            self.generator.track_mean_latent(w)
        if self.options.style_mixing and torch.rand((), generator=rng) < self.options.style_mixing:
            crossover = int(torch.randint(1, self.generator.num_layers, (), generator=rng))
            w = self.generator.mix(w, self.generator.mapping(z[1]), crossover)
        return self.generator.synthesis(w, coords if self.options.patches else coords[:1])

    def _logits(self, images: Tensor, coords: Tensor) -> Tensor:
        """Scores [B, 1]. A discriminator of patches gets their coordinates as further channels."""
        if self.options.patches:
            coords = GEOMETRIES[self.options.geometry].lift(coords)
            images = torch.cat([images, coords.permute(0, 3, 1, 2).to(images.dtype)], 1)
        return self.discriminator(images.contiguous(memory_format=torch.channels_last))

    def _autocast(self) -> AbstractContextManager:
        dtype = PRECISIONS[self.options.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that a run needs to continue, as flat tensors and metadata."""
        tensors = {}
        for prefix, module in self._modules().items():
            tensors |= {f"{prefix}.{name}": t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
        for prefix, optimizer in self._optimizers().items():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"{prefix}.{index}.{name}": torch.as_tensor(v).cpu().contiguous() for name, v in values.items()
                }
        scalers = {name: scaler.state_dict() for name, scaler in self._scalers().items()}
        return tensors, {
            "cips_fast": json.dumps(self.generator.config),
            "step": str(self.step_number),
            "last_r1": repr(self.last_r1),
            "scalers": json.dumps(scalers),
        }

    def load_state(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Load what `state` returned; `check_state` must have accepted it."""
        for prefix, module in self._modules().items():
            module.load_state_dict(_below(tensors, prefix))
        for prefix, optimizer in self._optimizers().items():
            state = _nested(_below(tensors, prefix), optimizer.param_groups[0]["params"])
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        for name, scaler in self._scalers().items():
            scaler.load_state_dict(json.loads(metadata["scalers"])[name])
        self.step_number = int(metadata["step"])
        self.last_r1 = float(metadata["last_r1"])

    def check_state(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Raise ValueError with a message of one line unless this is a complete and finite state of these networks."""
        wanted = {
            f"{prefix}.{name}": tuple(tensor.shape)
            for prefix, module in self._modules().items()
            for name, tensor in module.state_dict().items()
        }
        for prefix, optimizer in self._optimizers().items():
            for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
                shapes = {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
                wanted |= {f"{prefix}.{index}.{name}": shape for name, shape in shapes.items()}
        check_names_and_shapes(tensors, wanted, most=2)
        if others := [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]:
            raise ValueError(f"is damaged ({others[0]} is of {tensors[others[0]].dtype}, must be of torch.float32)")
        if bad := not_finite(tensors):
            raise ValueError(f"is {NotFinite(bad)}")
        check_metadata(metadata, {name: scaler.state_dict() for name, scaler in self._scalers().items()})

    def _modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, AVERAGED: self.average, "discriminator": self.discriminator}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"g_optimizer": self.g_optimizer, "d_optimizer": self.d_optimizer}

    def _scalers(self) -> dict[str, torch.amp.GradScaler]:
        return {"g": self.g_scaler, "d": self.d_scaler}


def make_generator(options: Options) -> CIPSGenerator:
    """The generator that the options describe, with initial weights."""
    generator = CIPSGenerator(
        options.res,
        variant=options.variant,
        width=options.width,
        style_features=options.style_features,
        activation=options.activation,
        geometry=options.geometry,
        embedding_size=options.embedding_size,
        mapping_layers=options.mapping_layers,
        max_frequency=options.max_frequency,
        embedding_std=options.embedding_std,
        backend=options.backend,
        pixel_chunk=options.pixel_chunk,
    )
    for tap in generator.to_rgb:
        tap.weight.data.mul_(options.rgb_std)
    for layer in [*generator.layers, *generator.to_rgb]:
        layer.affine.weight.data.mul_(options.style_std)
    return generator


def make_discriminator(options: Options) -> Discriminator:
    """The discriminator for whole images or for patches, as the options say, with initial weights."""
    coordinates = GEOMETRIES[options.geometry].dimensions if options.patches else 0
    return Discriminator(
        options.crop,
        input_channels=3 + coordinates,
        max_channels=options.d_channels,
        channel_base=options.d_base,
    )


def _adam(module: nn.Module, lr: float, correction: float) -> torch.optim.Adam:
    """Adam whose learning rate and decay are corrected for a regulariser's extra steps: lr·c, βᶜ."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    betas = tuple(beta**correction if beta else 0.0 for beta in ADAM_BETAS)
    return torch.optim.Adam(parameters, lr * correction, betas, eps=1e-8, fused=True)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix and a dot, without them."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}


def _nested(flat: dict[str, Tensor], parameters: list[nn.Parameter]) -> dict[int, dict[str, Tensor]]:
    """{"3.step": …} as {3: {"step": …}}, the form that an optimizer's state has."""
    nested: dict[int, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        index, field = name.split(".", 1)
        parameter = parameters[int(index)]
        # The fused update goes through memory in order, so a moment needs its parameter's memory format.
        laid_out = torch.empty_like(parameter.detach()).copy_(tensor) if tensor.shape == parameter.shape else tensor
        nested.setdefault(int(index), {})[field] = laid_out
    return nested
