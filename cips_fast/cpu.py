"""The CPU path: the gain and the bias inside the matrix product, the activation in place.

lrelu is positively homogeneous, √2·lrelu(W'x + β) = lrelu(√2·W'x + √2·β), so the gain is folded into the small weights
and biases instead of being a pass over the pixels. A layer is then one batched GEMM and one elementwise pass.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference as ref


def mod_fc_cpu(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None, demodulate: bool, activation: str
) -> Tensor:
    """`reference.mod_fc_ref` with the gain folded in: x [B|1, P, I] -> [B, P, O]."""
    gain = math.sqrt(2) if activation == "lrelu" else 1.0
    w = ref.modulate_ref(weight * gain, style, False) if not demodulate else ref.modulate_ref(weight, style) * gain
    x = x.expand(w.shape[0], -1, -1)
    y = torch.bmm(x, w.mT) if bias is None else torch.baddbmm(bias * gain, x, w.mT)
    # The product's own backward does not read its output, so the activation may overwrite it.
    return F.leaky_relu_(y, ref.LRELU_SLOPE) if activation == "lrelu" else ref.activate_ref(y, activation)


def embed_coords_cpu(coords: Tensor, table: Tensor, align_corners: bool) -> Tensor:
    """`reference.embed_coords_ref` as a weighted gather of rows: coords [..., P, 2], table [H, W, C] -> [..., P, C]."""
    cells, weights = ref.bilinear_cells_ref(coords, table.shape[0], table.shape[1], align_corners)
    rows = F.embedding_bag(
        cells.reshape(-1, 4), table.flatten(0, 1), per_sample_weights=weights.reshape(-1, 4), mode="sum"
    )
    return rows.view(*coords.shape[:-1], table.shape[2])


def read_table(table: Tensor, at: Tensor, align_corners: bool) -> Tensor:
    """`reference.embed_coords_ref` without gradients: table [H, W, C], at [..., P, 2] -> [..., P, C]."""
    cells, weights = ref.bilinear_cells_ref(at, *table.shape[:2], align_corners)
    rows = table.flatten(0, 1)
    if (weights[..., 0] == 1).all():  # every point reads one cell
        return rows.index_select(0, cells[..., 0].flatten()).view(*at.shape[:-1], table.shape[2])
    cells, weights = cells.flatten(0, -2), weights.flatten(0, -2)
    if rows.dtype == weights.dtype:
        read = F.embedding_bag(cells, rows, per_sample_weights=weights, mode="sum")
    else:  # a table of fewer bits: the sum has all of those of the coordinates
        read = sum(rows.index_select(0, cells[:, i]) * weights[:, i, None] for i in range(4))
    return read.view(*at.shape[:-1], table.shape[2])


def add_to_table(dtable: Tensor, dread: Tensor, at: Tensor, align_corners: bool) -> None:
    """Add the table's gradient in place: dtable [H, W, C], the gradient of what was read [..., P, C]."""
    height, width, C = dtable.shape
    cells, weights = (t.flatten(0, -2).unbind(1) for t in ref.bilinear_cells_ref(at, height, width, align_corners))
    rows, dread = dtable.view(-1, C), dread.flatten(0, -2)
    for cell, weight in zip(cells, weights, strict=True):
        if weight.any():  # on the cells themselves one of four is all there is
            rows.scatter_add_(0, cell[:, None].expand(-1, C), dread * weight[:, None])


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
