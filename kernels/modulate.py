"""Weights modulated by a style, and their gradients, each in one pass.

    v[b,o,i]  = W[o,i] s[b,i] / √I
    d[b,o]    = (Σ_i v[b,o,i]² + 1e-8)^-½, or 1 where weights are not demodulated
    W'[b,o,i] = g v[b,o,i] d[b,o]                                      g is the gain of the activation

A program holds whole rows of W, so that the sum over I needs no second pass.

    B images   I in channels   O out channels
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import dense_rows, run
from .formulas import DEMODULATION_EPS
from .tiles import row_tiles

EPS = tl.constexpr(DEMODULATION_EPS)


@triton.jit
def modulate_fwd_kernel(
    weight_ptr,  # [O, I]
    style_ptr,  # [B, I]
    w_ptr,  # [B, O, I]
    d_ptr,  # float32 [B, O]
    I,
    O,
    style_stride_b,
    w_stride_b,
    scale,  # 1/√I
    gain,
    DEMODULATE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,  # at least I
):
    """W' and d for BLOCK_O rows of one sample."""
    tiles_o = tl.cdiv(O, BLOCK_O)
    b = (tl.program_id(0) // tiles_o).to(tl.int64)
    offs_o = (tl.program_id(0) % tiles_o) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.arange(0, BLOCK_I)
    mask_o, mask_i = offs_o < O, offs_i < I
    mask = mask_o[:, None] & mask_i[None, :]
    rows = offs_o.to(tl.int64)[:, None] * I + offs_i[None, :]

    s = tl.load(style_ptr + b * style_stride_b + offs_i, mask=mask_i, other=0.0).to(tl.float32)
    v = tl.load(weight_ptr + rows, mask=mask, other=0.0).to(tl.float32) * s[None, :] * scale
    d = tl.full([BLOCK_O], 1.0, tl.float32)
    if DEMODULATE:
        squares = tl.sum(v * v, 1) + EPS
        # If the sum overflowed, d would be 0, and the weights would silently be wrong.
        d = tl.where(squares < float("inf"), 1.0 / tl.sqrt_rn(squares), float("nan"))
    tl.store(d_ptr + b * O + offs_o, d, mask=mask_o)
    tl.store(w_ptr + b * w_stride_b + rows, (v * (gain * d)[:, None]).to(w_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["B", "splits"])
def modulate_bwd_kernel(
    dw_ptr,  # gradient of W' in parts, [B, splits, O, I]; the kernel sums them
    weight_ptr,  # [O, I]
    style_ptr,  # [B, I]
    d_ptr,  # float32 [B, O]
    dweight_ptr,  # [O, I]
    dstyle_ptr,  # float32 [tiles of O, B, I]
    B,
    I,
    O,
    splits,
    style_stride_b,
    scale,  # 1/√I
    gain,
    DEMODULATE: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,  # at least I
):
    """dW of BLOCK_O rows, and their part of ds, for one sample after another.

    dv = g (d dW' - d³ v Σ_i v dW'),  dW = Σ_b dv s/√I,  ds = Σ_o dv W/√I
    """
    offs_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.arange(0, BLOCK_I)
    mask_o, mask_i = offs_o < O, offs_i < I
    mask = mask_o[:, None] & mask_i[None, :]
    rows = offs_o.to(tl.int64)[:, None] * I + offs_i[None, :]

    weight = tl.load(weight_ptr + rows, mask=mask, other=0.0).to(tl.float32) * scale
    dweight = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    for b in range(0, B):
        s = tl.load(style_ptr + tl.full([], b, tl.int64) * style_stride_b + offs_i, mask=mask_i, other=0.0).to(
            tl.float32
        )
        d = tl.load(d_ptr + b * O + offs_o, mask=mask_o, other=0.0)
        dw = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
        for split in range(0, splits):
            part = (tl.full([], b, tl.int64) * splits + split) * O * I
            dw += tl.load(dw_ptr + part + rows, mask=mask, other=0.0).to(tl.float32)
        dv = dw * d[:, None]
        if DEMODULATE:
            v = weight * s[None, :]
            dv -= v * (d * d * d * tl.sum(v * dw, 1))[:, None]
        dv *= gain
        dweight += dv * s[None, :]
        share = tl.program_id(0).to(tl.int64) * B + b
        tl.store(dstyle_ptr + share * I + offs_i, tl.sum(dv * weight, 0), mask=mask_i)
    tl.store(dweight_ptr + rows, (dweight * scale).to(dweight_ptr.dtype.element_ty), mask=mask)


def modulate_fwd(
    weight: Tensor, style: Tensor, *, demodulate: bool, gain: float, dtype: torch.dtype, w: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Modulated weights in the compute dtype, and the demodulation coefficients.

    Args:
        weight: raw weights [O, I].
        style: [B, I], rows may be strided.
        demodulate: normalise every output's weights to unit length.
        gain: g, the gain of the activation.
        dtype: dtype of the result.
        w: where to write the result, [B, O, I], every sample dense; by default new memory.

    Returns:
        W' [B, O, I] and d, float32 [B, O].
    """
    (O, I), B = weight.shape, style.shape[0]
    w = torch.empty(B, O, I, dtype=dtype, device=weight.device) if w is None else w
    style = dense_rows(style)
    d = torch.empty(B, O, dtype=torch.float32, device=weight.device)
    tiles = row_tiles(O, I)
    run(
        modulate_fwd_kernel,
        (B * triton.cdiv(O, tiles.rows),),
        {
            "weight_ptr": weight.contiguous(),
            "style_ptr": style,
            "w_ptr": w,
            "d_ptr": d,
            "I": I,
            "O": O,
            "style_stride_b": style.stride(0),
            "w_stride_b": w.stride(0),
            "scale": I**-0.5,
            "gain": gain,
        },
        {"DEMODULATE": demodulate, "BLOCK_O": tiles.rows, "BLOCK_I": tiles.cols},
        tiles,
    )
    return w, d


def modulate_bwd(
    dw: Tensor, weight: Tensor, style: Tensor, d: Tensor, *, demodulate: bool, gain: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the raw weights and of the styles.

    Args:
        dw: gradient of W' in parts to be summed, [B, splits, O, I].
        weight, style, demodulate, gain: as for `modulate_fwd`.
        d: what `modulate_fwd` returned, float32 [B, O].

    Returns:
        dW [O, I] and ds [B, I] in their arguments' dtypes.
    """
    (O, I), B = weight.shape, style.shape[0]
    style = dense_rows(style)
    tiles = row_tiles(O, I)
    tiles_o = triton.cdiv(O, tiles.rows)
    dweight = torch.empty(O, I, dtype=weight.dtype, device=weight.device)
    shares = torch.empty(tiles_o, B, I, dtype=torch.float32, device=weight.device)
    run(
        modulate_bwd_kernel,
        (tiles_o,),
        {
            "dw_ptr": dw.contiguous(),
            "weight_ptr": weight.contiguous(),
            "style_ptr": style,
            "d_ptr": d.contiguous(),
            "dweight_ptr": dweight,
            "dstyle_ptr": shares,
            "B": B,
            "I": I,
            "O": O,
            "splits": dw.shape[1],
            "style_stride_b": style.stride(0),
            "scale": I**-0.5,
            "gain": gain,
        },
        {"DEMODULATE": demodulate, "BLOCK_O": tiles.rows, "BLOCK_I": tiles.cols},
        tiles,
    )
    return dweight, shares.sum(0).to(style.dtype)
