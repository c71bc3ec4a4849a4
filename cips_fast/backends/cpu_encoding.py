"""The encoding of coordinates on a CPU, forward and backward: waves and the embedding table, as in `reference`.

B images   P pixels   n pixels of a tile   D coordinate dims   C channels of each half of the encoding
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference as ref
from ..kernels.network import Network


def encode(network: Network, coords: Tensor, table_coords: Tensor, dtype: torch.dtype) -> Tensor:
    """[sin(F c + φ); E(c)]: coords [B|1, n, D], table_coords [B|1, n, 2] -> [B|1, n, 2C]."""
    x0 = coords.new_empty(*coords.shape[:2], 2 * network.freq.shape[0], dtype=dtype)
    encode_into(x0, coords, network.freq, network.phase, table_coords, network.table, network.align_corners)
    return x0


def encode_into(
    out: Tensor,
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    table_coords: Tensor | None,
    table: Tensor | None,
    align_corners: bool,
) -> None:
    """Write [sin(F c + φ); E(c)] to `out`, or without a table the first half alone.

    coords [..., n, D], table_coords [..., n, 2], out [..., n, C|2C].
    """
    C = freq.shape[0]
    out[..., :C] = phases(coords, freq, phase).sin_()
    if table is not None:
        out[..., C:] = read_table(table, table_coords, align_corners, out.dtype)


def phases(coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    """F c + φ, float32: coords float32 [..., n, D], freq [C, D], phase [C] -> [..., n, C]."""
    transposed = freq.float().mT.contiguous()  # with so few dimensions, the product is faster with dense rows of C
    rows = torch.addmm(phase.float(), coords.flatten(0, -2), transposed)
    return rows.view(*coords.shape[:-1], freq.shape[0])


def _weighted_rows(rows: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Σ_k weights_k rows[cells_k]: rows [N, C], cells and weights [..., P, 4] -> [..., P, C]."""
    read = F.embedding_bag(cells.flatten(0, -2), rows, per_sample_weights=weights.flatten(0, -2), mode="sum")
    return read.view(*cells.shape[:-1], rows.shape[1])


def read_table(table: Tensor, table_coords: Tensor, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """`reference.embed_coords_ref` for a result that is rounded to `dtype`.

    table [H, W, C], table_coords [..., P, 2] -> [..., P, C].
    """
    cells, weights = ref.bilinear_cells_ref(table_coords, *table.shape[:2], align_corners)
    rows, nearest = table.flatten(0, 1), weights.max(-1, keepdim=True)
    on_cell = nearest.values >= 1 - torch.finfo(dtype).eps / 32  # rounding removes the other cells' contribution
    if on_cell.all():  # a native grid
        read = rows.index_select(0, cells.gather(-1, nearest.indices).flatten())
        return read.view(*table_coords.shape[:-1], rows.shape[1])
    # Points on a cell read only that cell here, too: a point's value must not depend on the other points.
    weights = torch.where(on_cell, torch.zeros_like(weights).scatter_(-1, nearest.indices, 1), weights)
    if rows.dtype == weights.dtype:
        return _weighted_rows(rows, cells, weights)
    # The table has fewer bits than the coordinates: sum in the dtype of the coordinates.
    return sum(rows[cells[..., i]] * weights[..., i, None] for i in range(4))


def add_to_table(dtable: Tensor, dread: Tensor, table_coords: Tensor, align_corners: bool) -> None:
    """Add the table's gradient to `dtable` [H, W, C]; dread is the gradient of what was read [..., P, C]."""
    height, width, C = dtable.shape
    corners = ref.bilinear_cells_ref(table_coords, height, width, align_corners)
    cells, weights = (t.flatten(0, -2).unbind(1) for t in corners)
    rows, dread = dtable.view(-1, C), dread.flatten(0, -2)
    for cell, weight in zip(cells, weights, strict=True):
        if weight.any():  # on the native grid three of the four weights are zero everywhere
            rows.index_add_(0, cell, dread * weight[:, None])


def table_coords_bwd(dread: Tensor, table: Tensor, table_coords: Tensor, align_corners: bool) -> Tensor:
    """Gradient of where the table is read, 0 beyond the border: dread, of what was read, [..., P, C] -> [..., P, 2]."""
    height, width, _ = table.shape
    cells, weights = ref.bilinear_cells_ref(table_coords, height, width, align_corners)
    rows = table.flatten(0, 1)
    along = [
        (dread * rows[cell]).sum(-1) for cell in cells.unbind(-1)
    ]  # top left, top right, bottom left, bottom right
    x1, y1 = weights[..., 1] + weights[..., 3], weights[..., 2] + weights[..., 3]
    dx = torch.lerp(along[1] - along[0], along[3] - along[2], y1)
    dy = torch.lerp(along[2] - along[0], along[3] - along[1], x1)
    sizes = table_coords.new_tensor([width, height])
    scale, border = ((sizes - 1) / 2, torch.ones_like(sizes)) if align_corners else (sizes / 2, 1 - 1 / sizes)
    return torch.stack([dx, dy], -1) * scale * (table_coords.abs() < border)
