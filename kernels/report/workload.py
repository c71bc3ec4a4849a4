"""The launches that the report and the tests analyse: those of a generator at 256², recorded without memory or GPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ..device import Call, standing_in
from ..formulas import LRELU_GAIN
from ..network import Network, tapped_layers
from .compile import recipe, target

PIXELS = 256 * 256
BATCHES = (1, 4, 16)
LAYERS = ((1024, 512), (512, 512), (512, 256), (256, 128), (128, 64))  # channels in and out
RGB = (512, 3)
# Dtypes other than bfloat16, with PyTorch's setting for float32 products: `high` is tf32, `highest` is full float32.
OTHER_DTYPES = ((torch.float16, "highest"), (torch.float32, "high"), (torch.float32, "highest"))


@dataclass
class Recorder:
    """A stand-in for a GPU of an architecture that only records the launches it receives."""

    architecture: str
    calls: list[Call] = field(default_factory=list)

    def execute(self, call: Call) -> None:
        self.calls.append(call)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


@contextmanager
def float32_products(setting: str) -> Iterator[None]:
    """Change PyTorch's setting for products of float32 matrices until the context ends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run_layer(batch: int, inputs: int, outputs: int, dtype: torch.dtype, *, neighbours: bool = True) -> None:
    """Forward and backward of one layer; with `neighbours` also fused with other layers' work, and added to sums."""
    from .. import mod_fc, mod_fc_bwd, modulate

    is_rgb = outputs == 3
    weight, style, bias = meta(outputs, inputs), meta(batch, inputs), meta(outputs)
    w, d = modulate.modulate_fwd(weight, style, demodulate=not is_rgb, gain=LRELU_GAIN, dtype=dtype)
    x, y = meta(batch, PIXELS, inputs, dtype=dtype), meta(batch, PIXELS, outputs, dtype=dtype)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=not is_rgb, gain=LRELU_GAIN)
    dz, _ = mod_fc_bwd.mod_fc_act_bwd(y, y)
    mod_fc_bwd.mod_fc_dgrad(dz, w)
    if (inputs, outputs) == LAYERS[0]:  # images share coordinates
        mod_fc_bwd.mod_fc_dgrad(dz, w, shared=True)
    dw = mod_fc_bwd.mod_fc_wgrad(dz, x)
    if neighbours:
        mod_fc_bwd.mod_fc_wgrad(dz, x, dw)
        mod_fc_bwd.mod_fc_dgrad(dz, w, below=x, want_sums=True)
    if neighbours and not is_rgb:
        tap_above, tap_below = meta(batch, 3, outputs, dtype=dtype), meta(batch, 3, inputs, dtype=dtype)
        mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=LRELU_GAIN, rgb_w=tap_above)
        mod_fc_bwd.mod_fc_dgrad(dz, w, below=x, drgb=meta(batch, PIXELS, 3), rgb_w=tap_below, want_sums=True)
    modulate.modulate_bwd(dw, weight, style, d, demodulate=not is_rgb, gain=LRELU_GAIN)


def run_block(batch: int, dtype: torch.dtype) -> None:
    """The last layer of a residual block: for inference, and for training within a network and at its end."""
    from .. import mod_fc, mod_fc_bwd

    w, bias, tap = meta(batch, 512, 512, dtype=dtype), meta(512), meta(batch, 3, 512, dtype=dtype)
    x, colours = meta(batch, PIXELS, 512, dtype=dtype), meta(batch, PIXELS, 3, dtype=dtype)
    signs = meta(batch, PIXELS, 512, dtype=torch.uint8)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=LRELU_GAIN, around=x)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=LRELU_GAIN, around=x, signs=signs)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=LRELU_GAIN, around=x, signs=signs, rgb_w=tap)
    mod_fc_bwd.mod_fc_dgrad(colours, tap, below=signs, passed=torch.empty_like(x), want_sums=True)
    mod_fc_bwd.mod_fc_dgrad(x, w, around=x, below=signs, passed=torch.empty_like(x), want_sums=True)
    mod_fc_bwd.mod_fc_dgrad(x, w, around=x, below=x, want_sums=True)


