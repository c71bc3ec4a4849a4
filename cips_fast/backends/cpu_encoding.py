"""Encodings of coordinates on a CPU, forward and backward: waves and a learned table, as `reference` has them.

B images   P pixels   n pixels of a tile   D coordinate dims   C channels of each half of the encoding
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference as ref
from ..kernels.network import Network


def encode(network: Network, coords: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """[sin(F c + φ); E(c)]: coords [B|1, n, D], at [B|1, n, 2] -> [B|1, n, 2C]."""
    x0 = coords.new_empty(*coords.shape[:2], 2 * network.freq.shape[0], dtype=dtype)
    encode_into(x0, coords, network.freq, network.phase, at, network.table, network.align_corners)
    return x0


def encode_into(
    out: Tensor,
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    at: Tensor | None,
    table: Tensor | None,
    align_corners: bool,
) -> None:
    """[sin(F c + φ); E(c)], or the first half alone: coords [..., n, D], at [..., n, 2], out [..., n, C|2C]."""
    C = freq.shape[0]
    out[..., :C] = phases(coords, freq, phase).sin_()
    if table is not None:
        out[..., C:] = read_table(table, at, align_corners, out.dtype)


def phases(coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    """F c + φ, float32: coords float32 [..., n, D], freq [C, D], phase [C] -> [..., n, C]."""
    across = freq.float().mT.contiguous()  # so few columns multiply faster where they lie apart
    rows = torch.addmm(phase.float(), coords.flatten(0, -2), across)
    return rows.view(*coords.shape[:-1], freq.shape[0])


def _weighted_rows(rows: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Σ_k weights_k rows[cells_k]: rows [N, C], cells and weights [..., P, 4] -> [..., P, C]."""
    read = F.embedding_bag(cells.flatten(0, -2), rows, per_sample_weights=weights.flatten(0, -2), mode="sum")
    return read.view(*cells.shape[:-1], rows.shape[1])


def read_table(table: Tensor, at: Tensor, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """`reference.embed_coords_ref` for a result that is rounded to `dtype`: table [H, W, C], at [..., P, 2]."""
    cells, weights = ref.bilinear_cells_ref(at, *table.shape[:2], align_corners)
    rows, nearest = table.flatten(0, 1), weights.max(-1, keepdim=True)
    on_cell = nearest.values >= 1 - torch.finfo(dtype).eps / 32  # the others are lost in rounding
    if on_cell.all():  # a native grid
        return rows.index_select(0, cells.gather(-1, nearest.indices).flatten()).view(*at.shape[:-1], rows.shape[1])
    # Here too, for a point's value must not depend on the points that are read beside it.
    weights = torch.where(on_cell, torch.zeros_like(weights).scatter_(-1, nearest.indices, 1), weights)
    if rows.dtype == weights.dtype:
        return _weighted_rows(rows, cells, weights)
    # A table of fewer bits: the sum has all of those of the coordinates.
    return sum(rows[cells[..., i]] * weights[..., i, None] for i in range(4))


def add_to_table(dtable: Tensor, dread: Tensor, at: Tensor, align_corners: bool) -> None:
    """Add the table's gradient in place: dtable [H, W, C], the gradient of what was read [..., P, C]."""
    height, width, C = dtable.shape
    cells, weights = (t.flatten(0, -2).unbind(1) for t in ref.bilinear_cells_ref(at, height, width, align_corners))
    rows, dread = dtable.view(-1, C), dread.flatten(0, -2)
    for cell, weight in zip(cells, weights, strict=True):
        if weight.any():  # on the cells themselves one of four is all there is
            rows.index_add_(0, cell, dread * weight[:, None])


def places_bwd(dread: Tensor, table: Tensor, at: Tensor, align_corners: bool) -> Tensor:
    """Gradient of where the table is read, from that of what was read [..., P, C]: [..., P, 2]; 0 beyond the border."""
    height, width, _ = table.shape
    cells, weights = ref.bilinear_cells_ref(at, height, width, align_corners)
    rows = table.flatten(0, 1)
    along = [(dread * rows[cell]).sum(-1) for cell in cells.unbind(-1)]  # left and right above, left and right below
    x1, y1 = weights[..., 1] + weights[..., 3], weights[..., 2] + weights[..., 3]
    dx = torch.lerp(along[1] - along[0], along[3] - along[2], y1)
    dy = torch.lerp(along[2] - along[0], along[3] - along[1], x1)
    sizes = at.new_tensor([width, height])
    scale, border = ((sizes - 1) / 2, torch.ones_like(sizes)) if align_corners else (sizes / 2, 1 - 1 / sizes)
    return torch.stack([dx, dy], -1) * scale * (at.abs() < border)
