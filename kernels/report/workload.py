"""Every launch that a generator at 256² makes, recorded on tensors without memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ..device import Call, standing_in
from ..network import Network
from .compile import recipe, target

PIXELS = 256 * 256
BATCHES = (1, 4, 16)
LAYERS = ((1024, 512), (512, 512), (512, 256), (256, 128), (128, 64))
RGB = (512, 3)
# Besides bfloat16; float32 as tf32, and all of it.
OTHERS = ((torch.float16, "highest"), (torch.float32, "high"), (torch.float32, "highest"))


@dataclass
class Recorder:
    """Stands in for a GPU of an architecture and only notes what it was given."""

    architecture: str
    calls: list[Call] = field(default_factory=list)

    def execute(self, call: Call) -> None:
        self.calls.append(call)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@contextmanager
def float32_products(setting: str) -> Iterator[None]:
    """PyTorch's own setting for products of float32 matrices, until the context ends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run_layer(batch: int, inputs: int, outputs: int, dtype: torch.dtype, *, neighbours: bool = True) -> None:
    """Forward and backward of one layer, alone and with the work of its neighbours and of earlier pixels."""
    from .. import mod_fc, mod_fc_bwd, modulate

    is_rgb = outputs == 3
    weight, style, bias = meta(outputs, inputs), meta(batch, inputs), meta(outputs)
    w, d = modulate.modulate_fwd(weight, style, demodulate=not is_rgb, gain=1.4, dtype=dtype)
    x, y = meta(batch, PIXELS, inputs, dtype=dtype), meta(batch, PIXELS, outputs, dtype=dtype)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=not is_rgb, gain=1.4)
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
        mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=1.4, rgb_w=tap_above)
        mod_fc_bwd.mod_fc_dgrad(dz, w, below=x, drgb=meta(batch, PIXELS, 3), rgb_w=tap_below, want_sums=True)
    modulate.modulate_bwd(dw, weight, style, d, demodulate=not is_rgb, gain=1.4)


def run_block(batch: int, dtype: torch.dtype) -> None:
    """The end of a residual block: rendering, and in training within a network and as its last one."""
    from .. import mod_fc, mod_fc_bwd

    w, bias, tap = meta(batch, 512, 512, dtype=dtype), meta(512), meta(batch, 3, 512, dtype=dtype)
    x, colours = meta(batch, PIXELS, 512, dtype=dtype), meta(batch, PIXELS, 3, dtype=dtype)
    signs = meta(batch, PIXELS, 512, dtype=torch.uint8)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=1.4, around=x)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=1.4, around=x, signs=signs)
    mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=1.4, around=x, signs=signs, rgb_w=tap)
    mod_fc_bwd.mod_fc_dgrad(colours, tap, below=signs, passed=torch.empty_like(x), want_sums=True)
    mod_fc_bwd.mod_fc_dgrad(x, w, around=x, below=signs, passed=torch.empty_like(x), want_sums=True)
    mod_fc_bwd.mod_fc_dgrad(x, w, around=x, below=x, want_sums=True)


def run_pixel_styles(anchors: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """A layer whose pixels have styles of their own, or a tap."""
    from ..mod_fc_mixed import mod_fc_mixed

    tensors = (meta(1, PIXELS, inputs, dtype=dtype), meta(outputs, inputs), meta(anchors, inputs), meta(outputs))
    is_rgb = outputs == 3
    mod_fc_mixed(*tensors, meta(1, PIXELS, anchors), demodulate=not is_rgb, lrelu=not is_rgb, gain=1.4)


def run_encoding(dtype: torch.dtype) -> None:
    """Forward and backward of the encoding, on the plane and in three dimensions."""
    from .. import embedding, fourier

    C = 512
    for dims in (2, 3):
        coords, at = meta(PIXELS, dims), meta(PIXELS, 2)
        freq, phase, table = meta(C, dims), meta(C), meta(256, 256, C)
        dout = fourier.fourier_fwd(coords, freq, phase, at, table, dtype=dtype)
        fourier.fourier_bwd_freq(dout[:, :C], coords, freq, phase)
        fourier.fourier_bwd_coords(dout[:, :C], coords, freq, phase)
    dtable = embedding.embedding_bwd_table(dout[:, C:], at, table.shape, align_corners=True)
    embedding.embedding_bwd_table(dout[:, C:], at, table.shape, align_corners=True, into=dtable)
    embedding.embedding_bwd_at(dout[:, C:], at, table, align_corners=True)


def paper_network(size: int, width: int = 512, *, residual: bool = False) -> Network:
    """One image's network: 1 + 2 (log2(size) - 1) layers of one width, every second one tapped unless `residual`."""
    blocks = size.bit_length() - 2
    inputs = [2 * width] + [width] * (2 * blocks)
    taps = 1 if residual else blocks
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

    stack.render(paper_network(256, residual=residual), meta(1, PIXELS, 2), dtype=dtype)


def run_narrow_stacks(dtype: torch.dtype, architecture: str, widths: Sequence[int]) -> None:
    """Whole networks of these widths in one launch, where that stays on chip."""
    from .. import stack_narrow

    for network in (paper_network(256, width) for width in widths):
        if stack_narrow.serves(network, dtype, architecture):
            stack_narrow.render(network, meta(1, PIXELS, 2), dtype=dtype)


@lru_cache
def production_calls(architecture: str) -> list[Call]:
    """One call of every different code: all shapes and batches in bfloat16, the widest layer in other dtypes too."""
    return list({code(call, architecture): call for call in launches(architecture, BATCHES)}.values())


def launches(architecture: str, batches: Sequence[int]) -> list[Call]:
    """Launches for numbers of images: every shape in bfloat16; in other dtypes 512 → 512, for the middle number."""
    middle = batches[len(batches) // 2]
    with standing_in(Recorder(architecture)) as recorder:
        for batch in batches:
            for inputs, outputs in (*LAYERS, RGB):
                run_layer(batch, inputs, outputs, torch.bfloat16)
        for dtype, setting in OTHERS:
            with float32_products(setting):
                run_layer(middle, 512, 512, dtype, neighbours=False)
                run_pixel_styles(2, 512, 512, dtype)
                if dtype != torch.float16:  # the code is that of bfloat16
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
    """What launches of the same compiled code have in common."""
    made = recipe(call)
    attributes = made.attributes(target(architecture).backend)
    return call.kernel.fn.__name__, repr((made.signature, made.constants, attributes)), call.warps, call.stages
