"""What a device computes natively, tables of tiles, how work is split, and precision."""

from dataclasses import replace

import pytest
import torch

from cips_fast.backends.choice import resolve_backend
from cips_fast.hardware import native_half
from cips_fast.kernels import chips, tiles


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, None),
        ({}, None),
    ],
)
def test_a_processor_is_asked(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert native_half("cpu") == dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_is_asked(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert native_half("cuda:1") == dtype


def test_other_devices_compute_in_float32():
    assert native_half("mps") is None


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((65536, 512, 512), (128, 256, 64)),
        ((65536, 3, 512), (128, 16, 64)),  # colours
        ((65536, 512, 3), (128, 256, 16)),
        ((1, 1, 1), (16, 16, 16)),
        ((65536, 384, 512), (128, 128, 64)),  # three tiles of 128 waste nothing, two of 256 a quarter
        ((65536, 33, 100), (128, 64, 64)),
    ],
)
def test_tiles_are_no_larger_than_the_product_needs(shape, sizes):
    chosen = tiles.gemm_tiles("fwd", shape, torch.bfloat16, "sm_90")
    assert (chosen.rows, chosen.cols, chosen.depth) == sizes


@pytest.mark.parametrize(
    ("architecture", "like"),
    [("sm_89", "sm_86"), ("sm_121", "sm_120"), ("gfx950", "gfx942"), ("sm_75", "default"), ("gfx1100", "default")],
)
def test_every_architecture_has_tiles(architecture, like):
    shape = (65536, 512, 512)
    for op in tiles.OPERATIONS:
        for dtype in (torch.bfloat16, torch.float32):
            chosen = tiles.gemm_tiles(op, shape, dtype, architecture)
            assert chosen == tiles.gemm_tiles(op, shape, dtype, like)


@pytest.mark.parametrize("architecture", [name for name in chips.ARCHITECTURES if name != chips.INTERPRETER])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tables_and_candidates_fit_their_chips(architecture, dtype):
    for op in tiles.OPERATIONS:
        candidates = tiles.gemm_candidates(op, (65536, 512, 512), dtype, architecture)
        assert candidates[0] == tiles.gemm_tiles(op, (65536, 512, 512), dtype, architecture)
        assert 1 <= len(candidates) <= 8
        assert len(set(candidates)) == len(candidates)
        assert all(tiles.fits(one, dtype.itemsize, architecture) for one in candidates)


def test_what_does_not_fit_is_left_out():
    wide = tiles.Tiles(128, 256, 64, 8, 4)
    assert tiles.fits(wide, 2, "sm_90")  # 4 × 48 KiB of 227
    assert not tiles.fits(wide, 2, "sm_86")  # 3 × 48 KiB of 99
    assert not tiles.fits(tiles.Tiles(256, 256, 32, 8, 2), 2, "sm_90")  # 256 sums a thread
    assert wide not in tiles.gemm_candidates("fwd", (65536, 512, 512), torch.float16, "gfx942")


@pytest.mark.parametrize(
    ("programs", "pixels", "splits"), [(16, 65536, 6), (1024, 65536, 1), (1, 64, 1), (8, 0, 1), (1, 4096, 8)]
)
def test_sums_over_pixels_are_split_to_fill_the_chip(programs, pixels, splits):
    assert tiles.pixel_splits(programs, pixels, 64, "sm_80") == splits


@pytest.mark.parametrize(("setting", "wanted"), [("high", "tf32"), ("highest", "ieee")])
def test_float32_products_follow_pytorch(setting, wanted):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert chips.precision(torch.float32, "sm_90") == wanted
        assert chips.precision(torch.float32, "gfx942") == "ieee"
        assert chips.precision(torch.float16, "sm_90") == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_new_dtype_is_an_entry_and_a_table(monkeypatch):
    """The choice of the backend, the tables of tiles and the report all look there."""
    dtype, wanted = torch.float8_e4m3fn, tiles.Tiles(256, 256, 128, 8, 4)
    monkeypatch.setitem(chips.DTYPES, dtype, chips.Factors("fp8e4nv", "fp8"))
    table = tiles.TABLES["sm_90"]
    monkeypatch.setitem(tiles.TABLES, "sm_90", replace(table, products=table.products | {("fwd", "fp8"): wanted}))
    assert tiles.gemm_tiles("fwd", (512, 512, 512), dtype, "sm_90") == wanted
    assert tiles.gemm_tiles("fwd", (512, 512, 512), torch.bfloat16, "sm_90") != wanted
    assert chips.factor_kind(dtype, "gfx942") == "fp8"
    with pytest.raises(TypeError, match="takes bfloat16, float16, float32 or float8_e4m3fn"):
        resolve_backend("triton", torch.device("cuda"), torch.int8)
