"""The bilinear read of the embedding table: helpers for the forward kernels, and its gradients.

    E(c) = Σ_k weight_k(c) · table[cell_k(c)]        over the four cells around c

The gradient of the table uses no atomics. The four (cell, weight) pairs of every point are sorted by cell; then the
program of a cell sums the points of that cell in this order, so that two runs agree bit for bit for any points.

    N points   H, W cells   C channels
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import run
from .tiles import Tiles, embedding_tiles


@triton.jit
def cell_position(x, size, ALIGN_CORNERS: tl.constexpr):
    """Lower cell, upper cell, share of the upper cell, and cells per unit of x: x in [-1, 1].

    Beyond that range the border is read. With ALIGN_CORNERS -1 and 1 are the centres of the outermost cells, else their
    outer edges. If x is NaN, the cells are valid ones, and the share is NaN.
    """
    position = (x + 1) * 0.5 * (size - 1) if ALIGN_CORNERS else ((x + 1) * size - 1) * 0.5
    # Not tl.maximum: its result for NaN differs between a GPU and the interpreter, and the result becomes an address.
    clamped = tl.minimum(tl.where(position > 0, position, 0.0), (size - 1).to(tl.float32))
    low = tl.floor(clamped)
    lower = low.to(tl.int32)
    # On the border and beyond it the derivative is zero, as for `torch.nn.functional.grid_sample`.
    slope = tl.where((position > 0) & (position < size - 1), 0.5 * ((size - 1) if ALIGN_CORNERS else size), 0.0)
    share = tl.where(position == position, clamped - low, position)
    return lower, tl.minimum(lower + 1, size - 1), share, slope


@triton.jit
def cells_around(table_coords_ptr, offs_n, mask_n, H, W, ALIGN_CORNERS: tl.constexpr):
    """Columns left and right of points [N, 2], rows above and below, shares of right and below, cells per unit."""
    x = tl.load(table_coords_ptr + offs_n * 2, mask=mask_n, other=0.0)
    y = tl.load(table_coords_ptr + offs_n * 2 + 1, mask=mask_n, other=0.0)
    left, right, share_x, slope_x = cell_position(x, tl.full([], W, tl.int32), ALIGN_CORNERS)
    top, bottom, share_y, slope_y = cell_position(y, tl.full([], H, tl.int32), ALIGN_CORNERS)
    return left, right, top, bottom, share_x, share_y, slope_x, slope_y


@triton.jit
def corners(channels, left, right, top, bottom, C, W, mask):
    """The table's values in the four cells around every point: pointers [1, BLOCK_C] -> four [BLOCK_N, BLOCK_C]."""
    top, bottom = top.to(tl.int64) * W, bottom.to(tl.int64) * W
    e00 = tl.load(channels + ((top + left) * C)[:, None], mask=mask, other=0.0).to(tl.float32)
    e01 = tl.load(channels + ((top + right) * C)[:, None], mask=mask, other=0.0).to(tl.float32)
    e10 = tl.load(channels + ((bottom + left) * C)[:, None], mask=mask, other=0.0).to(tl.float32)
    e11 = tl.load(channels + ((bottom + right) * C)[:, None], mask=mask, other=0.0).to(tl.float32)
    return e00, e01, e10, e11


@triton.jit(do_not_specialize=["N"])
def embedding_cells_kernel(
    table_coords_ptr,  # float32 [N, 2]
    cells_ptr,  # int32 [N, 4]
    weights_ptr,  # float32 [N, 4]
    N,
    H,
    W,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The four cells around every point, y·W + x, and their weights."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    left, right, top, bottom, share_x, share_y, _, _ = cells_around(
        table_coords_ptr, offs_n, mask_n, H, W, ALIGN_CORNERS
    )
    cells, weights = cells_ptr + offs_n * 4, weights_ptr + offs_n * 4
    tl.store(cells, top * W + left, mask=mask_n)
    tl.store(cells + 1, top * W + right, mask=mask_n)
    tl.store(cells + 2, bottom * W + left, mask=mask_n)
    tl.store(cells + 3, bottom * W + right, mask=mask_n)
    tl.store(weights, (1 - share_y) * (1 - share_x), mask=mask_n)
    tl.store(weights + 1, (1 - share_y) * share_x, mask=mask_n)
    tl.store(weights + 2, share_y * (1 - share_x), mask=mask_n)
    tl.store(weights + 3, share_y * share_x, mask=mask_n)


