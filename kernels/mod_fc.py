"""The per-pixel layer, forward: a matrix product with bias, activation, RGB tap and residual sum in one kernel.

    y[b,p,o] = act(Σ_i x[b,p,i] W'[b,o,i] + g β[o])        W' already modulated, demodulated and scaled by the gain g

At the end of a residual block the result is (y + around)/√2. The product accumulates in float32, and every output
element is written by one program.

Why lrelu is the only activation in this kernel: lrelu is positively homogeneous, g·lrelu(v) = lrelu(g·v) for g > 0, so
its gain is part of the small weights and biases instead of a pass over the pixels. Its derivative depends only on the
sign of v, which is the sign of y. So the backward pass needs nothing but y, which is kept anyway as the input of the
next layer; a residual block keeps one sign per element. A sine or a GELU has neither property: v would have to be kept,
too. Such an activation is a separate pass by PyTorch after a linear layer (`cips_fast.functional.mod_fc`).

    B images   P pixels   I in channels   O out channels
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autotune import product_tiles
from .chips import precision
from .device import architecture, dense_rows, run
from .formulas import INVERSE_SQRT_2 as INVERSE_SQRT_2_VALUE
from .formulas import LRELU_SLOPE
from .tiles import Tiles

SLOPE = tl.constexpr(LRELU_SLOPE)
INVERSE_SQRT_2 = tl.constexpr(INVERSE_SQRT_2_VALUE)


@triton.jit
def tile_of_program(rows, cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The program's sample, the indices of its tile of rows and of its tile of columns, and the number of samples.

    All tiles are on the grid's first axis, because the other axes end at 65,535. Neighbouring programs share a tile of
    rows: the first of them reads it from memory, the others from L2.
    """
    tiles_cols = tl.cdiv(cols, BLOCK_COLS)
    tiles = tl.cdiv(rows, BLOCK_ROWS) * tiles_cols
    b, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    return b.to(tl.int64), tile // tiles_cols, tile % tiles_cols, tl.num_programs(0) // tiles


@triton.jit
def colours(t_ptr, y, O, offs_o, mask_o):
    """y Tᵀ over some channels: T [3, O], y float32 [BLOCK_P, BLOCK_O] -> red, green and blue [BLOCK_P]."""
    t0 = tl.load(t_ptr + offs_o, mask=mask_o, other=0.0).to(tl.float32)
    t1 = tl.load(t_ptr + O + offs_o, mask=mask_o, other=0.0).to(tl.float32)
    t2 = tl.load(t_ptr + 2 * O + offs_o, mask=mask_o, other=0.0).to(tl.float32)
    return tl.sum(y * t0[None, :], 1), tl.sum(y * t1[None, :], 1), tl.sum(y * t2[None, :], 1)


