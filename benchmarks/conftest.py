"""What all benchmarks share: comparing contenders, leaving out slow ones, and the table at the end."""

import pytest

from .comparison import CONTENDERS, DEVICE, OURS, QUICK, Comparison, convolutions_at_their_best
from .results import Run

LONGEST_CALL_SECONDS = {"cpu": 0.5, "cuda": 60.0}[DEVICE]
MIN_TURNS_SECONDS = 0.1 if QUICK else 0.5  # spent on the turns of a group, at least
RUN = pytest.StashKey[Run]()
DESELECTED = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption(
        "--longest-call",
        type=float,
        default=LONGEST_CALL_SECONDS,
        metavar="S",
        help="longest call in seconds; slower contenders are left out, except in the two headline groups "
        "(default: %(default)s)",
    )


@pytest.fixture
def longest_call(request):
    """The longest call in seconds; slower contenders are left out."""
    return request.config.getoption("longest_call")


@pytest.fixture
def run(request, longest_call):
    """The figures of this run."""
    return request.config.stash.setdefault(RUN, Run(longest_call))


@pytest.fixture
def compare(benchmark, run, longest_call):
    """A function that checks all contenders of a group, then times them in turns.

    Its arguments are those of `Comparison`, and `always`: formulations that are measured however long they take.
    """

    def check_and_time(group, functions, operation, contenders=CONTENDERS, always=()):
        benchmark.group = str(group)
        if run.expected_seconds(group, OURS) > 8 * longest_call:
            pytest.skip("one call would take too long; see --longest-call")
        with convolutions_at_their_best():
            comparison = Comparison(group, functions, operation, contenders)
            for contender in comparison.contenders:
                expected = run.expected_seconds(group, contender)
                if contender == OURS or contender.formulation in always or expected <= longest_call:
                    comparison.check(contender)
                else:
                    run.leave_out(group, contender, expected)
            turns = max(MIN_TURNS_SECONDS, longest_call / 6) / comparison.seconds_of_a_turn()
            rounds = min(30, max(2 if always else 1, int(turns)))
            ours = comparison.runners[OURS]
            benchmark.pedantic(ours, setup=comparison.take_turns, rounds=rounds)
            comparison.measured[OURS].seconds += benchmark.stats.stats.data
        figures = comparison.results()
        benchmark.extra_info.update(figures)
        run.add(group, figures)

    return check_and_time


def pytest_configure(config):
    """Make every test its own group in pytest-benchmark's table; ours, at the end, lists the contenders."""
    config.option.benchmark_group_by = "func"
    config.option.benchmark_columns = ["median", "rounds"]


def pytest_deselected(items):
    """Count the benchmarks that -k and similar options leave out, so that a report can say that it is partial."""
    if items:
        stash = items[0].config.stash
        stash[DESELECTED] = stash.get(DESELECTED, 0) + len(items)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print the figures of every contender, and save them for `python -m benchmarks.report`."""
    run = config.stash.get(RUN, None)
    if run is None:
        return
    run.deselected = config.stash.get(DESELECTED, 0)
    terminalreporter.section(
        "median time, speed relative to the published formulation, rate, share of plain products, memory"
    )
    for line in run.lines():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"written to {run.save()}; python -m benchmarks.report turns it into tables and plots")
