"""The gradients of the per-pixel layer, in three kernels: through the activation, of the input, of the weights.

    y = lrelu(z),  z[b,p,o] = Σ_i x[b,p,i] W'[b,o,i] + g β[o]        the layer of mod_fc.py

Matrix products accumulate in float32. Every output element is written by one program, and sums over pixels are sums of
partial sums, so that two runs agree bit for bit.

    B images   P pixels   I in channels   O out channels   dz gradient of z
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autotune import product_tiles
from .chips import precision
from .device import architecture, dense_rows, run
from .mod_fc import INVERSE_SQRT_2, SLOPE, tile_of_program
from .tiles import Tiles, elementwise_tiles, pixel_splits


@triton.jit(do_not_specialize=["P"])
def mod_fc_act_bwd_kernel(
    dy_ptr,  # [B, P, O], last stride 1
    y_ptr,  # [B, P, O]
    dz_ptr,  # [B, P, O]
    sums_ptr,  # float32 [B, tiles of P, O]
    P,
    O,
    dy_stride_b,
    dy_stride_p,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """dz = dy · lrelu'(y), and the sums of dz over a tile of pixels."""
    b, tile_p, tile_o, _ = tile_of_program(P, O, BLOCK_P, BLOCK_O)
    offs_p = tile_p.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_o = offs_o < O
    mask = (offs_p < P)[:, None] & mask_o[None, :]
    own = (b * P + offs_p)[:, None] * O + offs_o[None, :]

    dy_ptrs = dy_ptr + b * dy_stride_b + offs_p[:, None] * dy_stride_p + offs_o[None, :]
    dz = tl.load(dy_ptrs, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + own, mask=mask, other=0.0)
    dz = tl.where(y > 0, dz, dz * SLOPE)
    tl.store(dz_ptr + own, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(sums_ptr + (b * tl.cdiv(P, BLOCK_P) + tile_p) * O + offs_o, tl.sum(dz, 0), mask=mask_o)


@triton.jit(do_not_specialize=["B", "P"])
def mod_fc_dgrad_kernel(
    dz_ptr,  # [B, P, O], last stride 1
    w_ptr,  # [B, O, I]
    around_ptr,  # [B|1, P, I] or None
    below_ptr,  # [B|1, P, I], positive where the layer below activated to something positive, or None
    drgb_ptr,  # float32 [B, P, 3] or None
    rgb_w_ptr,  # [B, 3, I] or None
    dx_ptr,  # [B|1, P, I]
    passed_ptr,  # [B|1, P, I] or None
    sums_ptr,  # float32 [B|1, tiles of P, I] or None
    B,
    P,
    I,
    O,
    dz_stride_b,
    dz_stride_p,
    below_stride_b,
    below_stride_p,
    dx_stride_b,
    SUM_B: tl.constexpr,  # all images share x: one product with K = B·O
    EVEN_O: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """dx = dz W' + around + drgb T'. With `below`, dx is multiplied by lrelu'(x), which gives the layer below its dz.

    `sums` are the sums of the result over a tile of pixels, for the bias of the layer below. If x = (y + x')/√2 is the
    output of a residual block, dx/√2 is stored to `passed` as the gradient of x', and times lrelu'(y) it is the dz of
    the layer below.
    """
    own_b, tile_p, tile_i, _ = tile_of_program(P, I, BLOCK_P, BLOCK_I)
    offs_p = tile_p.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_i = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
    offs_o = tl.arange(0, BLOCK_O)
    mask_p, mask_i = offs_p < P, offs_i < I

    dz_ptrs = dz_ptr + offs_p[:, None] * dz_stride_p + offs_o[None, :]
    w_ptrs = w_ptr + offs_o.to(tl.int64)[:, None] * I + offs_i[None, :]
    tiles_o = tl.cdiv(O, BLOCK_O)
    iterations = tiles_o
    if SUM_B:
        iterations = B * tiles_o
    acc = tl.zeros([BLOCK_P, BLOCK_I], tl.float32)
    for iteration in range(0, iterations):
        b, o = own_b, iteration * BLOCK_O
        if SUM_B:
            b, o = (iteration // tiles_o).to(tl.int64), iteration % tiles_o * BLOCK_O
        mask_dz, mask_w = mask_p[:, None], mask_i[None, :]
        if not EVEN_O:
            mask_dz, mask_w = mask_dz & (offs_o < O - o)[None, :], mask_w & (offs_o < O - o)[:, None]
        dz = tl.load(dz_ptrs + (b * dz_stride_b + o), mask=mask_dz, other=0.0)
        w = tl.load(w_ptrs + (b * O + o) * I, mask=mask_w, other=0.0)
        acc = tl.dot(dz, w, acc, input_precision=PRECISION)

    # The epilogue handles half of the tile at a time: the operands of a whole tile would spill.
    HALF: tl.constexpr = BLOCK_I // 2
    left, right = acc.reshape(BLOCK_P, 2, HALF).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        part = left if half == 0 else right
        cols = tile_i * BLOCK_I + half * HALF + tl.arange(0, HALF)
        mask_cols = cols < I
        if rgb_w_ptr is not None:
            for c in tl.static_range(3):
                drgb = tl.load(drgb_ptr + (own_b * P + offs_p) * 3 + c, mask=mask_p, other=0.0)
                t = tl.load(rgb_w_ptr + (own_b * 3 + c) * I + cols, mask=mask_cols, other=0.0).to(tl.float32)
                part += drgb[:, None] * t[None, :]
        mask = mask_p[:, None] & mask_cols[None, :]
        own = (own_b * P + offs_p)[:, None] * I + cols[None, :]
        if around_ptr is not None:
            part += tl.load(around_ptr + own, mask=mask, other=0.0).to(tl.float32)
        if passed_ptr is not None:
            part *= INVERSE_SQRT_2
            tl.store(passed_ptr + own, part.to(passed_ptr.dtype.element_ty), mask=mask)
        if below_ptr is not None:
            below_ptrs = below_ptr + own_b * below_stride_b + offs_p[:, None] * below_stride_p + cols[None, :]
            part = tl.where(tl.load(below_ptrs, mask=mask, other=0.0) > 0, part, part * SLOPE)
        dx_ptrs = dx_ptr + own_b * dx_stride_b + offs_p[:, None] * I + cols[None, :]
        tl.store(dx_ptrs, part.to(dx_ptr.dtype.element_ty), mask=mask)
        if sums_ptr is not None:
            tiles_p = tl.cdiv(P, BLOCK_P)
            tl.store(sums_ptr + (own_b * tiles_p + tile_p) * I + cols, tl.sum(part, 0), mask=mask_cols)


@triton.jit(do_not_specialize=["P", "pixels"])
def mod_fc_wgrad_kernel(
    dz_ptr,  # [B, P, O], last stride 1
    x_ptr,  # [B|1, P, I], last stride 1
    dw_ptr,  # float32 [B, splits, O, I]
    P,
    I,
    O,
    pixels,  # pixels of one split, a multiple of BLOCK_P
    dz_stride_b,
    dz_stride_p,
    x_stride_b,
    x_stride_p,
    ADD: tl.constexpr,  # add to what dw holds
    EVEN_P: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dW'[b,split] = dzᵀ x over the pixels of one split."""
    b, tile_o, tile_i, _ = tile_of_program(O, I, BLOCK_O, BLOCK_I)
    split = tl.program_id(1)
    offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
    mask_o, mask_i = offs_o < O, offs_i < I
    first = split.to(tl.int64) * pixels
    offs_p = first + tl.arange(0, BLOCK_P)

    dz_ptrs = dz_ptr + b * dz_stride_b + offs_p[:, None] * dz_stride_p + offs_o[None, :]
    x_ptrs = x_ptr + b * x_stride_b + offs_p[:, None] * x_stride_p + offs_i[None, :]
    # int64, because the product with a stride may exceed int32.
    advance = tl.full([], BLOCK_P, tl.int64)
    acc = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    for p in range(0, pixels, BLOCK_P):
        mask_dz, mask_x = mask_o[None, :], mask_i[None, :]
        if not EVEN_P:
            mask_p = (offs_p < P - p)[:, None]
            mask_dz, mask_x = mask_dz & mask_p, mask_x & mask_p
        dz = tl.load(dz_ptrs, mask=mask_dz, other=0.0)
        x = tl.load(x_ptrs, mask=mask_x, other=0.0)
        acc = tl.dot(tl.trans(dz), x, acc, input_precision=PRECISION)
        dz_ptrs += advance * dz_stride_p
        x_ptrs += advance * x_stride_p
    # Half of the tile at a time, as in `mod_fc_dgrad_kernel`.
    HALF: tl.constexpr = BLOCK_I // 2
    left, right = acc.reshape(BLOCK_O, 2, HALF).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        part = left if half == 0 else right
        cols = tile_i * BLOCK_I + half * HALF + tl.arange(0, HALF)
        dw_ptrs = dw_ptr + ((b * tl.num_programs(1) + split) * O + offs_o)[:, None] * I + cols[None, :]
        mask = mask_o[:, None] & (cols < I)[None, :]
        if ADD:
            part += tl.load(dw_ptrs, mask=mask, other=0.0)
        tl.store(dw_ptrs, part, mask=mask)


def mod_fc_act_bwd(dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient before the lrelu, and its sum over samples and pixels.

    Args:
        dy: gradient of y [B, P, O].
        y: the activated output [B, P, O].

    Returns:
        dz [B, P, O] of dy's dtype, and its sums, float32 [O].
    """
    B, P, O = dy.shape
    dy = dense_rows(dy)
    tiles = elementwise_tiles(O)
    tiles_p = triton.cdiv(P, tiles.rows)
    dz = dy.new_empty(B, P, O)
    sums = dy.new_empty(B, tiles_p, O, dtype=torch.float32)
    arguments = {
        "dy_ptr": dy,
        "y_ptr": y.contiguous(),
        "dz_ptr": dz,
        "sums_ptr": sums,
        "P": P,
        "O": O,
        "dy_stride_b": dy.stride(0),
        "dy_stride_p": dy.stride(1),
    }
    blocks = {"BLOCK_P": tiles.rows, "BLOCK_O": tiles.cols}
    run(mod_fc_act_bwd_kernel, (B * tiles_p * triton.cdiv(O, tiles.cols),), arguments, blocks, tiles)
    return dz, sums.sum((0, 1))


def mod_fc_dgrad(
    dz: Tensor,
    w: Tensor,
    *,
    shared: bool = False,
    around: Tensor | None = None,
    below: Tensor | None = None,
    drgb: Tensor | None = None,
    rgb_w: Tensor | None = None,
    want_sums: bool = False,
    dx: Tensor | None = None,
    passed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of a layer's input; with `below`, the gradient before the activation of the layer below.

    Args:
        dz: gradient before this layer's activation [B, P, O].
        w: modulated weights of dz's dtype [B, O, I].
        shared: x was [1, P, I], and so is its gradient: one product with K = B·O.
        around: gradient of x that does not come through this layer, to be added [B|1, P, I].
        below: a tensor that is positive where the output of the lrelu below was positive: x itself or, if x is the
            output of a residual block, the signs that `mod_fc_fwd` wrote [B|1, P, I].
        drgb, rgb_w: if x has an RGB tap, the gradient of its colours, float32 [B, P, 3], and its modulated weights
            [B, 3, I].
        want_sums: also sum the result over samples and pixels, for the bias of the layer below.
        dx: where to write the result, [B|1, P, I], pixels dense; by default new memory.
        passed: given if x = (y + x')/√2 is the output of a residual block: where to write the gradient of x', which
            equals that of y, dense [B|1, P, I].

    Returns:
        dx [B|1, P, I] of dz's dtype, and its sums in parts to be summed, float32 [parts, I].
    """
    (B, O, I), P = w.shape, dz.shape[1]
    if shared and rgb_w is not None:
        raise ValueError("rgb_w: got weights for an input that all images share, must be None there")
    outer = 1 if shared else B
    dz, w = dense_rows(dz), w.contiguous()
    below = None if below is None else dense_rows(below)

    def attempt(tiles: Tiles) -> tuple[Tensor, Tensor | None]:
        tiles_p = triton.cdiv(P, tiles.rows)
        out = dz.new_empty(outer, P, I) if dx is None else dx
        sums = dz.new_empty(outer * tiles_p, I, dtype=torch.float32) if want_sums else None
        arguments = {
            "dz_ptr": dz,
            "w_ptr": w,
            "around_ptr": None if around is None else around.contiguous(),
            "below_ptr": below,
            "drgb_ptr": None if drgb is None else drgb.contiguous(),
            "rgb_w_ptr": None if rgb_w is None else rgb_w.contiguous(),
            "dx_ptr": out,
            "passed_ptr": passed,
            "sums_ptr": sums,
            "B": B,
            "P": P,
            "I": I,
            "O": O,
            "dz_stride_b": dz.stride(0),
            "dz_stride_p": dz.stride(1),
            "below_stride_b": 0 if below is None or below.shape[0] == 1 else below.stride(0),
            "below_stride_p": 0 if below is None else below.stride(1),
            "dx_stride_b": out.stride(0),
        }
        constants = {"SUM_B": shared, "EVEN_O": O % tiles.depth == 0, "PRECISION": _precision(dz)}
        blocks = {"BLOCK_P": tiles.rows, "BLOCK_I": tiles.cols, "BLOCK_O": tiles.depth}
        grid = (outer * tiles_p * triton.cdiv(I, tiles.cols),)
        run(mod_fc_dgrad_kernel, grid, arguments, constants | blocks, tiles)
        return out, sums

    op = "dgrad_end" if passed is not None else "dgrad_tap" if rgb_w is not None else "dgrad"
    given = {"+sum": shared, "+res": around is not None, "+act": below is not None, "+rgb": rgb_w is not None}
    variant = "".join(name for name, holds in given.items() if holds)
    return attempt(product_tiles(op, (P, I, O), B, dz, attempt, variant))


def mod_fc_wgrad(dz: Tensor, x: Tensor, into: Tensor | None = None) -> Tensor:
    """Gradient of the modulated weights in parts, one for each range of pixels.

    Args:
        dz: gradient before the activation [B, P, O].
        x: the layer's input, of dz's dtype [B|1, P, I].
        into: what this function returned for other pixels; the gradient is added to it.

    Returns:
        Parts to be summed, float32 [B, splits, O, I].
    """
    (B, P, O), I = dz.shape, x.shape[2]
    dz, x = dense_rows(dz), dense_rows(x)

    def attempt(tiles: Tiles, into: Tensor | None = None) -> Tensor:
        products = triton.cdiv(O, tiles.rows) * triton.cdiv(I, tiles.cols)
        splits = pixel_splits(products * B, P, tiles.depth, architecture(x.device)) if into is None else into.shape[1]
        pixels = triton.cdiv(triton.cdiv(P, splits), tiles.depth) * tiles.depth
        if into is None:
            splits = max(1, triton.cdiv(P, pixels)) if pixels else 1
        dw = x.new_empty(B, splits, O, I, dtype=torch.float32) if into is None else into
        arguments = {
            "dz_ptr": dz,
            "x_ptr": x,
            "dw_ptr": dw,
            "P": P,
            "I": I,
            "O": O,
            "pixels": pixels,
            "dz_stride_b": dz.stride(0),
            "dz_stride_p": dz.stride(1),
            "x_stride_b": x.stride(0) if x.shape[0] == B else 0,
            "x_stride_p": x.stride(1),
        }
        constants = {"ADD": into is not None, "EVEN_P": splits * pixels == P, "PRECISION": _precision(x)}
        blocks = {"BLOCK_O": tiles.rows, "BLOCK_I": tiles.cols, "BLOCK_P": tiles.depth}
        run(mod_fc_wgrad_kernel, (B * products, splits), arguments, constants | blocks, tiles)
        return dw

    # The tiles are measured on new memory, because the gradient must be added to `into` only once.
    return attempt(product_tiles("wgrad", (O, I, P), B, x, attempt), into)


def _precision(t: Tensor) -> str:
    return precision(t.dtype, architecture(t.device))
