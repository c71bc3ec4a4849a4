"""A whole network of at most 128 channels in one launch, its activations on chip from coordinates to colours.

A program takes BLOCK_P pixels of one image through all layers. Each layer's weights are loaded whole, and its output is
the next one's input: L2 gives weights, and nothing of the activations goes to memory. Layer 1 takes its input a few
channels at a time, as they are encoded.

    B images   P pixels   D coordinate dimensions   C channels of each half of the encoding   I, O channels of a layer

Residual networks are left to stack.py: a second tile of activations does not fit most chips' registers. So are numbers
of channels that are no multiples of 16: weights that are loaded one by one take registers for their addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import stack_plan as layers
from .chips import precision
from .device import architecture, run
from .fourier import table_at, waves_at
from .network import Network
from .stack import activated, colours
from .stack_plan import BIAS, INPUTS, OUTPUTS, TAP, WEIGHT, field, width
from .tiles import narrow_tiles


@triton.jit
def _weights(
    w_ptr,  # [O, I]
    first,  # of BLOCK_I inputs
    last,  # up to which they count
    I,
    O,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Wᵀ of some inputs and all outputs, zero beyond them: [BLOCK_I, BLOCK_O]."""
    offs_i, offs_o = first + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_O)
    mask = (offs_i < last)[:, None] & (offs_o < O)[None, :]
    return tl.load(w_ptr + offs_o[None, :] * I + offs_i[:, None], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["P", "steps", "coords_stride_b", "at_stride_b"])
def stack_narrow_kernel(
    coords_ptr,  # float32 [B|1, P, D]
    at_ptr,  # float32 [B|1, P, 2]
    freq_ptr,  # [C, D]
    phase_ptr,  # [C]
    table_ptr,  # [H, W, C]
    steps_ptr,  # int32 [steps, FIELDS]
    w_ptr,  # modulated weights, those of a sample one after another [B, ...]
    bias_ptr,  # float32: of the colours [3], then one layer's after another, the gain in them
    rgb_ptr,  # float32 [B, P, 3]
    P,
    C,
    H,
    W,
    steps,
    coords_stride_b,  # in points: P, or 0 where the batch shares them
    at_stride_b,
    w_stride_b,
    D: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,  # at least that of every layer
    BLOCK_C: tl.constexpr,
):
    """rgb = Σ_taps T' x + τ with x = act(W' x + β) layer after layer, x₀ = [sin(F c + φ); E(c)]."""
    tiles_p = (P - 1) // BLOCK_P + 1
    b, start = (tl.program_id(0) // tiles_p).to(tl.int64), tl.program_id(0) % tiles_p * BLOCK_P
    weights = w_ptr + b * w_stride_b
    coords, at = coords_ptr + (b * coords_stride_b + start) * D, at_ptr + (b * at_stride_b + start) * 2
    rows, offs_o = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_O)
    mask_p = rows < P - start
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty

    I, O = width(steps_ptr, 0, INPUTS, True), width(steps_ptr, 0, OUTPUTS, True)
    acc = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    # Not pipelined: the table's rows would take all of shared memory.
    for c in tl.range(0, C, BLOCK_C, num_stages=1):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < C
        waves = waves_at(coords, freq_ptr, phase_ptr, rows, offs_c, mask_p, mask_c, D)
        w = _weights(weights, c, C, I, O, BLOCK_C, BLOCK_O)
        acc = tl.dot(waves.to(DTYPE), w, acc, input_precision=PRECISION)
        read = table_at(at, table_ptr, rows, offs_c, mask_p, mask_c, C, H, W, ALIGN_CORNERS)
        w = _weights(weights, C + c, I, I, O, BLOCK_C, BLOCK_O)
        acc = tl.dot(read.to(DTYPE), w, acc, input_precision=PRECISION)
    x = activated(acc, bias_ptr + field(steps_ptr, 0, BIAS), offs_o, offs_o < O).to(DTYPE)

    red = tl.zeros([BLOCK_P], tl.float32)
    green = tl.zeros([BLOCK_P], tl.float32)
    blue = tl.zeros([BLOCK_P], tl.float32)
    for step in range(1, steps):
        I, O = width(steps_ptr, step, INPUTS, True), width(steps_ptr, step, OUTPUTS, True)
        bias, tap = field(steps_ptr, step, BIAS), field(steps_ptr, step, TAP)
        w = _weights(weights + width(steps_ptr, step, WEIGHT, True), 0, I, I, O, BLOCK_O, BLOCK_O)
        y = activated(tl.dot(x, w, input_precision=PRECISION), bias_ptr + bias, offs_o, offs_o < O)
        if tap >= 0:
            more_red, more_green, more_blue = colours(weights + tap, y, O, offs_o, offs_o < O)
            red += more_red
            green += more_green
            blue += more_blue
        x = y.to(DTYPE)

    pixels = rgb_ptr + (b * P + start) * 3 + rows * 3
    tl.store(pixels, red + tl.load(bias_ptr), mask=mask_p)
    tl.store(pixels + 1, green + tl.load(bias_ptr + 1), mask=mask_p)
    tl.store(pixels + 2, blue + tl.load(bias_ptr + 2), mask=mask_p)


def serves(network: Network, dtype: torch.dtype, architecture: str) -> bool:
    """Whether this form takes a network: no wider than the table's tiles, and see above."""
    channels = [network.freq.shape[0], *network.widths]
    fits = narrow_tiles(max(network.widths), dtype, architecture) is not None
    return fits and not network.residual and all(n % 16 == 0 for n in channels)


def render(network: Network, coords: Tensor, at: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Colours at coordinates; the arguments are those of `stack.render`. Float32 [B, P, 3].

    Raises:
        ValueError: a network that this form does not take.
    """
    B, (P, D) = network.batch, coords.shape[1:]
    plan, arch = layers.plan_of(network), architecture(coords.device)
    if not serves(network, dtype, arch):
        pairs = dict.fromkeys(f"{step.inputs}→{step.outputs}" for step in plan.steps)
        what = f"{'residual blocks' if network.residual else 'layers'} of {', '.join(pairs)} channels in {dtype}"
        raise ValueError(f"network: got {what}, which do not stay on chip on {arch}; stack.render takes them")
    tiles = narrow_tiles(max(network.widths), dtype, arch)
    arguments = layers.arguments(network, plan, coords, at, dtype)
    constants = {
        "D": D,
        "ALIGN_CORNERS": network.align_corners,
        "PRECISION": precision(dtype, arch),
        "BLOCK_P": tiles.rows,
        "BLOCK_O": tiles.cols,
        "BLOCK_C": tiles.depth,
    }
    run(stack_narrow_kernel, (B * triton.cdiv(P, tiles.rows),), arguments, constants, tiles)
    return arguments["rgb_ptr"]
