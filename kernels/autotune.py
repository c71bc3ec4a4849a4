"""Tiles and ways measured on the GPU at hand: the table's and a few more, once for every kind of work, kept on disk.

CIPS_FAST_AUTOTUNE=0 turns it off; so does `torch.use_deterministic_algorithms`, since tiles decide the order of sums.
Importing this module needs neither Triton nor a GPU.
"""

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .cache import cache_folder
from .chips import precision
from .device import Refused, architecture, is_gpu, on_trial
from .tiles import Tiles, gemm_candidates

Candidate = TypeVar("Candidate", Tiles, str)
# GPUs and keys of which this process found no candidate that is clean; it does not try them again.
_all_refused: set[tuple[str, str]] = set()


def product_tiles(
    op: str,
    shape: tuple[int, int, int],
    batch: int,
    sample: Tensor,
    attempt: Callable[[Tiles], object],
    variant: str = "",
) -> Tiles:
    """The tiles for a product: measured where the sample lies on a GPU and tuning is on, the table's elsewhere.

    Args:
        op: one of `launch.OPERATIONS`.
        shape: rows, cols and summed length of one product.
        batch: how many products.
        sample: an operand; its dtype and device count.
        attempt: computes the product with given tiles.
        variant: what else makes products of one shape differ in time.
    """
    arch = architecture(sample.device)
    candidates = gemm_candidates(op, shape, sample.dtype, arch)
    if len(candidates) == 1 or 0 in (batch, *shape) or not _enabled(sample):
        return candidates[0]
    key = _key(f"{op}{variant}", (batch, *shape), sample)
    return _measured(key, candidates, attempt, f"tiles for {key}", sample)


def measured_way(
    name: str, sizes: tuple[int, ...], ways: list[str], attempt: Callable[[str], object], sample: Tensor
) -> str:
    """One of several ways to compute the same: the fastest where tuning is on, else the first.

    Args:
        name: what is computed.
        sizes: how much of it.
        ways: their names.
        attempt: computes it the named way.
        sample: its dtype and device count.
    """
    if 0 in sizes or not _enabled(sample):
        return ways[0]
    key = _key(name, sizes, sample)
    return _measured(key, ways, attempt, f"ways to {key}", sample)


def _key(name: str, sizes: tuple[int, ...], sample: Tensor) -> str:
    # Sizes are rounded up, so that a render's last, smaller chunk is not measured anew.
    rounded = "x".join(str(1 << (n - 1).bit_length()) for n in sizes)
    kind = precision(sample.dtype, architecture(sample.device))
    return f"{name} {rounded} {str(sample.dtype).removeprefix('torch.')} {kind}"


def _measured(
    key: str, candidates: list[Candidate], attempt: Callable[[Candidate], object], title: str, sample: Tensor
) -> Candidate:
    gpu = torch.cuda.get_device_name(sample.device)
    known = _known(gpu)
    if (gpu, key) in _all_refused:
        return candidates[0]
    if known.get(key) not in candidates:  # not measured, or by a version with other tables
        with torch.cuda.device(sample.device):
            # What a captured graph runs is not run while it is captured.
            if torch.cuda.is_current_stream_capturing():
                return candidates[0]
            chosen = fastest(candidates, attempt, f"cips_fast: {title}")
        if chosen is None:
            _all_refused.add((gpu, key))
            return candidates[0]
        _remember(gpu, key, chosen)
    return known[key]


def fastest(
    candidates: list[Candidate],
    attempt: Callable[[Candidate], object],
    title: str,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> Candidate | None:
    """The candidate whose attempt takes the least time; None if the GPU, its memory or the compiler refuse them all.

    Tiles whose kernel takes stack are refused without a measurement. A way to compute something is not: it runs many
    kernels, and its time tells what their stack costs.
    """
    times: dict[Candidate, float] = {}
    for candidate in _with_a_bar(candidates, title):
        with contextlib.suppress(Refused, torch.OutOfMemoryError):
            with on_trial(stack=not isinstance(candidate, Tiles)):
                attempt(candidate)
            times[candidate] = (measure or _milliseconds)(lambda candidate=candidate: attempt(candidate))
    return min(times, key=times.__getitem__) if times else None


def _with_a_bar(candidates: list[Candidate], title: str) -> Iterable[Candidate]:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # a machine that only runs kernels
        return candidates
    return tqdm(candidates, desc=title, unit="try", leave=False)


def _milliseconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=10, rep=50, return_mode="median")


def _enabled(sample: Tensor) -> bool:
    return (
        is_gpu(sample.device)
        and os.environ.get("CIPS_FAST_AUTOTUNE", "1") != "0"
        and not torch.are_deterministic_algorithms_enabled()
    )


def _file(gpu: str) -> Path:
    import triton

    return cache_folder() / "tiles" / f"{gpu.replace(' ', '_').replace('/', '_')}-triton-{triton.__version__}.json"


@lru_cache
def _known(gpu: str) -> dict[str, Tiles | str]:
    """What this process and those before it measured; it reads the disk once."""
    return _read(gpu)


def _read(gpu: str) -> dict[str, Tiles | str]:
    """What lies on disk; a file that cannot be read counts as none."""
    try:
        entries = json.loads(_file(gpu).read_text()).items()
        return {key: entry if isinstance(entry, str) else Tiles(**entry) for key, entry in entries}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(gpu: str, key: str, chosen: Tiles | str) -> None:
    _known(gpu)[key] = chosen
    try:
        path = _file(gpu)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Other processes measure other products at the same time.
        everything = _read(gpu) | _known(gpu)
        entries = {key: entry if isinstance(entry, str) else asdict(entry) for key, entry in everything.items()}
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_text(json.dumps(entries, indent=1))
        temporary.replace(path)  # never half a file, even if several processes write
    except OSError as error:
        warnings.warn(f"tiles are not kept for the next run: {error}", stacklevel=2)
