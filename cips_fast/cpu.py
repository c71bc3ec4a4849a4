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
