"""Independent work on a CPU, one piece a thread.

PyTorch's threads share every operation: they meet at its end, and one that waits does nothing. With a piece of work
each, one thread multiplies matrices while another one computes sines.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

LEAST = 64  # pixels; from 16 on, a row of a float32 product was seen to be the same beside any number of others
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    """Yield a function's results for all pieces, in their order, computed by as many threads as PyTorch is set to use.

    Operations on a piece use one thread each, more where there are more threads than pieces. Workers record nothing for
    autograd and do not autocast; a single piece, or a single thread, is left to the caller and its context. An error in
    one piece is raised here.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(pieces)) if _threads_can_differ() else 1
    if workers <= 1:
        yield from map(function, pieces)
        return
    inference, ready = torch.is_inference_mode_enabled(), threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first question makes PyTorch set the thread up, which would undo what comes next
        torch.set_num_threads(threads // workers)
        ready.wait()

    def work(piece: Piece) -> Result:
        with torch.inference_mode() if inference else torch.no_grad():
            return function(piece)

    with ThreadPoolExecutor(workers, "cips_fast", begin) as pool:
        running = deque(pool.submit(work, piece) for piece in pieces)
        ready.wait()
        torch.set_num_threads(threads)  # what a worker sets for itself is also what threads started later begin with
        while running:
            yield running.popleft().result()


@lru_cache
def _threads_can_differ() -> bool:
    """Whether PyTorch counts threads for each of its callers."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


def slices(count: int, step: int) -> list[slice]:
    """`count` pixels in pieces of at most `step`; none is below `LEAST` if there are so many and step is twice that.

    Of few pixels a product may sum in another order: then their last bits would depend on where an image is cut.
    """
    ends, end = [], step
    while end < count:  # and not a range, which would tie a compiled graph to the one count
        ends.append(end)
        end += step
    if count:
        ends.append(count)
    if len(ends) > 1 and count - ends[-2] < LEAST <= step // 2:
        ends[-2] = count - LEAST
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
