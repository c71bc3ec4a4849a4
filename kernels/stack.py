"""A whole network in one launch: coordinates to colours, for inference.

A program takes BLOCK_P pixels of one image and carries them through all layers. It reads the weights from L2. It writes
the tile's activations to two regions of scratch memory in turn. No other program touches them, so they stay in L2, and
only coordinates, weights and colours move to and from HBM. Pixels are independent, so the only synchronisation is a
block barrier between layers. Each program repeats this for further tiles until none is left: the size of the scratch
memory depends on the number of programs in flight, and not on the size of the image.

    B images   P pixels   D coordinate dimensions   C channels of each half of the encoding   I, O channels of a layer

The network is a list of entries in memory (stack_plan.py), so one compiled kernel serves every depth, every sequence of
widths, and residual blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import stack_plan as layers
from .chips import precision
from .device import architecture, run
from .fourier import table_at, waves_at
from .mod_fc import INVERSE_SQRT_2, SLOPE, colours
from .network import Network
from .stack_plan import AROUND, BIAS, INPUTS, OUTPUTS, SOURCE, TAP, TARGET, WEIGHT, field, width
from .tiles import programs_in_flight, stack_tiles


@triton.jit
def _encode(
    x0_ptr,  # [ROWS, 2C]
    coords_ptr,
    table_coords_ptr,
    freq_ptr,
    phase_ptr,
    table_ptr,
    offs_n,  # [ROWS]
    mask_n,
    C,
    H,
    W,
    D: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """x₀ = [sin(F c + φ); E(c)]. Rows beyond the last pixel become arbitrary finite numbers."""
    for c in range(0, C, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < C
        x0_ptrs = x0_ptr + tl.arange(0, ROWS)[:, None] * (2 * C) + offs_c[None, :]
        waves = waves_at(coords_ptr, freq_ptr, phase_ptr, offs_n, offs_c, mask_n, mask_c, D)
        tl.store(x0_ptrs, waves.to(x0_ptr.dtype.element_ty), mask=mask_c[None, :])
        read = table_at(table_coords_ptr, table_ptr, offs_n, offs_c, mask_n, mask_c, C, H, W, ALIGN_CORNERS)
        tl.store(x0_ptrs + C, read.to(x0_ptr.dtype.element_ty), mask=mask_c[None, :])


@triton.jit
def _product(
    x_ptr,  # [ROWS, I]
    w_ptr,  # [O, I]
    I,
    O,
    tile_o,
    EVEN: tl.constexpr,  # I is a multiple of BLOCK_I
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """x Wᵀ for one tile of outputs, float32 [ROWS, BLOCK_O]. Columns beyond O repeat column O - 1."""
    offs_o = tl.minimum(tile_o * BLOCK_O + tl.arange(0, BLOCK_O), O - 1)
    offs_i = tl.arange(0, BLOCK_I)
    offs_x = tl.arange(0, ROWS)[:, None] * I + offs_i[None, :]
    offs_w = offs_o[None, :] * I + offs_i[:, None]
    acc = tl.zeros([ROWS, BLOCK_O], tl.float32)
    for i in range(0, I, BLOCK_I):
        if EVEN:
            x, w = tl.load(x_ptr + offs_x), tl.load(w_ptr + offs_w)
        else:
            inside = offs_i < I - i
            x = tl.load(x_ptr + offs_x, mask=inside[None, :], other=0.0)
            w = tl.load(w_ptr + offs_w, mask=inside[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_ptr += BLOCK_I
        w_ptr += BLOCK_I
    return acc


@triton.jit
def activated(acc, bias_ptr, offs_o, mask_o):
    """lrelu(acc + β): float32 [ROWS, BLOCK_O]."""
    acc += tl.load(bias_ptr + offs_o, mask=mask_o, other=0.0)[None, :]
    return tl.where(acc > 0, acc, acc * SLOPE)


@triton.jit(do_not_specialize=["B", "P", "entries", "coords_stride_b", "table_coords_stride_b"])
def stack_kernel(
    coords_ptr,  # float32 [B|1, P, D]
    table_coords_ptr,  # float32 [B|1, P, 2]
    freq_ptr,  # [C, D]
    phase_ptr,  # [C]
    table_ptr,  # [H, W, C]
    entries_ptr,  # int32 [entries, FIELDS], see stack_plan.py
    w_ptr,  # modulated weights, each sample's one after another [B, ...]
    bias_ptr,  # float32: that of the colours [3], then those of the layers, with the gain in them
    scratch_ptr,  # [programs, regions, region_size]
    rgb_ptr,  # float32 [B, P, 3]
    B,
    P,
    C,
    H,
    W,
    entries,
    coords_stride_b,  # in points: P, or 0 where all images share the coordinates
    table_coords_stride_b,
    w_stride_b,
    scratch_size,  # elements of a program's scratch memory
    region_size,  # elements
    D: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    ENCODED: tl.constexpr,  # pixels that are encoded at a time: x₀ is twice as wide as the other activations
    BLOCK_C: tl.constexpr,
):
    """rgb = Σ_taps T' x_l + τ with x_l = act(W'_l x_{l-1} + β_l) and x₀ = [sin(F c + φ); E(c)]."""
    tiles_p = (P - 1) // BLOCK_P + 1
    first = scratch_ptr + tl.program_id(0).to(tl.int64) * scratch_size
    rows = tl.arange(0, BLOCK_P)
    for item in range(tl.program_id(0), B * tiles_p, tl.num_programs(0)):
        b, start = (item // tiles_p).to(tl.int64), item % tiles_p * BLOCK_P
        weights = w_ptr + b * w_stride_b
        coords, table_coords = (
            coords_ptr + (b * coords_stride_b + start) * D,
            table_coords_ptr + (b * table_coords_stride_b + start) * 2,
        )

        # Layer 1. Its input is encoded in parts, so that two regions suffice.
        for part in range(0, BLOCK_P, ENCODED):
            own = part + tl.arange(0, ENCODED)
            _encode(
                first, coords, table_coords, freq_ptr, phase_ptr, table_ptr, own, own < P - start, C, H, W,
                D, ALIGN_CORNERS, ENCODED, BLOCK_C,
            )  # fmt: skip
            tl.debug_barrier()
            # Loaded after the barrier, so that neither they nor what depends on them occupies registers before it.
            I, O = width(entries_ptr, 0, INPUTS, ALIGNED), width(entries_ptr, 0, OUTPUTS, ALIGNED)
            for tile_o in range(0, tl.cdiv(O, BLOCK_O)):
                acc = _product(first, weights, I, O, tile_o, EVEN, PRECISION, ENCODED, BLOCK_O, BLOCK_I)
                offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
                mask_o = offs_o < O
                acc = activated(acc, bias_ptr + field(entries_ptr, 0, BIAS), offs_o, mask_o)
                y_ptrs = first + region_size + own[:, None] * O + offs_o[None, :]
                tl.store(y_ptrs, acc.to(scratch_ptr.dtype.element_ty), mask=mask_o[None, :])
            tl.debug_barrier()

        red = tl.zeros([BLOCK_P], tl.float32)
        green = tl.zeros([BLOCK_P], tl.float32)
        blue = tl.zeros([BLOCK_P], tl.float32)
        for entry in range(1, entries):
            I, O = width(entries_ptr, entry, INPUTS, ALIGNED), width(entries_ptr, entry, OUTPUTS, ALIGNED)
            w = weights + width(entries_ptr, entry, WEIGHT, ALIGNED)
            bias, tap, around = (
                field(entries_ptr, entry, BIAS),
                field(entries_ptr, entry, TAP),
                field(entries_ptr, entry, AROUND),
            )
            x = first + field(entries_ptr, entry, SOURCE) * region_size
            y = first + field(entries_ptr, entry, TARGET) * region_size
            HALF: tl.constexpr = BLOCK_O // 2
            for tile_o in range(0, tl.cdiv(O, BLOCK_O)):
                acc = _product(x, w, I, O, tile_o, EVEN, PRECISION, BLOCK_P, BLOCK_O, BLOCK_I)
                # The epilogue handles half of the tile at a time: the operands of a whole tile would spill.
                left, right = acc.reshape(BLOCK_P, 2, HALF).permute(0, 2, 1).split()
                for half in tl.static_range(2):
                    acc = left if half == 0 else right
                    offs_o = tile_o * BLOCK_O + half * HALF + tl.arange(0, HALF)
                    mask_o = offs_o < O
                    own = rows[:, None] * O + offs_o[None, :]
                    if bias >= 0:
                        acc = activated(acc, bias_ptr + bias, offs_o, mask_o)
                    if around >= 0:
                        # The result overwrites what was added to it. Each element is read and written by one and the
                        # same thread: no tile has fewer elements than threads, so no other thread reads it.
                        before = tl.load(first + around * region_size + own, mask=mask_o[None, :], other=0.0)
                        acc = (acc + before.to(tl.float32)) * INVERSE_SQRT_2
                    tl.store(y + own, acc.to(scratch_ptr.dtype.element_ty), mask=mask_o[None, :])
                    if tap >= 0:
                        more_red, more_green, more_blue = colours(weights + tap, acc, O, offs_o, mask_o)
                        red += more_red
                        green += more_green
                        blue += more_blue
            tl.debug_barrier()

        pixels, mask_p = rgb_ptr + (b * P + start) * 3 + rows * 3, rows < P - start
        tl.store(pixels, red + tl.load(bias_ptr), mask=mask_p)
        tl.store(pixels + 1, green + tl.load(bias_ptr + 1), mask=mask_p)
        tl.store(pixels + 2, blue + tl.load(bias_ptr + 2), mask=mask_p)


def infer(network: Network, coords: Tensor, table_coords: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Colours at coordinates, without gradients.

    Args:
        network: the parameters.
        coords: float32 [B|1, P, D].
        table_coords: where the embedding table is read, float32 [B|1, P, 2]; by default at `coords`.
        dtype: dtype of weights and activations: bfloat16, float16 or float32.

    Returns:
        float32 [B, P, 3].
    """
    B, (P, D) = network.batch, coords.shape[1:]
    plan, arch, widest = layers.plan_of(network), architecture(coords.device), max(network.widths)
    tiles = stack_tiles(widest, dtype, arch)
    encoded = tiles.rows // 2
    region_size = max(tiles.rows * widest, encoded * plan.inputs[0])
    programs = programs_in_flight(B * triton.cdiv(P, tiles.rows), arch)
    arguments = layers.arguments(network, plan, coords, table_coords, dtype) | {
        "scratch_ptr": torch.empty(programs, plan.regions, region_size, dtype=dtype, device=coords.device),
        "B": B,
        "scratch_size": plan.regions * region_size,
        "region_size": region_size,
    }
    constants = {
        "D": D,
        "ALIGN_CORNERS": network.align_corners,
        "EVEN": all(inputs % tiles.depth == 0 for inputs in plan.inputs),
        "ALIGNED": plan.aligned,
        "PRECISION": precision(dtype, arch),
        "BLOCK_P": tiles.rows,
        "BLOCK_O": tiles.cols,
        "BLOCK_I": tiles.depth,
        "ENCODED": encoded,
        "BLOCK_C": min(32, triton.next_power_of_2(arguments["C"])),
    }
    run(stack_kernel, (programs,), arguments, constants, tiles)
    return arguments["rgb_ptr"]
