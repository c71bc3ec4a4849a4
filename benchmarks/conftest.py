"""What every benchmark shares: quick mode, latents, and rates beside the times."""

import os

import pytest
import torch

QUICK = bool(os.environ.get("CIPS_FAST_BENCH_QUICK"))


@pytest.fixture
def timed(benchmark):
    """Time a call after a warm-up and note its arithmetic rate: timed(call, flop)."""

    def run(call, flop):
        rounds = 2 if QUICK else 7
        result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
        benchmark.extra_info["GFLOP/s"] = round(flop / benchmark.stats.stats.median / 1e9, 1)
        benchmark.extra_info["threads"] = torch.get_num_threads()
        return result

    return run
