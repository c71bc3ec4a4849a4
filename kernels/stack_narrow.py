"""A whole network of at most 128 channels in one launch, with all activations on chip, for inference.

A program takes BLOCK_P pixels of one image and carries them through all layers. It loads the whole weight matrix of a
layer at once, from L2, and passes the layer's output to the next layer without writing it to memory. Layer 1 takes its
input a few channels at a time, as they are encoded.

    B images   P pixels   D coordinate dimensions   C channels of each half of the encoding   I, O channels of a layer

stack.py serves residual networks, because a second tile of activations does not fit the registers of most chips. It
also serves numbers of channels that are not multiples of 16, because there each weight is loaded on its own, and the
addresses would occupy registers.
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
    first,  # the first of BLOCK_I inputs
    last,  # inputs from this one on count as zero
    I,
    O,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Wᵀ for some inputs and all outputs, and zeros beyond them: [BLOCK_I, BLOCK_O]."""
    offs_i, offs_o = first + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_O)
    mask = (offs_i < last)[:, None] & (offs_o < O)[None, :]
    return tl.load(w_ptr + offs_o[None, :] * I + offs_i[:, None], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["P", "entries", "coords_stride_b", "table_coords_stride_b"])
def stack_narrow_kernel(
    coords_ptr,  # float32 [B|1, P, D]
    table_coords_ptr,  # float32 [B|1, P, 2]
    freq_ptr,  # [C, D]
    phase_ptr,  # [C]
    table_ptr,  # [H, W, C]
    entries_ptr,  # int32 [entries, FIELDS], see stack_plan.py
    w_ptr,  # modulated weights, each sample's one after another [B, ...]
    bias_ptr,  # float32: that of the colours [3], then those of the layers, with the gain in them
    rgb_ptr,  # float32 [B, P, 3]
    P,
    C,
    H,
    W,
    entries,
    coords_stride_b,  # in points: P, or 0 where all images share the coordinates
    table_coords_stride_b,
    w_stride_b,
    D: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,  # at least the outputs of every layer
    BLOCK_C: tl.constexpr,
):
    """rgb = Σ_taps T' x_l + τ with x_l = act(W'_l x_{l-1} + β_l) and x₀ = [sin(F c + φ); E(c)]."""
    tiles_p = (P - 1) // BLOCK_P + 1
    b, start = (tl.program_id(0) // tiles_p).to(tl.int64), tl.program_id(0) % tiles_p * BLOCK_P
    weights = w_ptr + b * w_stride_b
    coords, table_coords = (
        coords_ptr + (b * coords_stride_b + start) * D,
        table_coords_ptr + (b * table_coords_stride_b + start) * 2,
    )
    rows, offs_o = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_O)
    mask_p = rows < P - start
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty

    I, O = width(entries_ptr, 0, INPUTS, True), width(entries_ptr, 0, OUTPUTS, True)
    acc = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    # Not pipelined: the rows of the embedding table would fill all of shared memory.
    for c in tl.range(0, C, BLOCK_C, num_stages=1):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < C
        waves = waves_at(coords, freq_ptr, phase_ptr, rows, offs_c, mask_p, mask_c, D)
        w = _weights(weights, c, C, I, O, BLOCK_C, BLOCK_O)
        acc = tl.dot(waves.to(DTYPE), w, acc, input_precision=PRECISION)
        read = table_at(table_coords, table_ptr, rows, offs_c, mask_p, mask_c, C, H, W, ALIGN_CORNERS)
        w = _weights(weights, C + c, I, I, O, BLOCK_C, BLOCK_O)
        acc = tl.dot(read.to(DTYPE), w, acc, input_precision=PRECISION)
    x = activated(acc, bias_ptr + field(entries_ptr, 0, BIAS), offs_o, offs_o < O).to(DTYPE)

    red = tl.zeros([BLOCK_P], tl.float32)
    green = tl.zeros([BLOCK_P], tl.float32)
    blue = tl.zeros([BLOCK_P], tl.float32)
    for entry in range(1, entries):
        I, O = width(entries_ptr, entry, INPUTS, True), width(entries_ptr, entry, OUTPUTS, True)
        bias, tap = field(entries_ptr, entry, BIAS), field(entries_ptr, entry, TAP)
        w = _weights(weights + width(entries_ptr, entry, WEIGHT, True), 0, I, I, O, BLOCK_O, BLOCK_O)
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
    """Whether this kernel takes a network: see the top of this file; `narrow_tiles` gives the largest width."""
    channels = [network.freq.shape[0], *network.widths]
    fits = narrow_tiles(max(network.widths), dtype, architecture) is not None
    return fits and not network.residual and all(n % 16 == 0 for n in channels)


def infer(network: Network, coords: Tensor, table_coords: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Colours at coordinates, float32 [B, P, 3], without gradients; the arguments are those of `stack.infer`.

    Raises:
        ValueError: a network that this kernel does not take.
    """
    B, (P, D) = network.batch, coords.shape[1:]
    plan, arch = layers.plan_of(network), architecture(coords.device)
    if not serves(network, dtype, arch):
        pairs = dict.fromkeys(f"{entry.inputs}→{entry.outputs}" for entry in plan.entries)
        what = f"{'residual blocks' if network.residual else 'layers'} of {', '.join(pairs)} channels in {dtype}"
        raise ValueError(f"network: got {what}, which do not stay on chip on {arch}; stack.infer takes them")
    tiles = narrow_tiles(max(network.widths), dtype, arch)
    arguments = layers.arguments(network, plan, coords, table_coords, dtype)
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
