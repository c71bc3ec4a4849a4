"""A whole network of at most 128 channels in one launch, its activations on chip from coordinates to colours.

A program holds BLOCK_P pixels of one image in registers. A layer's weights are loaded whole and meet them there, so that
nothing but weights is read between layers: no scratch, and no barrier for its sake. Layer 1 takes its input channel by
channel as it is encoded.

    B images   P pixels   D coordinate dimensions   C channels of each half of the encoding   I, O channels of a layer
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import steps as layers
from .device import architecture, run
from .fourier import table_at, waves_at
from .launch import Tiles, precision
from .network import Network
from .stack import _activated, _colours
from .steps import AROUND, BIAS, INPUTS, OUTPUTS, TAP, WEIGHT, field, width

INVERSE_SQRT_2 = tl.constexpr(0.7071067811865476)


@triton.jit
def _weights(
    w_ptr,  # [O, I]
    first,  # of BLOCK_I inputs
    inputs,  # up to which they count
    I,
    O,
    BLOCK_I: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Wᵀ of some inputs and all outputs, zero beyond them: [BLOCK_I, WIDTH]."""
    offs_i, offs_o = first + tl.arange(0, BLOCK_I), tl.arange(0, WIDTH)
    mask = (offs_i < inputs)[:, None] & (offs_o < O)[None, :]
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
    ALIGNED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WIDTH: tl.constexpr,  # at least that of every layer
    BLOCK_C: tl.constexpr,
):
    """rgb = Σ_taps T' x + τ with x = act(W' x + β) layer after layer, x₀ = [sin(F c + φ); E(c)]."""
    tiles_p = (P - 1) // BLOCK_P + 1
    b, start = (tl.program_id(0) // tiles_p).to(tl.int64), tl.program_id(0) % tiles_p * BLOCK_P
    weights = w_ptr + b * w_stride_b
    coords, at = coords_ptr + (b * coords_stride_b + start) * D, at_ptr + (b * at_stride_b + start) * 2
    rows, offs_o = tl.arange(0, BLOCK_P), tl.arange(0, WIDTH)
    mask_p = rows < P - start
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty

    I, O = width(steps_ptr, 0, INPUTS, ALIGNED), width(steps_ptr, 0, OUTPUTS, ALIGNED)
    acc = tl.zeros([BLOCK_P, WIDTH], tl.float32)
    for c in tl.range(0, C, BLOCK_C, num_stages=1):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < C
        waves = waves_at(coords, freq_ptr, phase_ptr, rows, offs_c, mask_p, mask_c, D)
        w = _weights(weights, c, C, I, O, BLOCK_C, WIDTH)
        acc = tl.dot(waves.to(DTYPE), w, acc, input_precision=PRECISION)
        read = table_at(at, table_ptr, rows, offs_c, mask_p, mask_c, C, H, W, ALIGN_CORNERS)
        w = _weights(weights, C + c, I, I, O, BLOCK_C, WIDTH)
        acc = tl.dot(read.to(DTYPE), w, acc, input_precision=PRECISION)
    x = _activated(acc, bias_ptr + field(steps_ptr, 0, BIAS), offs_o, offs_o < O).to(DTYPE)

    around = x
    red = tl.zeros([BLOCK_P], tl.float32)
    green = tl.zeros([BLOCK_P], tl.float32)
    blue = tl.zeros([BLOCK_P], tl.float32)
    for step in range(1, steps):
        I, O = width(steps_ptr, step, INPUTS, ALIGNED), width(steps_ptr, step, OUTPUTS, ALIGNED)
        bias, tap = field(steps_ptr, step, BIAS), field(steps_ptr, step, TAP)
        w = _weights(weights + width(steps_ptr, step, WEIGHT, ALIGNED), 0, I, I, O, WIDTH, WIDTH)
        if RESIDUAL:
            y = tl.dot(tl.where(bias < 0, around, x), w, input_precision=PRECISION)
            if bias < 0:
                around = y.to(DTYPE)
            else:
                y = _activated(y, bias_ptr + bias, offs_o, offs_o < O)
                if field(steps_ptr, step, AROUND) >= 0:
                    y = (y + around.to(tl.float32)) * INVERSE_SQRT_2
                around = x
                x = y.to(DTYPE)
        else:
            y = tl.dot(x, w, input_precision=PRECISION)
            y = _activated(y, bias_ptr + bias, offs_o, offs_o < O)
            x = y.to(DTYPE)
        if tap >= 0:
            more_red, more_green, more_blue = _colours(weights + tap, y, O, offs_o, offs_o < O)
            red += more_red
            green += more_green
            blue += more_blue

    colours = rgb_ptr + (b * P + start) * 3 + rows * 3
    tl.store(colours, red + tl.load(bias_ptr), mask=mask_p)
    tl.store(colours + 1, green + tl.load(bias_ptr + 1), mask=mask_p)
    tl.store(colours + 2, blue + tl.load(bias_ptr + 2), mask=mask_p)


def stack_tiles(width: int, dtype, arch) -> Tiles:
    return Tiles(128, width, 32, 8, 3)


def render(network: Network, coords: Tensor, at: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    B, (P, D) = network.batch, coords.shape[1:]
    at = coords if at is None else at
    plan = layers.plan_of(network)
    w, biases = layers.packed(network, plan, dtype)
    arch = architecture(coords.device)
    WIDTH = max(16, triton.next_power_of_2(max(network.widths)))
    tiles = stack_tiles(WIDTH, dtype, arch)
    rgb = torch.empty(B, P, 3, dtype=torch.float32, device=coords.device)
    C, (H, W) = network.freq.shape[0], network.table.shape[:2]
    arguments = {
        "coords_ptr": coords.contiguous(),
        "at_ptr": at.contiguous(),
        "freq_ptr": network.freq.contiguous(),
        "phase_ptr": network.phase.contiguous(),
        "table_ptr": network.table.contiguous(),
        "steps_ptr": layers.in_memory(plan.steps, coords.device),
        "w_ptr": w,
        "bias_ptr": biases,
        "rgb_ptr": rgb,
        "P": P,
        "C": C,
        "H": H,
        "W": W,
        "steps": len(plan.steps),
        "coords_stride_b": P if coords.shape[0] == B else 0,
        "at_stride_b": P if at.shape[0] == B else 0,
        "w_stride_b": w.stride(0),
    }
    constants = {
        "D": D,
        "ALIGN_CORNERS": network.align_corners,
        "ALIGNED": plan.aligned,
        "RESIDUAL": network.residual,
        "PRECISION": precision(dtype, arch),
        "BLOCK_P": tiles.rows,
        "WIDTH": WIDTH,
        "BLOCK_C": min(tiles.depth, max(16, triton.next_power_of_2(C))),
    }
    run(stack_narrow_kernel, (B * triton.cdiv(P, tiles.rows),), arguments, constants, tiles)
    return rgb
