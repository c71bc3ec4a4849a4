"""What lies between coordinates and colours, as plain tensors: the argument of the kernels that run a whole network."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Network:
    """A generator without its mapping: x₀ = [sin(F c + φ); E(c)], L layers, RGB taps   (arXiv 2011.13775).

    With `residual` a block of two layers is added to its input, (f(x) + x)/√2, and the last layer alone is tapped;
    without it every second layer is. Styles are those after the affine layers. All layers activate by lrelu.
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
        """B, images."""
        return self.styles[0].shape[0]

    @property
    def widths(self) -> list[int]:
        """Channels of every layer's output."""
        return [weight.shape[0] for weight in self.weights]

    @property
    def tapped(self) -> list[int]:
        """Places of the layers that the RGB taps read."""
        every_second = list(range(2, len(self.weights), 2))
        return every_second[-1:] if self.residual else every_second

    @property
    def blocks(self) -> dict[int, int | None]:
        """Residual blocks, by the place of the second layer: which shortcut leads around one, None if x goes itself."""
        shortcuts, inputs = iter(range(len(self.shortcuts))), [weight.shape[1] for weight in self.weights]
        ends = range(2, len(self.weights), 2) if self.residual else ()
        return {end: None if inputs[end - 1] == self.widths[end] else next(shortcuts) for end in ends}

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [t for value in self._values() for t in (value if isinstance(value, list | tuple) else [value])]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Network":
        """The same network with other tensors, in the order of `tensors`."""
        return Network.from_tensors(tensors, len(self.weights), self.residual, self.align_corners)

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], layers: int, residual: bool, align_corners: bool) -> "Network":
        """A network of `layers` layers from its tensors, in the order of `tensors`."""
        taps = 1 if residual else layers // 2
        rest = iter(tensors)
        singles = [next(rest) for _ in range(3)]
        lists = [[next(rest) for _ in range(count)] for count in (layers, layers, layers, taps, taps, taps)]
        return Network(*singles, *lists, list(rest), residual, align_corners)

    def _values(self) -> list[Tensor | Sequence[Tensor]]:
        return [getattr(self, field.name) for field in fields(self) if field.type is not bool]
