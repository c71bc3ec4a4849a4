"""Pieces of work in threads, and pixels in chunks."""

import threading

import pytest
import torch

from cips_fast.backends.chunks import chunks
from cips_fast.backends.threads import spread


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of(_):
    return threading.get_ident(), torch.get_num_threads()


def test_results_come_in_order():
    assert list(spread(lambda n: n * n, range(50))) == [n * n for n in range(50)]


@pytest.mark.parametrize(("pieces", "each"), [(2, 2), (3, 1), (9, 1)])
def test_pieces_share_the_threads(pieces, each):
    seen = list(spread(threads_of, range(pieces)))
    assert {threads for _, threads in seen} == {each}
    assert threading.get_ident() not in {ident for ident, _ in seen}


def test_one_piece_has_all_threads_and_stays_here():
    assert list(spread(threads_of, [0])) == [(threading.get_ident(), 4)]


def test_threads_are_as_before_for_callers_old_and_new():
    list(spread(threads_of, range(8)))
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [4, 4]


def test_nothing_is_recorded_or_rounded():
    weight = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        for y in spread(lambda _: weight @ weight, range(2)):
            assert not y.requires_grad
            assert y.dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_pieces_write_where_the_caller_may(mode):
    with mode():
        out = torch.empty(4)
        for _ in spread(lambda n: out[n].fill_(n), range(4)):
            pass
    assert out.tolist() == [0, 1, 2, 3]


def test_an_error_is_raised_and_ends_the_work():
    def fail_at_three(n):
        if n == 3:
            raise ZeroDivisionError
        return n

    results = spread(fail_at_three, range(8))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("count", "size"), [(0, 128), (1, 128), (128, 128), (129, 128), (500, 128), (1000, 300), (7, 3)]
)
def test_chunks_cover_all_and_are_neither_too_long_nor_too_short(count, size):
    lengths = [chunk.stop - chunk.start for chunk in chunks(count, size)]
    assert [index for chunk in chunks(count, size) for index in range(chunk.start, chunk.stop)] == list(range(count))
    assert all(length <= size for length in lengths)
    assert size < 128 or count < 64 or min(lengths) >= 64