@triton.jit
def embedding_bwd_table_kernel(
    dout_ptr,  # [N, ...], a row's last C elements
    order_ptr,  # int64 [4N], indices of the pairs, sorted by cell
    weights_ptr,  # float32 [4N], weights of the pairs in their original order
    starts_ptr,  # int64 [H·W + 1], where each cell's pairs start in `order`
    dtable_ptr,  # float32 [slices, H·W, C]
    C,
    dout_stride,
    ADD: tl.constexpr,  # add to what dtable holds
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dtable of one cell, from one slice of its points."""
    cell, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    offs_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    first, last = tl.load(starts_ptr + cell), tl.load(starts_ptr + cell + 1)
    if ADD and first == last:
        return
    length = (last - first + parts - 1) // parts
    begin = first + part * length
    end = tl.minimum(begin + length, last)
    acc = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(begin, end, BLOCK_N):
        offs = start + tl.arange(0, BLOCK_N)
        pair = tl.load(order_ptr + offs, mask=offs < end, other=0)
        weight = tl.load(weights_ptr + pair, mask=offs < end, other=0.0)
        # On the native grid three of a point's four weights are zero; their rows are not read.
        mask = (weight != 0)[:, None] & mask_c[None, :]
        dout = tl.load(dout_ptr + (pair // 4)[:, None] * dout_stride + offs_c[None, :], mask=mask, other=0.0)
        acc += weight[:, None] * dout.to(tl.float32)
    row = part.to(tl.int64) * tl.num_programs(0) + cell
    total = tl.sum(acc, 0)
    if ADD:
        total += tl.load(dtable_ptr + row * C + offs_c, mask=mask_c, other=0.0)
    tl.store(dtable_ptr + row * C + offs_c, total, mask=mask_c)


@triton.jit(do_not_specialize=["N"])
def embedding_bwd_coords_kernel(
    dout_ptr,  # [N, ...], a row's last C elements
    table_coords_ptr,  # float32 [N, 2]
    table_ptr,  # [H, W, C]
    dtable_coords_ptr,  # float32 [N, 2]
    N,
    C,
    H,
    W,
    dout_stride,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradient of the points where the table was read."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    left, right, top, bottom, share_x, share_y, slope_x, slope_y = cells_around(
        table_coords_ptr, offs_n, mask_n, H, W, ALIGN_CORNERS
    )
    across, down = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for c in range(0, C, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask = mask_n[:, None] & (offs_c < C)[None, :]
        dout = tl.load(dout_ptr + offs_n[:, None] * dout_stride + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        e00, e01, e10, e11 = corners(table_ptr + offs_c[None, :], left, right, top, bottom, C, W, mask)
        along_x = (e01 - e00) * (1 - share_y)[:, None] + (e11 - e10) * share_y[:, None]
        along_y = (e10 - e00) * (1 - share_x)[:, None] + (e11 - e01) * share_x[:, None]
        across += tl.sum(dout * along_x, 1)
        down += tl.sum(dout * along_y, 1)
    tl.store(dtable_coords_ptr + offs_n * 2, across * slope_x, mask=mask_n)
    tl.store(dtable_coords_ptr + offs_n * 2 + 1, down * slope_y, mask=mask_n)


def embedding_bwd_table(
    dout: Tensor, table_coords: Tensor, table_shape: torch.Size, *, align_corners: bool, into: Tensor | None = None
) -> Tensor:
    """Gradient of the embedding table.

    Args:
        dout: gradient of what was read [N, C], rows may be strided.
        table_coords: where the table was read, x, y in [-1, 1], float32 [N, 2].
        table_shape: (H, W, C).
        align_corners: as in the forward pass.
        into: what this function returned for other points; the gradient is added to it.

    Returns:
        float32 [H, W, C].
    """
    H, W, C = table_shape
    N = table_coords.shape[0]
    cells = torch.empty(N, 4, dtype=torch.int32, device=table_coords.device)
    weights = torch.empty(N, 4, dtype=torch.float32, device=table_coords.device)
    arguments = {"table_coords_ptr": table_coords, "cells_ptr": cells, "weights_ptr": weights, "N": N, "H": H, "W": W}
    tiles = Tiles(256, 1, 1, warps=4, stages=1)
    constants = {"ALIGN_CORNERS": align_corners, "BLOCK_N": tiles.rows}
    run(embedding_cells_kernel, (triton.cdiv(N, tiles.rows),), arguments, constants, tiles)

    sorted_cells, order = cells.flatten().sort(stable=True)
    starts = torch.searchsorted(sorted_cells, torch.arange(H * W + 1, dtype=torch.int32, device=table_coords.device))
    # With few cells and many points there is more than one program per cell.
    slices = max(1, min(64, triton.cdiv(4 * N, 64 * H * W)))
    tiles = embedding_tiles(C)
    add = into is not None and slices == 1
    dtable = into if add else torch.empty(slices, H * W, C, dtype=torch.float32, device=table_coords.device)
    arguments = {
        "dout_ptr": dout,
        "order_ptr": order,
        "weights_ptr": weights,
        "starts_ptr": starts,
        "dtable_ptr": dtable,
        "C": C,
        "dout_stride": dout.stride(0),
    }
    grid = (H * W, slices, triton.cdiv(C, tiles.cols))
    run(embedding_bwd_table_kernel, grid, arguments, {"ADD": add, "BLOCK_N": tiles.rows, "BLOCK_C": tiles.cols}, tiles)
    if add:
        return into
    total = dtable.sum(0).view(H, W, C) if slices > 1 else dtable.view(H, W, C)
    return total if into is None else into.add_(total)


def embedding_bwd_coords(dout: Tensor, table_coords: Tensor, table: Tensor, *, align_corners: bool) -> Tensor:
    """Gradient of the points: dout [N, C], table_coords float32 [N, 2], table [H, W, C] -> float32 [N, 2]."""
    (H, W, C), N = table.shape, table_coords.shape[0]
    tiles = Tiles(8, min(64, triton.next_power_of_2(C)), 1, warps=4, stages=1)
    dtable_coords = torch.empty(N, 2, dtype=torch.float32, device=table_coords.device)
    arguments = {
        "dout_ptr": dout,
        "table_coords_ptr": table_coords,
        "table_ptr": table,
        "dtable_coords_ptr": dtable_coords,
        "N": N,
        "C": C,
        "H": H,
        "W": W,
        "dout_stride": dout.stride(0),
    }
    constants = {"ALIGN_CORNERS": align_corners, "BLOCK_N": tiles.rows, "BLOCK_C": tiles.cols}
    run(embedding_bwd_coords_kernel, (triton.cdiv(N, tiles.rows),), arguments, constants, tiles)
    return dtable_coords