@triton.jit(do_not_specialize=["P"])
def mod_fc_fwd_kernel(
    x_ptr,  # [B|1, P, I], last stride 1
    w_ptr,  # [B, O, I]
    bias_ptr,  # [O] or None
    around_ptr,  # [B, P, O], last stride 1, or None
    rgb_w_ptr,  # [B, 3, O] or None
    y_ptr,  # [B, P, O]
    signs_ptr,  # uint8, laid out as y, or None
    rgb_ptr,  # float32 [tiles of O, B, P, 3] or None
    P,
    I,
    O,
    x_stride_b,
    x_stride_p,
    around_stride_b,
    around_stride_p,
    y_stride_b,
    gain,
    LRELU: tl.constexpr,
    EVEN_I: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """y = act(x W'ᵀ + g β), or (act(...) + around)/√2, and with an RGB tap the tile's part of Σ_o y[p,o] T'[c,o]."""
    b, tile_p, tile_o, B = tile_of_program(P, O, BLOCK_P, BLOCK_O)
    offs_p = tile_p.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.arange(0, BLOCK_I)
    mask_p, mask_o = offs_p < P, offs_o < O

    x_ptrs = x_ptr + b * x_stride_b + offs_p[:, None] * x_stride_p + offs_i[None, :]
    w_ptrs = w_ptr + b * O * I + offs_o.to(tl.int64)[None, :] * I + offs_i[:, None]
    acc = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for i in range(0, I, BLOCK_I):
        mask_x, mask_w = mask_p[:, None], mask_o[None, :]
        if not EVEN_I:
            mask_x, mask_w = mask_x & (offs_i < I - i)[None, :], mask_w & (offs_i < I - i)[:, None]
        x = tl.load(x_ptrs, mask=mask_x, other=0.0)
        w = tl.load(w_ptrs, mask=mask_w, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_ptrs += BLOCK_I
        w_ptrs += BLOCK_I

    # The epilogue handles half of the tile at a time: the operands of a whole tile would spill.
    HALF: tl.constexpr = BLOCK_O // 2
    left, right = acc.reshape(BLOCK_P, 2, HALF).permute(0, 2, 1).split()
    red = tl.zeros([BLOCK_P], tl.float32)
    green = tl.zeros([BLOCK_P], tl.float32)
    blue = tl.zeros([BLOCK_P], tl.float32)
    for half in tl.static_range(2):
        y = left if half == 0 else right
        cols = tile_o * BLOCK_O + half * HALF + tl.arange(0, HALF)
        mask_cols = cols < O
        mask = mask_p[:, None] & mask_cols[None, :]
        if bias_ptr is not None:
            y += gain * tl.load(bias_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
        if LRELU:
            y = tl.where(y > 0, y, y * SLOPE)
        offs_y = b * y_stride_b + offs_p[:, None] * O + cols[None, :]
        if around_ptr is not None:
            if signs_ptr is not None:
                tl.store(signs_ptr + offs_y, (y > 0).to(tl.uint8), mask=mask)
            around_ptrs = around_ptr + b * around_stride_b + offs_p[:, None] * around_stride_p + cols[None, :]
            y = (y + tl.load(around_ptrs, mask=mask, other=0.0).to(tl.float32)) * INVERSE_SQRT_2
        tl.store(y_ptr + offs_y, y.to(y_ptr.dtype.element_ty), mask=mask)
        if rgb_w_ptr is not None:
            more_red, more_green, more_blue = colours(rgb_w_ptr + b * 3 * O, y, O, cols, mask_cols)
            red += more_red
            green += more_green
            blue += more_blue
    if rgb_w_ptr is not None:
        rgb_rows = rgb_ptr + ((tile_o * B + b) * P + offs_p) * 3
        tl.store(rgb_rows, red, mask=mask_p)
        tl.store(rgb_rows + 1, green, mask=mask_p)
        tl.store(rgb_rows + 2, blue, mask=mask_p)


def mod_fc_fwd(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    lrelu: bool,
    gain: float = 1.0,
    around: Tensor | None = None,
    rgb_w: Tensor | None = None,
    y: Tensor | None = None,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One layer for every pixel.

    Args:
        x: [B, P, I], or [1, P, I] if all images share it; it is not copied.
        w: modulated weights of x's dtype, including the gain [B, O, I].
        bias: [O], any dtype.
        lrelu: apply the activation; without it the layer is linear.
        gain: factor of the bias.
        around: if a residual block ends here, what is added to y: the block's input or its shortcut [B, P, O].
        rgb_w: modulated weights of an RGB tap on the result [B, 3, O].
        y: where to write the result, [B, P, O], pixels dense; by default new memory.
        signs: where to write, for the backward pass, which outputs were positive before `around` was added, uint8, with
            the strides of `y`.

    Returns:
        y [B, P, O] of x's dtype, and the tap's colours in parts to be summed, float32 [parts, B, P, 3].
    """
    (B, O, I), P = w.shape, x.shape[1]
    x, w = dense_rows(x), w.contiguous()
    around = None if around is None else dense_rows(around)

    def attempt(tiles: Tiles) -> tuple[Tensor, Tensor | None]:
        tiles_o = triton.cdiv(O, tiles.cols)
        out = x.new_empty(B, P, O) if y is None else y
        rgb = None if rgb_w is None else x.new_empty(tiles_o, B, P, 3, dtype=torch.float32)
        arguments = {
            "x_ptr": x,
            "w_ptr": w,
            "bias_ptr": None if bias is None else bias.contiguous(),
            "around_ptr": around,
            "rgb_w_ptr": None if rgb_w is None else rgb_w.contiguous(),
            "y_ptr": out,
            "signs_ptr": signs,
            "rgb_ptr": rgb,
            "P": P,
            "I": I,
            "O": O,
            "x_stride_b": x.stride(0) if x.shape[0] == B else 0,
            "x_stride_p": x.stride(1),
            "around_stride_b": 0 if around is None else around.stride(0),
            "around_stride_p": 0 if around is None else around.stride(1),
            "y_stride_b": out.stride(0),
            "gain": gain,
        }
        kind = precision(x.dtype, architecture(x.device))
        constants = {"LRELU": lrelu, "EVEN_I": I % tiles.depth == 0, "PRECISION": kind}
        blocks = {"BLOCK_P": tiles.rows, "BLOCK_O": tiles.cols, "BLOCK_I": tiles.depth}
        run(mod_fc_fwd_kernel, (B * triton.cdiv(P, tiles.rows) * tiles_o,), arguments, constants | blocks, tiles)
        return out, rgb

    op = "fwd"
    if around is not None:
        op += "_end"
    if rgb_w is not None:
        op += "_tap"
    return attempt(product_tiles(op, (P, O, I), B, x, attempt))
