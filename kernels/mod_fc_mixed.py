"""The per-pixel layer for pixel styles, forward: each pixel's style is a mix of the styles of a few anchors.

    y[b,p,o] = act(d[b,p,o] Σ_i (s[b,p,i] x[b,p,i]) W[o,i] + g β[o])     s = Σ_j α_j s_j     W scaled by g/√I
    d[b,p,o]⁻² = Σ_jk α_j α_k q_jk[o] + 1e-8                             q_jk[o] = Σ_i W[o,i]² s_j[i] s_k[i] / I

The kernel never computes the weights of a pixel. Instead it multiplies x by the pixel's style in registers, just before
the matrix product, and sums the norm that demodulation divides by over pairs of anchors in the epilogue. Everything but
the product is computed in float32. `cips_fast.pixel_styles` derives the formulas.

    B images   P pixels   J anchors   I in channels   O out channels
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from .autotune import product_tiles
from .chips import precision
from .device import architecture, dense_rows, run
from .mod_fc import SLOPE, tile_of_program
from .modulate import EPS
from .tiles import Tiles, triton_version

# On Hopper the products read the modulated pixels from registers. Triton before 3.8 overwrites these registers in the
# next iteration of the loop while up to three products still read them; the PTX ISA leaves the result undefined
# ("wgmma.wait_group").
REGISTERS_RACE = triton_version() < (3, 8)


@triton.jit(do_not_specialize=["P"])
def mod_fc_mixed_kernel(
    x_ptr,  # [B|1, P, I], last stride 1
    w_ptr,  # [O, I]
    styles_ptr,  # float32 [J, I]
    mix_ptr,  # float32 [B, P, J]
    norms_ptr,  # float32 [J·J, O] or None
    bias_ptr,  # [O] or None
    y_ptr,  # [B, P, O]
    P,
    I,
    O,
    x_stride_b,
    x_stride_p,
    gain,
    J: tl.constexpr,
    LRELU: tl.constexpr,
    EVEN_I: tl.constexpr,
    WAIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """y = act(d ⊙ (s ⊙ x) Wᵀ + g β)."""
    b, tile_p, tile_o, _ = tile_of_program(P, O, BLOCK_P, BLOCK_O)
    offs_p = tile_p.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.arange(0, BLOCK_I)
    mask_p, mask_o = offs_p < P, offs_o < O

    x_ptrs = x_ptr + b * x_stride_b + offs_p[:, None] * x_stride_p + offs_i[None, :]
    w_ptrs = w_ptr + offs_o.to(tl.int64)[None, :] * I + offs_i[:, None]
    mix_ptrs = mix_ptr + (b * P + offs_p) * J
    acc = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for i in range(0, I, BLOCK_I):
        mask_i = offs_i < I - i
        mask_x, mask_w = mask_p[:, None], mask_o[None, :]
        if not EVEN_I:
            mask_x, mask_w = mask_x & mask_i[None, :], mask_w & mask_i[:, None]
        x = tl.load(x_ptrs, mask=mask_x, other=0.0)
        w = tl.load(w_ptrs, mask=mask_w, other=0.0)
        style = tl.zeros([BLOCK_P, BLOCK_I], tl.float32)
        for j in tl.static_range(J):
            share = tl.load(mix_ptrs + j, mask=mask_p, other=0.0)
            anchor = tl.load(styles_ptr + j * I + i + offs_i, mask=mask_i, other=0.0)
            style += share[:, None] * anchor[None, :]
        modulated = (x.to(tl.float32) * style).to(x.dtype)
        acc = tl.dot(modulated, w, acc, input_precision=PRECISION)
        if WAIT:  # Triton waits for the products before anything reads their sum; ptxas removes the move
            acc = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [acc], tl.float32, is_pure=True, pack=1)
        x_ptrs += BLOCK_I
        w_ptrs += BLOCK_I

    # The epilogue handles half of the tile at a time: the operands of a whole tile would spill.
    HALF: tl.constexpr = BLOCK_O // 2
    left, right = acc.reshape(BLOCK_P, 2, HALF).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        y = left if half == 0 else right
        cols = tile_o * BLOCK_O + half * HALF + tl.arange(0, HALF)
        mask_cols = cols < O
        if norms_ptr is not None:
            squares = tl.zeros([BLOCK_P, HALF], tl.float32)
            for pair in range(0, J * J):
                first = tl.load(mix_ptrs + pair // J, mask=mask_p, other=0.0)
                second = tl.load(mix_ptrs + pair % J, mask=mask_p, other=0.0)
                norm = tl.load(norms_ptr + pair * O + cols, mask=mask_cols, other=0.0)
                squares += (first * second)[:, None] * norm[None, :]
            squares = tl.abs(squares) + EPS  # only rounding makes the sum negative
            # If the sum overflowed, the factor would be 0, and the colours would silently be wrong.
            y *= tl.where(squares < float("inf"), tl.rsqrt(squares), float("nan"))
        if bias_ptr is not None:
            y += gain * tl.load(bias_ptr + cols, mask=mask_cols, other=0.0).to(tl.float32)[None, :]
        if LRELU:
            y = tl.where(y > 0, y, y * SLOPE)
        y_ptrs = y_ptr + (b * P + offs_p[:, None]) * O + cols[None, :]
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask_p[:, None] & mask_cols[None, :])


def mod_fc_mixed(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    *,
    demodulate: bool,
    lrelu: bool,
    gain: float,
) -> Tensor:
    """One layer for every pixel, with a style for each pixel.

    Args:
        x: [B, P, I], or [1, P, I] if all images share it; it is not copied.
        weight: raw weights, any dtype [O, I].
        styles: the anchors' styles, any dtype [J, I].
        bias: [O], any dtype.
        mix: α, the weights of the anchors, any dtype [B, P, J].
        demodulate: normalise the weights of every output and pixel to unit length.
        lrelu: apply the activation; without it the layer is linear.
        gain: g, the gain of the activation.

    Returns:
        [B, P, O] of x's dtype.
    """
    (O, I), (B, P, J) = weight.shape, mix.shape
    x, styles, mix = dense_rows(x), styles.float().contiguous(), mix.float().contiguous()
    w = (weight.float() * (gain / math.sqrt(I))).to(x.dtype).contiguous()
    norms = pair_norms(weight.float(), styles) if demodulate else None

    def attempt(tiles: Tiles) -> Tensor:
        y = x.new_empty(B, P, O)
        arguments = {
            "x_ptr": x,
            "w_ptr": w,
            "styles_ptr": styles,
            "mix_ptr": mix,
            "norms_ptr": norms,
            "bias_ptr": None if bias is None else bias.contiguous(),
            "y_ptr": y,
            "P": P,
            "I": I,
            "O": O,
            "x_stride_b": x.stride(0) if x.shape[0] == B else 0,
            "x_stride_p": x.stride(1),
            "gain": gain,
        }
        arch = architecture(x.device)
        constants = {"J": J, "LRELU": lrelu, "EVEN_I": I % tiles.depth == 0, "PRECISION": precision(x.dtype, arch)}
        constants["WAIT"] = REGISTERS_RACE and arch == "sm_90"
        blocks = {"BLOCK_P": tiles.rows, "BLOCK_O": tiles.cols, "BLOCK_I": tiles.depth}
        grid = (B * triton.cdiv(P, tiles.rows) * triton.cdiv(O, tiles.cols),)
        run(mod_fc_mixed_kernel, grid, arguments, constants | blocks, tiles)
        return y

    return attempt(product_tiles("mixed", (P, O, I), B, x, attempt, f" {J}"))


def pair_norms(weight: Tensor, styles: Tensor) -> Tensor:
    """q for all pairs of anchors, [J·J, O]: weight [O, I], styles [J, I]."""
    pairs = (styles[:, None] * styles).flatten(0, 1)
    return (pairs @ weight.square().mT / weight.shape[1]).contiguous()
