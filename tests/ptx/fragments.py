"""Which lane and register holds which element of a matrix: the fragments of mma and wgmma.

Written once for all shapes and widths ("Matrix Fragments for mma.m16n8k8", "... mma.m16n8k16", "Register Fragments for
wgmma.mma_async.m64nNk16", "... m64nNk8"). With g = lane // 4, q = lane % 4 and p elements packed in a register:

    A [16, K]   register i, element h:  row g + 8 (i mod 2),   column q p + h + 4 p (i div 2)
    B [K, 8]    register i, element h:  row q p + h + 4 p i,   column g
    C [16, N]   register i:             row g + 8 (i/2 mod 2), column 2 q + i mod 2 + 8 (i div 4)

A wgmma's D [64, N] is four such C, one a warp, and so is its A where it comes from registers.
"""

from __future__ import annotations

from functools import cache

import numpy as np

WARP = 32
_LANE = np.arange(WARP)


def _cells(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Flat cell numbers of [registers, lanes, elements] -> for each cell, where the fragment's array holds it."""
    cells = (rows * shape[1] + columns).ravel()
    assert np.array_equal(np.sort(cells), np.arange(shape[0] * shape[1])), "a fragment covers each cell once"
    return np.argsort(cells)


def _grid(registers: int, packed: int) -> tuple[np.ndarray, ...]:
    """Indices i, g, q, h that broadcast to [registers, lanes, packed]."""
    i = np.arange(registers)[:, None, None]
    return i, (_LANE // 4)[:, None], (_LANE % 4)[:, None], np.arange(packed)


@cache
def cells_of_a(depth: int, packed: int) -> np.ndarray:
    """[16 * depth] places of A's elements in a warp's fragment."""
    i, g, q, h = _grid(depth // (2 * packed), packed)
    rows, columns = np.broadcast_arrays(g + 8 * (i % 2), q * packed + h + 4 * packed * (i // 2))
    return _cells(rows, columns, (16, depth))


@cache
def cells_of_b(depth: int, packed: int) -> np.ndarray:
    """[depth * 8] places of B's elements in a warp's fragment."""
    i, g, q, h = _grid(depth // (4 * packed), packed)
    rows, columns = np.broadcast_arrays(q * packed + h + 4 * packed * i, g)
    return _cells(rows, columns, (depth, 8))


@cache
def cells_of_c(width: int) -> np.ndarray:
    """[16 * width] places of C's or D's float32 elements in a warp's fragment."""
    i, g, q, _ = _grid(width // 2, 1)
    rows, columns = np.broadcast_arrays(g + 8 * (i // 2 % 2), 2 * q + i % 2 + 8 * (i // 4))
    return _cells(rows, columns, (16, width))


@cache
def places_of_c(width: int) -> np.ndarray:
    """The inverse of `cells_of_c`: for each place of the fragment, its cell."""
    return np.argsort(cells_of_c(width))


def assemble(fragment: np.ndarray, places: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[registers, warps * 32, elements] -> [warps, *shape] matrices."""
    registers, threads, packed = fragment.shape
    by_warp = fragment.reshape(registers, threads // WARP, WARP * packed).transpose(1, 0, 2)
    return by_warp.reshape(threads // WARP, -1)[:, places].reshape(-1, *shape)


def disassemble(matrices: np.ndarray) -> np.ndarray:
    """[warps, 16, N] matrices -> [registers, warps * 32], C's fragment."""
    warps, _, width = matrices.shape
    flat = matrices.reshape(warps, -1)[:, places_of_c(width)]
    return flat.reshape(warps, width // 2, WARP).transpose(1, 0, 2).reshape(width // 2, warps * WARP)
