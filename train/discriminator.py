"""StyleGAN2's residual discriminator in plain PyTorch, differentiable twice (Karras et al. 2019, arXiv 1912.04958).

Inside, activations are channels-last, and constant gains are folded into the weights, since lrelu(a·v) = a·lrelu(v)
for a > 0. This saves a pass over the pixels for each √2 of an activation and each 1/√2 of a residual sum.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cips_fast.checks import ArgumentError

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
BLUR_TAPS = (0.125, 0.375, 0.375, 0.125)
STDDEV_GROUP = 4

# Side of an image, in pixels, up to which two products with an n × n band matrix are the fastest blur. Their cost per
# pixel grows with n, so a stretched kernel is faster for larger images.
BANDED_MAX_SIZE = 128


def blur_matrix(size: int, padding: int, stride: int = 1) -> Tensor:
    """The [1, 3, 3, 1]/8 filter over a zero-padded line of n = `size` samples, as a matrix [m, n].

    m = (n + 2·padding - 4)//stride + 1. The entries are exact in bfloat16 and float16.
    """
    taps = torch.tensor(BLUR_TAPS)
    rows = torch.arange(0, size + 2 * padding - len(taps) + 1, stride)
    tap = torch.arange(size) + padding - rows[:, None]  # [rows, size]
    inside = (tap >= 0) & (tap < len(taps))
    return torch.where(inside, taps[tap.clamp(0, len(taps) - 1)], torch.zeros(()))


def blur_banded(x: Tensor, matrix: Tensor) -> Tensor:
    """Blur both axes of a square x [B, C, n, n] with matrix [m, n]: two dense products, result [B, C, m, m]."""
    batch, channels, height, width = x.shape
    y = matrix @ x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)  # [B, m, W·C]
    y = matrix @ y.reshape(-1, width, channels)  # [B·m, m, C]
    return y.view(batch, len(matrix), len(matrix), channels).permute(0, 3, 1, 2)


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LRELU_SLOPE)


def _without_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Equalized(nn.Module):
    """Weight ~ N(0, 1) times gain/√fan_in at run time, bias from zero times gain (equalised learning rate)."""

    def __init__(self, shape: Sequence[int], *, gain: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))  # [O, I, ...]
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None  # [O]
        self.gain = gain
        self.weight_gain = gain / math.sqrt(math.prod(shape[1:]))

    def scaled_weight(self) -> Tensor:
        return self.weight * self.weight_gain

    def scaled_bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias * self.gain


class EqualConv2d(_Equalized):
    """Convolution of the same size: x [B, I, H, W] -> [B, O, H, W], kernel size odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, gain: float = LRELU_GAIN) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scaled_weight(), self.scaled_bias(), padding=self.weight.shape[-1] // 2)


class EqualLinear(_Equalized):
    """Affine map x [B, I] -> [B, O]."""

    def __init__(self, in_features: int, out_features: int, *, gain: float = 1.0) -> None:
        super().__init__((out_features, in_features), gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaled_weight(), self.scaled_bias())


