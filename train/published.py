"""The discriminator of a published checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cips_fast.checkpoint import check_names_and_shapes, not_finite
from cips_fast.checks import ArgumentError
from cips_fast.modules import MOST_FEATURES
from cips_fast.published import published_state

from .discriminator import BLUR_TAPS, Discriminator


def load_published_discriminator(source: str | Path | Mapping[str, Tensor]) -> Discriminator:
    """The discriminator of a published CIPS or StyleGAN2 checkpoint, in eval mode, on the CPU, in float32.

    The shapes of the weights tell the size, the widths, the input channels and the number of extra first layers.

    Args:
        source: a checkpoint file, read with weights_only=True; a state dict; or a dict that holds one as `d`,
            `discriminator` or `D`.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: the file is damaged; names, shapes or blur kernels do not fit, and the message lists them; or a
            value is not finite.
    """
    state = published_state(source, ("d", "discriminator", "D"))
    first_layers = _count(state, "convs.{}.0.weight", first=1)
    blocks = _count(state, "convs.{}.conv1.0.weight", first=first_layers + 1)
    width_names = ["convs.0.0.weight", *(f"convs.{first_layers + k + 1}.conv2.1.weight" for k in range(blocks))]
    shapes = [_kernel_shape(state, name) for name in width_names]  # [O, I, k, k] each; O is the width
    options = {
        "size": 4 << blocks,
        "channels": [shape[0] for shape in shapes],
        "input_channels": shapes[0][1],
        "first_layers": first_layers,
    }
    if max(shapes[0][1], *options["channels"]) > MOST_FEATURES:
        raise ArgumentError(
            "state_dict", f"got {max(shapes[0][1], *options['channels'])} channels, must be at most {MOST_FEATURES}"
        )
    with torch.device("meta"):  # takes no memory, whatever the shapes claim
        layout = Discriminator(**options)
    names = _published_names(layout)
    own = layout.state_dict()
    blurs = [f"convs.{first_layers + 1 + k}.{part}.0.kernel" for k in range(blocks) for part in ("conv2", "skip")]
    wanted = {published: tuple(own[name].shape) for published, name in names.items()}
    check_names_and_shapes(state, wanted | dict.fromkeys(blurs, (len(BLUR_TAPS),) * 2))
    _check_blurs(state, blurs)
    if reason := not_finite(state):
        raise ArgumentError("state_dict", reason)
    model = Discriminator(**options)
    model.load_state_dict({name: state[published] for published, name in names.items()})
    return model.eval()


def _count(state: Mapping[str, Tensor], name: str, first: int) -> int:
    """How many consecutive numbers, from `first` on, make `name` a name in the state dict."""
    number = first
    while name.format(number) in state:
        number += 1
    return number - first


def _kernel_shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim != 4:
        got = list(state[name].shape) if name in state else "missing"
        raise ArgumentError("state_dict", f"not a published discriminator; {name}: {got}, must be [O, I, k, k]")
    return tuple(state[name].shape)


def _check_blurs(state: Mapping[str, Tensor], names: list[str]) -> None:
    taps = torch.tensor(BLUR_TAPS)
    other = [name for name in names if not torch.allclose(state[name].float(), torch.outer(taps, taps))]
    if other:
        raise ArgumentError("state_dict", f"not the [1, 3, 3, 1] blur: {', '.join(other)}")


def _published_names(model: Discriminator) -> dict[str, str]:
    """The published name of each parameter -> its name in `model`."""
    names = {"convs.0.0.weight": "from_image.weight", "convs.0.1.bias": "from_image.bias"}
    for k in range(len(model.first)):
        names |= {f"convs.{k + 1}.0.weight": f"first.{k}.weight", f"convs.{k + 1}.1.bias": f"first.{k}.bias"}
    for k in range(len(model.blocks)):
        published, own = f"convs.{len(model.first) + 1 + k}", f"blocks.{k}"
        names |= {
            f"{published}.conv1.0.weight": f"{own}.conv1.weight",
            f"{published}.conv1.1.bias": f"{own}.conv1.bias",
            f"{published}.conv2.1.weight": f"{own}.conv2.weight",
            f"{published}.conv2.2.bias": f"{own}.conv2.bias",
            f"{published}.skip.1.weight": f"{own}.skip.weight",
        }
    names |= {"final_conv.0.weight": "final_conv.weight", "final_conv.1.bias": "final_conv.bias"}
    for k, own in enumerate(("hidden", "logit")):
        names |= {f"final_linear.{k}.{part}": f"{own}.{part}" for part in ("weight", "bias")}
    return names
