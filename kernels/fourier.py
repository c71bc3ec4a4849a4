"""The encoding of coordinates, [sin(F c + φ); E(c)], in one pass, and the gradients of F, φ and c.

The sine is accurate to a few 1e-7 for arguments up to 1e4. In float32 a product of coordinate and frequency as large as
that has few correct digits after the point. Therefore both factors are split into halves of 12 bits, whose products are
exact, and each product is reduced by multiples of π before anything is added to it.

    N points   D coordinate dimensions, 2 or 3   C channels of each half
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import run
from .embedding import cells_around, corners
from .tiles import fourier_tiles

# π in three parts. The first two have few bits, so that their products with whole numbers below 2¹² are exact.
PI_1 = tl.constexpr(3.140625)
PI_2 = tl.constexpr(9.67502593994140625e-4)
PI_3 = tl.constexpr(1.509957990978376432e-7)
INVERSE_PI = tl.constexpr(0.31830988618379067)
HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def upper_half(x):
    """A float32 with only the 12 leading bits of its 24."""
    return (x.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def half_turns(x):
    """n and a rest in [-π/2, π/2] with x = nπ + rest and n whole."""
    n = tl.floor(x * INVERSE_PI + 0.5)
    return n, ((x - n * PI_1) - n * PI_2) - n * PI_3


@triton.jit
def sine(n, rest):
    """sin(nπ + rest) for whole n and any small rest."""
    more, r = half_turns(rest)
    n += more
    # Taylor's series to r¹¹ is off by 6e-8 at most on [-π/2, π/2].
    r2 = r * r
    p = -2.505210838544172e-8
    p = p * r2 + 2.755731922398589e-6
    p = p * r2 - 1.984126984126984e-4
    p = p * r2 + 8.333333333333333e-3
    p = p * r2 - 0.16666666666666666
    value = r + r * r2 * p
    odd = n - 2 * tl.floor(n * 0.5)
    return value * (1 - 2 * odd)


@triton.jit
def phase_of(coords_ptr, freq_ptr, offs_n, offs_c, mask_n, mask_c, D: tl.constexpr):
    """n and a rest with F c = nπ + rest: [N], [C] offsets -> two float32 [N, C]."""
    turns = tl.zeros([offs_n.shape[0], offs_c.shape[0]], tl.float32)
    rest = tl.zeros([offs_n.shape[0], offs_c.shape[0]], tl.float32)
    for d in tl.static_range(D):
        c = tl.load(coords_ptr + offs_n * D + d, mask=mask_n, other=0.0)
        f = tl.load(freq_ptr + offs_c * D + d, mask=mask_c, other=0.0).to(tl.float32)
        c_upper, f_upper = upper_half(c), upper_half(f)
        c_lower, f_lower = c - c_upper, f - f_upper
        n, reduced = half_turns(c_upper[:, None] * f_upper[None, :])
        turns += n
        rest += reduced + (c_upper[:, None] * f_lower[None, :] + c_lower[:, None] * f[None, :])
    return turns, rest


@triton.jit
def waves_at(coords_ptr, freq_ptr, phase_ptr, offs_n, offs_c, mask_n, mask_c, D: tl.constexpr):
    """sin(F c + φ): [N], [C] offsets -> float32 [N, C]."""
    turns, rest = phase_of(coords_ptr, freq_ptr, offs_n, offs_c, mask_n, mask_c, D)
    phase = tl.load(phase_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    return sine(turns, rest + phase[None, :])


@triton.jit
def table_at(table_coords_ptr, table_ptr, offs_n, offs_c, mask_n, mask_c, C, H, W, ALIGN_CORNERS: tl.constexpr):
    """The bilinear read of a table [H, W, C] at points: [N], [C] offsets -> float32 [N, C]."""
    mask = mask_n[:, None] & mask_c[None, :]
    left, right, top, bottom, share_x, share_y, _, _ = cells_around(
        table_coords_ptr, offs_n, mask_n, H, W, ALIGN_CORNERS
    )
    e00, e01, e10, e11 = corners(table_ptr + offs_c[None, :], left, right, top, bottom, C, W, mask)
    upper = e00 * (1 - share_x)[:, None] + e01 * share_x[:, None]
    lower = e10 * (1 - share_x)[:, None] + e11 * share_x[:, None]
    return upper * (1 - share_y)[:, None] + lower * share_y[:, None]


@triton.jit(do_not_specialize=["N"])
def fourier_fwd_kernel(
    coords_ptr,  # float32 [N, D]
    freq_ptr,  # [C, D]
    phase_ptr,  # [C]
    table_coords_ptr,  # float32 [N, 2] or None
    table_ptr,  # [H, W, C] or None
    out_ptr,  # [N, C], or [N, 2C] with a table
    N,
    C,
    H,
    W,
    out_stride,
    D: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of waves and, with a table, the same tile of its bilinear read."""
    tiles_c = tl.cdiv(C, BLOCK_C)
    offs_n = (tl.program_id(0) // tiles_c).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_c = (tl.program_id(0) % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_n, mask_c = offs_n < N, offs_c < C
    mask = mask_n[:, None] & mask_c[None, :]

    out_ptrs = out_ptr + offs_n[:, None] * out_stride + offs_c[None, :]
    waves = waves_at(coords_ptr, freq_ptr, phase_ptr, offs_n, offs_c, mask_n, mask_c, D)
    tl.store(out_ptrs, waves.to(out_ptr.dtype.element_ty), mask=mask)
    if table_ptr is not None:
        read = table_at(table_coords_ptr, table_ptr, offs_n, offs_c, mask_n, mask_c, C, H, W, ALIGN_CORNERS)
        tl.store(out_ptrs + C, read.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "points"])
