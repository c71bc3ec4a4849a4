"""Independent pieces of work on a CPU, one per thread.

Normally all of PyTorch's threads work on one operation and wait for each other at its end. If each thread has a piece
of work instead, one can multiply matrices while another one computes sines.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    """Yield a function's results for all pieces, in their order, computed by as many threads as PyTorch is set to use.

    An operation on a piece uses one thread, or more if there are more threads than pieces. In the worker threads
    autograd and autocast are off. If there is only one piece or one thread, the caller's thread does the work, in its
    own context. An error in a piece is raised here.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(pieces)) if _threads_can_differ() else 1
    if workers <= 1:
        yield from map(function, pieces)
        return
    inference, ready = torch.is_inference_mode_enabled(), threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first call initialises the thread; later that would undo the next line
        torch.set_num_threads(threads // workers)
        ready.wait()

    def work(piece: Piece) -> Result:
        with torch.inference_mode() if inference else torch.no_grad():
            return function(piece)

    with ThreadPoolExecutor(workers, "cips_fast", begin) as pool:
        running = deque(pool.submit(work, piece) for piece in pieces)
        ready.wait()
        torch.set_num_threads(threads)  # a worker's setting is also the initial value of threads that start later
        while running:
            yield running.popleft().result()


@lru_cache
def _threads_can_differ() -> bool:
    """Whether PyTorch's number of threads is a setting of each thread."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()
