"""The parameters between coordinates and colours, as plain tensors: what every kernel of a whole network takes.

Importing this module needs neither Triton nor a GPU; the specification and the CPU code use it too.

    B images   D coordinate dimensions   C channels of each half of the encoding   I, O channels of a layer
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Network:
    """A generator without its mapping: x₀ = [sin(F c + φ); E(c)], L layers, RGB taps   (arXiv 2011.13775).

    With `residual`, each pair of layers after the first is a block that is added to its input, (f(x) + x)/√2, and only
    the last layer has a tap. Without `residual`, every second layer has one. The styles are those after the affine
    layers. The kernels activate every layer by lrelu.
    """

    freq: Tensor  # F [C, D]
    phase: Tensor  # φ [C]
    table: Tensor  # E [H, W, C]
    weights: Sequence[Tensor]  # [O, I], the first I is 2C
    biases: Sequence[Tensor]  # [O]
    styles: Sequence[Tensor]  # [B, I]
    tap_weights: Sequence[Tensor]  # [3, O]
    tap_biases: Sequence[Tensor]  # [3]
    tap_styles: Sequence[Tensor]  # [B, O]
    shortcuts: Sequence[Tensor] = ()  # [O, I] of every block that changes the width; `residual` only
    residual: bool = False
    align_corners: bool = True

    @property
    def batch(self) -> int:
        """B, the number of images."""
        return self.styles[0].shape[0]

    @property
    def widths(self) -> list[int]:
        """Channels of every layer's output."""
        return [weight.shape[0] for weight in self.weights]

    @property
    def tapped(self) -> list[int]:
        """Indices of the layers that have an RGB tap."""
        return tapped_layers(len(self.weights), self.residual)

    @property
    def blocks(self) -> dict[int, int | None]:
        """Residual blocks: the index of each block's second layer -> the index of its shortcut.

        The shortcut is None where the block keeps the width: then its input is added as it is.
        """
        blocks: dict[int, int | None] = {}
        shortcuts = 0
        for end in second_layers(len(self.weights)) if self.residual else []:
            keeps_width = self.weights[end - 1].shape[1] == self.weights[end].shape[0]
            blocks[end] = None if keeps_width else shortcuts
            shortcuts += 0 if keeps_width else 1
        return blocks

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [t for value in self._values() for t in (value if isinstance(value, list | tuple) else [value])]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Network":
        """The same network with other tensors, in the order of `tensors`."""
        return Network.from_tensors(tensors, len(self.weights), self.residual, self.align_corners)

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], layers: int, residual: bool, align_corners: bool) -> "Network":
        """A network of `layers` layers from its tensors, in the order of `tensors`."""
        taps = len(tapped_layers(layers, residual))
        rest = iter(tensors)
        singles = [next(rest) for _ in range(3)]
        lists = [[next(rest) for _ in range(count)] for count in (layers, layers, layers, taps, taps, taps)]
        return Network(*singles, *lists, list(rest), residual, align_corners)

    def _values(self) -> list[Tensor | Sequence[Tensor]]:
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if not isinstance(value, bool)]


def tapped_layers(layers: int, residual: bool) -> list[int]:
    """Indices of the layers that have an RGB tap, in a network of `layers` layers."""
    every_second = second_layers(layers)
    return every_second[-1:] if residual else every_second


def second_layers(layers: int) -> list[int]:
    """Layers after the first come in pairs, in a network of `layers` layers: the index of each pair's second layer."""
    return list(range(2, layers, 2))