def fourier_bwd_freq_kernel(
    dout_ptr,  # [N, ...], a row's first C elements
    coords_ptr,  # float32 [N, D]
    freq_ptr,  # [C, D]
    phase_ptr,  # [C]
    sums_ptr,  # float32 [splits, D + 1, C], the last of the D + 1 rows is that of the phase
    N,
    C,
    points,  # points of one split, a multiple of BLOCK_N
    dout_stride,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dF = Σ_n dout cos(F c + φ) c and dφ = Σ_n dout cos(F c + φ), over the points of one split."""
    split = tl.program_id(1)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    phase = tl.load(phase_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    first = split.to(tl.int64) * points
    sum_x = tl.zeros([BLOCK_C], tl.float32)
    sum_y = tl.zeros([BLOCK_C], tl.float32)
    sum_z = tl.zeros([BLOCK_C], tl.float32)
    sum_phase = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, points, BLOCK_N):
        offs_n = first + start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        turns, rest = phase_of(coords_ptr, freq_ptr, offs_n, offs_c, mask_n, mask_c, D)
        cosine = sine(turns, rest + phase[None, :] + HALF_PI)
        dout_ptrs = dout_ptr + offs_n[:, None] * dout_stride + offs_c[None, :]
        dout = tl.load(dout_ptrs, mask=mask_n[:, None] & mask_c[None, :], other=0.0).to(tl.float32)
        slope = dout * cosine
        x = tl.load(coords_ptr + offs_n * D, mask=mask_n, other=0.0)
        y = tl.load(coords_ptr + offs_n * D + 1, mask=mask_n, other=0.0)
        sum_x += tl.sum(slope * x[:, None], 0)
        sum_y += tl.sum(slope * y[:, None], 0)
        if D == 3:
            z = tl.load(coords_ptr + offs_n * D + 2, mask=mask_n, other=0.0)
            sum_z += tl.sum(slope * z[:, None], 0)
        sum_phase += tl.sum(slope, 0)
    sums = sums_ptr + split.to(tl.int64) * (D + 1) * C + offs_c
    tl.store(sums, sum_x, mask=mask_c)
    tl.store(sums + C, sum_y, mask=mask_c)
    if D == 3:
        tl.store(sums + 2 * C, sum_z, mask=mask_c)
    tl.store(sums + D * C, sum_phase, mask=mask_c)


@triton.jit(do_not_specialize=["N"])
def fourier_bwd_coords_kernel(
    dout_ptr,  # [N, ...], a row's first C elements
    coords_ptr,  # float32 [N, D]
    freq_ptr,  # [C, D]
    phase_ptr,  # [C]
    dcoords_ptr,  # float32 [N, D]
    N,
    C,
    dout_stride,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One dimension of dc = Σ_channels dout cos(F c + φ) F."""
    d = tl.program_id(1)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    acc = tl.zeros([BLOCK_N], tl.float32)
    for c in range(0, C, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask_c = offs_c < C
        turns, rest = phase_of(coords_ptr, freq_ptr, offs_n, offs_c, mask_n, mask_c, D)
        phase = tl.load(phase_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        cosine = sine(turns, rest + phase[None, :] + HALF_PI)
        dout_ptrs = dout_ptr + offs_n[:, None] * dout_stride + offs_c[None, :]
        dout = tl.load(dout_ptrs, mask=mask_n[:, None] & mask_c[None, :], other=0.0).to(tl.float32)
        f = tl.load(freq_ptr + offs_c * D + d, mask=mask_c, other=0.0).to(tl.float32)
        acc += tl.sum(dout * cosine * f[None, :], 1)
    tl.store(dcoords_ptr + offs_n * D + d, acc, mask=mask_n)


def fourier_fwd(
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    table_coords: Tensor | None = None,
    table: Tensor | None = None,
    *,
    align_corners: bool = True,
    dtype: torch.dtype,
) -> Tensor:
    """Waves and, with a table, its bilinear read.

    Args:
        coords: float32 [N, D].
        freq: F, radians per unit [C, D].
        phase: φ, radians [C].
        table_coords: where the table is read, x, y in [-1, 1], float32 [N, 2].
        table: E [H, W, C].
        align_corners: -1 and 1 are the centres of the outermost cells, else their outer edges.
        dtype: dtype of the result.

    Returns:
        [N, C], or [N, 2C] with a table.
    """
    (N, D), C = coords.shape, freq.shape[0]
    H, W = (1, 1) if table is None else table.shape[:2]
    out = torch.empty(N, C if table is None else 2 * C, dtype=dtype, device=coords.device)
    tiles = fourier_tiles(C)
    arguments = {
        "coords_ptr": coords,
        "freq_ptr": freq,
        "phase_ptr": phase,
        "table_coords_ptr": table_coords,
        "table_ptr": table,
        "out_ptr": out,
        "N": N,
        "C": C,
        "H": H,
        "W": W,
        "out_stride": out.stride(0),
    }
    constants = {"D": D, "ALIGN_CORNERS": align_corners, "BLOCK_N": tiles.rows, "BLOCK_C": tiles.cols}
    run(fourier_fwd_kernel, (triton.cdiv(N, tiles.rows) * triton.cdiv(C, tiles.cols),), arguments, constants, tiles)
    return out


def fourier_bwd_freq(dout: Tensor, coords: Tensor, freq: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of F and φ: dout [N, C], rows may be strided -> float32 [C, D] and [C]."""
    (N, D), C = coords.shape, freq.shape[0]
    tiles = fourier_tiles(C)
    points = triton.cdiv(min(max(1024, triton.cdiv(N, 1024)), max(N, 1)), tiles.rows) * tiles.rows
    splits = max(1, triton.cdiv(N, points))
    sums = torch.empty(splits, D + 1, C, dtype=torch.float32, device=coords.device)
    arguments = {
        "dout_ptr": dout,
        "coords_ptr": coords,
        "freq_ptr": freq,
        "phase_ptr": phase,
        "sums_ptr": sums,
        "N": N,
        "C": C,
        "points": points,
        "dout_stride": dout.stride(0),
    }
    constants = {"D": D, "BLOCK_N": tiles.rows, "BLOCK_C": tiles.cols}
    run(fourier_bwd_freq_kernel, (triton.cdiv(C, tiles.cols), splits), arguments, constants, tiles)
    total = sums.sum(0)  # [D + 1, C]
    return total[:D].mT.contiguous(), total[D].clone()


def fourier_bwd_coords(dout: Tensor, coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    """Gradient of the coordinates through the waves: dout [N, C] -> float32 [N, D]."""
    (N, D), C = coords.shape, freq.shape[0]
    tiles = fourier_tiles(C)
    points = tiles.rows if D == 2 else tiles.rows // 2  # for D = 3, 16 points spill on sm_100 with Triton 3.6
    dcoords = torch.empty(N, D, dtype=torch.float32, device=coords.device)
    arguments = {
        "dout_ptr": dout,
        "coords_ptr": coords,
        "freq_ptr": freq,
        "phase_ptr": phase,
        "dcoords_ptr": dcoords,
        "N": N,
        "C": C,
        "dout_stride": dout.stride(0),
    }
    constants = {"D": D, "BLOCK_N": points, "BLOCK_C": tiles.cols}
    run(fourier_bwd_coords_kernel, (triton.cdiv(N, points), D), arguments, constants, tiles)
    return dcoords
