"""The cost of a launch, from its arguments alone: operations in products, and bytes by two rules.

    once        every element of an operand is read once, every result is written once: traffic to HBM with ideal caches
    requested   what the kernel's loads and stores ask for: every program that needs a tile asks for it

Lanes that are masked off ask for nothing. If several threads ask for one element in one load, it counts once. A load
that a loop repeats without a change counts once, because Triton moves it before the loop. Tests compare both rules with
executed code, argument by argument, and they agree to the byte.

The points decide how much of the embedding table is touched. Points on the meta device count as points of the native
grid, each in another cell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from ..device import Call
from ..stack_plan import AROUND, INPUTS, OUTPUTS


@dataclass(frozen=True)
class Bytes:
    """The bytes of one operand or result, by the two rules."""

    once: int
    requested: int


@dataclass(frozen=True)
class Cost:
    """The cost of one launch. Loads and stores are by the name of the kernel's argument."""

    flop: int  # in matrix products with channels; those of encoding, modulation and activation do not count
    loads: Mapping[str, Bytes]
    stores: Mapping[str, Bytes]

    @property
    def once(self) -> int:
        """Bytes read and written, every element once."""
        return sum(b.once for b in (*self.loads.values(), *self.stores.values()))

    @property
    def requested(self) -> int:
        """Bytes that loads and stores ask for."""
        return sum(b.requested for b in (*self.loads.values(), *self.stores.values()))


@dataclass(frozen=True)
class Elements:
    """Elements that a kernel's loads and stores ask for, by argument. Arguments that are None do not count."""

    loads: Mapping[str, int]
    stores: Mapping[str, int]
    flop: int = 0
    touched: Mapping[str, int] = field(default_factory=dict)  # distinct elements, for arguments not touched in full


def cost(call: Call) -> Cost:
    """Operations and bytes of a launch; its tensors may be on the meta device.

    Raises:
        KeyError: the kernel is not in KERNELS.
    """
    asked = KERNELS[call.kernel.fn.__name__](call)

    def moved(elements: Mapping[str, int]) -> dict[str, Bytes]:
        tensors = {name: call.arguments[name] for name in elements if call.arguments[name] is not None}
        return {
            name: Bytes(asked.touched.get(name, distinct(t)) * t.element_size(), elements[name] * t.element_size())
            for name, t in tensors.items()
        }

    return Cost(asked.flop, moved(asked.loads), moved(asked.stores))


def distinct(t: Tensor) -> int:
    """The number of elements that a tensor has in memory; expanded dimensions count once."""
    return prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride or n == 0)


