"""Which tiles and which method of inference are fastest on this GPU: measured once per kind of work, kept on disk.

The candidates are the table's tiles (tiles.py) and a few more. The environment variable CIPS_FAST_AUTOTUNE=0 turns the
measurements off. So does `torch.use_deterministic_algorithms`, because tiles decide the order of sums. Importing this
module needs neither Triton nor a GPU.
"""

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .cache import cache_folder
from .chips import precision
from .device import Refused, architecture, is_gpu, on_trial
from .tiles import Tiles, gemm_candidates

Candidate = TypeVar("Candidate", Tiles, str)
# The fastest candidates by GPU and key, from this process and from the file that earlier processes wrote.
_known: dict[str, dict[str, Tiles | str]] = {}
# GPUs and keys for which every candidate was refused in this process; they are not tried again.
_all_refused: set[tuple[str, str]] = set()


def product_tiles(
    op: str,
    shape: tuple[int, int, int],
    batch: int,
    sample: Tensor,
    attempt: Callable[[Tiles], object],
    variant: str = "",
) -> Tiles:
    """The tiles for a product: the fastest ones if the sample is on a GPU and tuning is on, else the table's.

    Args:
        op: one of `tiles.OPERATIONS`.
        shape: rows, cols and summed length of one product.
        batch: number of products.
        sample: an operand; only its dtype and device are used.
        attempt: computes the product with given tiles.
        variant: name of what else makes products of one shape differ in time.
    """
    arch = architecture(sample.device)
    candidates = gemm_candidates(op, shape, sample.dtype, arch)
    if len(candidates) == 1 or 0 in (batch, *shape) or not _enabled(sample):
        return candidates[0]
    key = _key(f"{op}{variant}", (batch, *shape), sample)
    return _measured(key, candidates, attempt, f"tiles for {key}", sample)


def fastest_method(
    name: str, sizes: tuple[int, ...], methods: list[str], attempt: Callable[[str], object], sample: Tensor
) -> str:
    """One of several methods to compute the same thing: the fastest one if tuning is on, else the first one.

    Args:
        name: what is computed.
        sizes: the sizes of the problem.
        methods: names of the methods.
        attempt: computes it by the named method.
        sample: a tensor; only its dtype and device are used.
    """
    if 0 in sizes or not _enabled(sample):
        return methods[0]
    key = _key(name, sizes, sample)
    return _measured(key, methods, attempt, f"methods to {key}", sample)


def _key(name: str, sizes: tuple[int, ...], sample: Tensor) -> str:
    # Sizes are rounded up, so that the last, smaller chunk of an image has the key of the others.
    rounded = "x".join(str(1 << (n - 1).bit_length()) for n in sizes)
    kind = precision(sample.dtype, architecture(sample.device))
    return f"{name} {rounded} {str(sample.dtype).removeprefix('torch.')} {kind}"


def _measured(
    key: str, candidates: list[Candidate], attempt: Callable[[Candidate], object], title: str, sample: Tensor
) -> Candidate:
    gpu = torch.cuda.get_device_name(sample.device)
    known = _known_on(gpu)
    if (gpu, key) in _all_refused:
        return candidates[0]
    if known.get(key) not in candidates:  # not measured, or measured by a version with other tables
        with torch.cuda.device(sample.device):
            # While a graph is captured, its kernels do not run, so they cannot be measured.
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
    """The candidate whose attempt takes the least time; None if the GPU, its memory or the compiler refuses them all.

    Tiles whose kernel uses stack are refused without a measurement. A method is not refused for that: it runs many
    kernels, and its time includes what their stack costs.
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
    except ModuleNotFoundError:  # tqdm is optional where only kernels run
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


def _known_on(gpu: str) -> dict[str, Tiles | str]:
    """The fastest candidates on a GPU by key; the file is read once per process."""
    if gpu not in _known:
        _known[gpu] = _read(gpu)
    return _known[gpu]


def _read(gpu: str) -> dict[str, Tiles | str]:
    """The entries of a GPU's file; none if the file cannot be read."""
    try:
        entries = json.loads(_file(gpu).read_text()).items()
        return {key: entry if isinstance(entry, str) else Tiles(**entry) for key, entry in entries}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(gpu: str, key: str, chosen: Tiles | str) -> None:
    _known_on(gpu)[key] = chosen
    try:
        path = _file(gpu)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file is read again, because other processes may have added entries.
        everything = _read(gpu) | _known_on(gpu)
        entries = {key: entry if isinstance(entry, str) else asdict(entry) for key, entry in everything.items()}
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_text(json.dumps(entries, indent=1))
        temporary.replace(path)  # so that no process reads half a file
    except OSError as error:
        warnings.warn(f"tiles are not kept for the next run: {error}", stacklevel=2)