class BlurDownConv2d(_Equalized):
    """Blur, then a k×k convolution of stride 2: x [B, I, n, n] -> [B, O, n/2, n/2], n even and k = 1 or 3.

    The zero padding, (k + 1)/2 on every side, comes before the blur. Small images are blurred by band matrices; for
    k = 1 only the pixels that the stride selects are computed. For large images the blur is convolved into the kernel,
    which gives the same result.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, size: int, gain: float, bias: bool
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), gain=gain, bias=bias)
        self.padding = (kernel_size + 1) // 2
        self.banded = size <= BANDED_MAX_SIZE
        self.blur_stride = 2 if kernel_size == 1 else 1
        if self.banded:
            blur = blur_matrix(size, self.padding, self.blur_stride)  # [m, n]
        else:
            stretch = blur_matrix(kernel_size, len(BLUR_TAPS) - 1)  # [k + 3, k]
            blur = torch.kron(stretch, stretch)  # [(k + 3)², k²]
        self.register_buffer("blur", blur, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.banded:
            return F.conv2d(
                blur_banded(x, self.blur), self.scaled_weight(), self.scaled_bias(), stride=2 // self.blur_stride
            )
        return F.conv2d(x, self.stretched_weight(), self.scaled_bias(), stride=2, padding=self.padding)

    def stretched_weight(self) -> Tensor:
        """The kernel with the blur convolved into it, [O, I, k + 3, k + 3]; only the convolution rounds it."""
        with _without_autocast(self.weight):
            stretched = self.scaled_weight().flatten(2) @ self.blur.T
        side = self.weight.shape[-1] + len(BLUR_TAPS) - 1
        return stretched.view(*self.weight.shape[:2], side, side)


class ResidualBlock(nn.Module):
    """(lrelu(conv2(lrelu(conv1(x)))) + skip(x))/√2; conv2 and skip halve n: [B, I, n, n] -> [B, O, n/2, n/2]."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        half = math.sqrt(0.5)  # the residual sum's 1/√2, in both of its terms
        self.conv1 = EqualConv2d(in_channels, in_channels, 3)
        self.conv2 = BlurDownConv2d(in_channels, out_channels, 3, size=size, gain=LRELU_GAIN * half, bias=True)
        self.skip = BlurDownConv2d(in_channels, out_channels, 1, size=size, gain=half, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _lrelu(self.conv2(_lrelu(self.conv1(x)))) + self.skip(x)


def minibatch_stddev(x: Tensor) -> Tensor:
    """Append to x [B, C, H, W] the mean deviation within its group: [B, C + 1, H, W].

    s = mean over C, H, W of √(Var over the group + 1e-8), the variance biased (Karras et al. 2018, arXiv 1710.10196,
    section 3). A group is the largest number up to 4 that divides B; its members lie B/group apart in the batch.
    The statistics are float32 at least.
    """
    batch, _, height, width = x.shape
    group = next(g for g in range(min(STDDEV_GROUP, batch), 0, -1) if batch % g == 0)
    members = _at_least_float32(x).unflatten(0, (group, batch // group))  # [group, B/group, C, H, W]
    variance = (members - members.mean(0)).square().mean(0)  # on a CPU, `var` over so short a dimension is slow
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))  # [B/group]
    channel = deviation.repeat(group).view(batch, 1, 1, 1).expand(batch, 1, height, width)
    return torch.cat([x, channel.to(x.dtype)], 1)


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator: images to logits.

    x -> 1×1 conv -> `first_layers` 3×3 convs -> residual blocks down to 4×4 -> minibatch stddev -> 3×3 conv -> two
    linear layers. lrelu(0.2)·√2 follows each convolution, except those of the skips, and the first linear layer (Karras
    et al. 2019, arXiv 1912.04958, section 4.1).

    Args:
        size: side of the square input in pixels, a power of two, at least 4.
        channels: widths at size, size/2, ..., 4; min(max_channels, channel_base // resolution) unless given.
        channel_base, max_channels: the width rule; the defaults are the published widths.
        input_channels: 3 for RGB, 5 for RGB and its pixel coordinates x, y.
        first_layers: extra 3×3 convolutions at full size.

    Raises:
        ValueError: size is not such a power of two, or a width or count is out of range.
    """

    def __init__(
        self,
        size: int,
        *,
        channels: Sequence[int] | None = None,
        channel_base: int = 32768,
        max_channels: int = 512,
        input_channels: int = 3,
        first_layers: int = 0,
    ) -> None:
        super().__init__()
        if size < 4 or size & (size - 1):
            raise ArgumentError("size", f"got {size}, must be a power of two, at least 4")
        sizes = [size >> k for k in range(size.bit_length() - 2)]  # size, size/2, ..., 4
        widths = [min(max_channels, channel_base // n) for n in sizes] if channels is None else list(channels)
        if len(widths) != len(sizes) or min(widths) < 1:
            wanted = f"{len(sizes)} positive widths, one for each of {sizes}"
            raise ArgumentError("channels", f"got {widths}, must be {wanted}")
        if input_channels < 1:
            raise ArgumentError("input_channels", f"got {input_channels}, must be at least 1")
        if first_layers < 0:
            raise ArgumentError("first_layers", f"got {first_layers}, must be at least 0")
        self.size = size
        self.channels = tuple(widths)
        self.input_channels = input_channels
        self.from_image = EqualConv2d(input_channels, widths[0], 1)
        self.first = nn.ModuleList(EqualConv2d(widths[0], widths[0], 3) for _ in range(first_layers))
        self.blocks = nn.ModuleList(ResidualBlock(widths[k], widths[k + 1], sizes[k]) for k in range(len(sizes) - 1))
        self.final_conv = EqualConv2d(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualLinear(widths[-1] * 4 * 4, widths[-1], gain=LRELU_GAIN)
        self.logit = EqualLinear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch. Under autocast, the stddev statistics and the linear layers stay in float32.

        Args:
            x: [B, input_channels, size, size], values in [-1, 1], in any memory format.

        Returns:
            [B, 1]; float32 under autocast, the parameters' dtype otherwise.

        Raises:
            ValueError: x has another shape or is empty.
        """
        expected = (self.input_channels, self.size, self.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected or not len(x):
            wanted = f"[B, {', '.join(map(str, expected))}] with B > 0"
            raise ArgumentError("x", f"got shape {list(x.shape)}, must be {wanted}")
        x = _lrelu(self.from_image(x.contiguous(memory_format=torch.channels_last)))
        for layer in self.first:
            x = _lrelu(layer(x))
        for block in self.blocks:
            x = block(x)
        x = _lrelu(self.final_conv(minibatch_stddev(x)))
        with _without_autocast(x):
            return self.logit(_lrelu(self.hidden(x.flatten(1).to(self.hidden.weight.dtype))))