def _tiles(call: Call, dimension: str) -> int:
    """The number of tiles along a dimension, whose size is the launch's constant BLOCK_<dimension>."""
    return -(-call.arguments[dimension] // call.constants[f"BLOCK_{dimension}"])


def _mod_fc_fwd(call: Call) -> Elements:
    (B, O, I), P = call.arguments["w_ptr"].shape, call.arguments["P"]
    tiles_p, tiles_o = _tiles(call, "P"), _tiles(call, "O")
    loads = {
        "x_ptr": tiles_o * B * P * I,
        "w_ptr": tiles_p * B * O * I,
        "bias_ptr": tiles_p * B * O,
        "around_ptr": B * P * O,
        "rgb_w_ptr": tiles_p * B * O * 3,
    }
    flop = 2 * B * P * O * (I + 3 * (call.arguments["rgb_w_ptr"] is not None))
    stores = {"y_ptr": B * P * O, "signs_ptr": B * P * O, "rgb_ptr": tiles_o * B * P * 3}
    return Elements(loads, stores, flop)


def _mod_fc_mixed(call: Call) -> Elements:
    (O, I), P, (J, _) = call.arguments["w_ptr"].shape, call.arguments["P"], call.arguments["styles_ptr"].shape
    B = call.arguments["y_ptr"].shape[0]
    tiles_p, tiles_o = _tiles(call, "P"), _tiles(call, "O")
    # A pixel's shares are read once for its style, and two of them for each pair, in each half of the tile.
    shares = J + 4 * J * J * (call.arguments["norms_ptr"] is not None)
    loads = {
        "x_ptr": tiles_o * B * P * I,
        "w_ptr": tiles_p * B * O * I,
        "styles_ptr": tiles_p * tiles_o * B * J * I,
        "mix_ptr": tiles_o * B * P * shares,
        "norms_ptr": tiles_p * B * J * J * O,
        "bias_ptr": tiles_p * B * O,
    }
    return Elements(loads, {"y_ptr": B * P * O}, 2 * B * P * O * I)


def _mod_fc_act_bwd(call: Call) -> Elements:
    B, P, O = call.arguments["dy_ptr"].shape
    return Elements(
        {"dy_ptr": B * P * O, "y_ptr": B * P * O}, {"dz_ptr": B * P * O, "sums_ptr": _tiles(call, "P") * B * O}
    )


def _mod_fc_dgrad(call: Call) -> Elements:
    (B, O, I), P = call.arguments["w_ptr"].shape, call.arguments["P"]
    outer = call.arguments["dx_ptr"].shape[0]  # 1 if all images share x, else B
    tiles_p, tiles_i = _tiles(call, "P"), _tiles(call, "I")
    loads = {
        "dz_ptr": tiles_i * B * P * O,
        "w_ptr": tiles_p * B * O * I,
        "around_ptr": outer * P * I,
        "below_ptr": outer * P * I,
        "drgb_ptr": 2 * tiles_i * outer * P * 3,  # once for each half of the tile
        "rgb_w_ptr": tiles_p * outer * 3 * I,
    }
    flop = 2 * B * P * I * (O + 3 * (call.arguments["rgb_w_ptr"] is not None))
    stores = {"dx_ptr": outer * P * I, "passed_ptr": outer * P * I, "sums_ptr": tiles_p * outer * I}
    return Elements(loads, stores, flop)


def _mod_fc_wgrad(call: Call) -> Elements:
    B, splits, O, I = call.arguments["dw_ptr"].shape
    P = call.arguments["P"]
    parts = {"dw_ptr": B * splits * O * I}
    loads = {"dz_ptr": _tiles(call, "I") * B * P * O, "x_ptr": _tiles(call, "O") * B * P * I}
    return Elements(loads | (parts if call.constants["ADD"] else {}), parts, flop=2 * B * P * I * O)


def _modulate_fwd(call: Call) -> Elements:
    B, O, I = call.arguments["w_ptr"].shape
    return Elements(
        {"weight_ptr": B * O * I, "style_ptr": _tiles(call, "O") * B * I}, {"w_ptr": B * O * I, "d_ptr": B * O}
    )


def _modulate_bwd(call: Call) -> Elements:
    B, splits, O, I = call.arguments["dw_ptr"].shape
    tiles_o = _tiles(call, "O")
    loads = {"dw_ptr": B * splits * O * I, "weight_ptr": O * I, "style_ptr": tiles_o * B * I, "d_ptr": B * O}
    return Elements(loads, {"dweight_ptr": O * I, "dstyle_ptr": tiles_o * B * I})


def _fourier_fwd(call: Call) -> Elements:
    (N, D), C = call.arguments["coords_ptr"].shape, call.arguments["C"]
    tiles_n, tiles_c = _tiles(call, "N"), _tiles(call, "C")
    loads = {
        "coords_ptr": tiles_c * N * D,
        "freq_ptr": tiles_n * C * D,
        "phase_ptr": tiles_n * C,
        "table_coords_ptr": tiles_c * N * 2,
        "table_ptr": 4 * N * C,
    }
    return Elements(loads, {"out_ptr": call.arguments["out_ptr"].numel()}, touched=_table_around(call))


def _fourier_bwd_freq(call: Call) -> Elements:
    (N, D), C = call.arguments["coords_ptr"].shape, call.arguments["C"]
    splits = call.grid[1]
    loads = {
        "dout_ptr": N * C,
        "coords_ptr": _tiles(call, "C") * N * D,
        "freq_ptr": splits * C * D,
        "phase_ptr": splits * C,
    }
    return Elements(loads, {"sums_ptr": splits * (D + 1) * C})


def _fourier_bwd_coords(call: Call) -> Elements:
    (N, D), C = call.arguments["coords_ptr"].shape, call.arguments["C"]
    programs = D * _tiles(call, "N")
    loads = {
        "dout_ptr": D * N * C,
        "coords_ptr": D * N * D,
        "freq_ptr": programs * C * (D + 1),  # all of it for F c, and the program's own dimension again
        "phase_ptr": programs * C,
    }
    return Elements(loads, {"dcoords_ptr": N * D})


def _embedding_cells(call: Call) -> Elements:
    N = call.arguments["N"]
    return Elements({"table_coords_ptr": 2 * N}, {"cells_ptr": 4 * N, "weights_ptr": 4 * N})


def _embedding_bwd_table(call: Call) -> Elements:
    """The gradients for pairs whose weight is zero, three of four on the native grid, are not read."""
    weights, starts, C = call.arguments["weights_ptr"], call.arguments["starts_ptr"], call.arguments["C"]
    pairs, (cells, slices, tiles_c) = weights.numel(), call.grid
    loads = {
        "order_ptr": tiles_c * pairs,
        "weights_ptr": tiles_c * pairs,
        "starts_ptr": 2 * cells * slices * tiles_c,
        "dout_ptr": C * (pairs // 4 if weights.is_meta else int(weights.count_nonzero())),
    }
    if not call.constants["ADD"]:
        return Elements(loads, {"dtable_ptr": slices * cells * C})
    occupied = min(cells, pairs // 4) if starts.is_meta else int(starts.diff().count_nonzero())
    changed = {"dtable_ptr": occupied * C}
    return Elements(loads | changed, changed, touched=changed)


def _embedding_bwd_coords(call: Call) -> Elements:
    N, C = call.arguments["N"], call.arguments["C"]
    loads = {"table_coords_ptr": 2 * N, "dout_ptr": N * C, "table_ptr": 4 * N * C}
    return Elements(loads, {"dtable_coords_ptr": 2 * N}, touched=_table_around(call))


def _table_around(call: Call) -> dict[str, int]:
    """How many elements of the table are read: those of the cells around the points."""
    table_coords, H, W = call.arguments["table_coords_ptr"], call.arguments["H"], call.arguments["W"]
    if table_coords is None or table_coords.is_meta:
        return {"table_ptr": 0 if table_coords is None else min(H * W, table_coords.numel() // 2) * call.arguments["C"]}
    aligned = call.constants["ALIGN_CORNERS"]
    xs, ys = (
        _neighbouring_cells(u, n, aligned) for u, n in zip(table_coords.reshape(-1, 2).unbind(1), (W, H), strict=True)
    )
    return {"table_ptr": torch.cat([y * W + x for x in xs for y in ys]).unique().numel() * call.arguments["C"]}


def _neighbouring_cells(u: Tensor, size: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """The cells before and after coordinates in [-1, 1], as the kernels compute them."""
    position = (u + 1) * 0.5 * (size - 1) if aligned else ((u + 1) * size - 1) * 0.5
    low = position.clamp(0, size - 1).floor().long()
    return low, (low + 1).clamp(max=size - 1)


def _stack(call: Call) -> Elements:
    """A tile of BLOCK_P pixels moves through the scratch memory in full, even if not all of the pixels exist.

    The list of entries does not count, nor what tiles ask for beyond a layer's channels.
    """
    a, constants = call.arguments, call.constants
    B, P, C, D, rows = a["B"], a["P"], a["C"], constants["D"], constants["BLOCK_P"]
    tiles, parts = B * _tiles(call, "P"), rows // constants["ENCODED"]
    products = _entries(call)
    encoded, again = products[0], parts - 1  # the first layer's parameters are read again for every further part
    reads = sum(-(-s.outputs // constants["BLOCK_O"]) * s.inputs + s.added * s.outputs for s in products)
    loads = {
        "coords_ptr": _tiles(call, "C") * B * P * D,
        "table_coords_ptr": _tiles(call, "C") * B * P * 2,
        "freq_ptr": tiles * parts * C * D,
        "phase_ptr": tiles * parts * C,
        "table_ptr": 4 * B * P * C,
        "w_ptr": tiles * (a["w_ptr"].shape[1] + again * encoded.inputs * encoded.outputs),
        "bias_ptr": tiles * (a["bias_ptr"].numel() + again * encoded.outputs),
        "scratch_ptr": tiles * rows * reads,
    }
    writes = encoded.inputs + sum(s.outputs for s in products)
    stores = {"scratch_ptr": tiles * rows * writes, "rgb_ptr": B * P * 3}
    return Elements(loads, stores, 2 * B * P * a["w_ptr"].shape[1], _table_around(call))


def _stack_narrow(call: Call) -> Elements:
    """Every program reads all parameters once. The list of entries does not count."""
    a, D = call.arguments, call.constants["D"]
    (B, P, _), C, (programs,) = a["rgb_ptr"].shape, a["C"], call.grid
    loads = {
        "coords_ptr": B * P * D,
        "table_coords_ptr": B * P * 2,
        "freq_ptr": programs * C * D,
        "phase_ptr": programs * C,
        "table_ptr": 4 * B * P * C,
        "w_ptr": programs * a["w_ptr"].shape[1],
        "bias_ptr": programs * a["bias_ptr"].numel(),
    }
    return Elements(loads, {"rgb_ptr": B * P * 3}, 2 * B * P * a["w_ptr"].shape[1], _table_around(call))


@dataclass(frozen=True)
class StackProduct:
    """One product of the stack kernel."""

    inputs: int
    outputs: int
    added: bool  # whether it is added to a block's input


def _entries(call: Call) -> list[StackProduct]:
    """The products of the stack kernel. On the meta device the entries cannot be read: all layers count as equal."""
    fields, a = call.arguments["entries_ptr"], call.arguments
    if not fields.is_meta:
        return [StackProduct(row[INPUTS.value], row[OUTPUTS.value], row[AROUND.value] >= 0) for row in fields.tolist()]
    count, C = fields.shape[0], a["C"]
    width = (a["bias_ptr"].numel() - 3) // count
    taps = (a["w_ptr"].shape[1] - width * (2 * C + (count - 1) * width)) // (3 * width)
    residual = taps < count // 2
    return [StackProduct(width if i else 2 * C, width, residual and i > 0 and i % 2 == 0) for i in range(count)]


KERNELS: dict[str, Callable[[Call], Elements]] = {
    "mod_fc_fwd_kernel": _mod_fc_fwd,
    "mod_fc_mixed_kernel": _mod_fc_mixed,
    "mod_fc_act_bwd_kernel": _mod_fc_act_bwd,
    "mod_fc_dgrad_kernel": _mod_fc_dgrad,
    "mod_fc_wgrad_kernel": _mod_fc_wgrad,
    "modulate_fwd_kernel": _modulate_fwd,
    "modulate_bwd_kernel": _modulate_bwd,
    "fourier_fwd_kernel": _fourier_fwd,
    "fourier_bwd_freq_kernel": _fourier_bwd_freq,
    "fourier_bwd_coords_kernel": _fourier_bwd_coords,
    "embedding_cells_kernel": _embedding_cells,
    "embedding_bwd_table_kernel": _embedding_bwd_table,
    "embedding_bwd_coords_kernel": _embedding_bwd_coords,
    "stack_kernel": _stack,
    "stack_narrow_kernel": _stack_narrow,
}