def run_pixel_styles(anchors: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """A layer with pixel styles, or a tap with 3 outputs."""
    from ..mod_fc_mixed import mod_fc_mixed

    tensors = (meta(1, PIXELS, inputs, dtype=dtype), meta(outputs, inputs), meta(anchors, inputs), meta(outputs))
    is_rgb = outputs == 3
    mod_fc_mixed(*tensors, meta(1, PIXELS, anchors), demodulate=not is_rgb, lrelu=not is_rgb, gain=LRELU_GAIN)


def run_encoding(dtype: torch.dtype) -> None:
    """Forward and backward of the encoding, for coordinates of two and of three dimensions."""
    from .. import embedding, fourier

    C = 512
    for dims in (2, 3):
        coords, table_coords = meta(PIXELS, dims), meta(PIXELS, 2)
        freq, phase, table = meta(C, dims), meta(C), meta(256, 256, C)
        dout = fourier.fourier_fwd(coords, freq, phase, table_coords, table, dtype=dtype)
        fourier.fourier_bwd_freq(dout[:, :C], coords, freq, phase)
        fourier.fourier_bwd_coords(dout[:, :C], coords, freq, phase)
    dtable = embedding.embedding_bwd_table(dout[:, C:], table_coords, table.shape, align_corners=True)
    embedding.embedding_bwd_table(dout[:, C:], table_coords, table.shape, align_corners=True, into=dtable)
    embedding.embedding_bwd_coords(dout[:, C:], table_coords, table, align_corners=True)


def paper_network(size: int, width: int = 512, *, residual: bool = False) -> Network:
    """The paper's network for one image: 1 + 2 (log2(size) - 1) layers of one width."""
    pairs = size.bit_length() - 2
    inputs = [2 * width] + [width] * (2 * pairs)
    taps = len(tapped_layers(len(inputs), residual))
    return Network(
        freq=meta(width, 2),
        phase=meta(width),
        table=meta(size, size, width),
        weights=[meta(width, i) for i in inputs],
        biases=[meta(width) for _ in inputs],
        styles=[meta(1, i) for i in inputs],
        tap_weights=[meta(3, width) for _ in range(taps)],
        tap_biases=[meta(3) for _ in range(taps)],
        tap_styles=[meta(1, width) for _ in range(taps)],
        residual=residual,
    )


def run_stack(dtype: torch.dtype, *, residual: bool = False) -> None:
    """A whole network in one launch."""
    from .. import stack

    stack.infer(paper_network(256, residual=residual), meta(1, PIXELS, 2), dtype=dtype)


def run_narrow_stacks(dtype: torch.dtype, architecture: str, widths: Sequence[int]) -> None:
    """Whole networks of these widths in one launch each, if the network fits on chip."""
    from .. import stack_narrow

    for network in (paper_network(256, width) for width in widths):
        if stack_narrow.serves(network, dtype, architecture):
            stack_narrow.infer(network, meta(1, PIXELS, 2), dtype=dtype)


@lru_cache
def production_calls(architecture: str) -> list[Call]:
    """One launch for each different compiled code, of all that `launches` returns for `BATCHES`."""
    return list({code(call, architecture): call for call in launches(architecture, BATCHES)}.values())


def launches(architecture: str, batches: Sequence[int]) -> list[Call]:
    """Launches for these numbers of images: every shape in bfloat16; other dtypes only 512 → 512 and one number."""
    middle = batches[len(batches) // 2]
    with standing_in(Recorder(architecture)) as recorder:
        for batch in batches:
            for inputs, outputs in (*LAYERS, RGB):
                run_layer(batch, inputs, outputs, torch.bfloat16)
        for dtype, setting in OTHER_DTYPES:
            with float32_products(setting):
                run_layer(middle, 512, 512, dtype, neighbours=False)
                run_pixel_styles(2, 512, 512, dtype)
                if dtype != torch.float16:  # float16 is left out: its code is that of bfloat16
                    run_stack(dtype)
                    run_narrow_stacks(dtype, architecture, widths=(128,))
        for anchors, inputs, outputs in ((2, *LAYERS[0]), (2, 512, 512), (3, 512, 512), (2, *RGB)):
            run_pixel_styles(anchors, inputs, outputs, torch.bfloat16)
        run_block(middle, torch.bfloat16)
        run_encoding(torch.bfloat16)
        run_stack(torch.bfloat16)
        run_stack(torch.bfloat16, residual=True)
        run_narrow_stacks(torch.bfloat16, architecture, widths=(128, 64, 32))
    return recorder.calls


def code(call: Call, architecture: str) -> tuple:
    """A key that launches have in common if they have the same compiled code."""
    made = recipe(call)
    attributes = made.attributes(target(architecture).backend)
    return call.kernel.fn.__name__, repr((made.signature, made.constants, attributes)), call.warps, call.stages
