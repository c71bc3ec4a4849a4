"""What every benchmark shares: the contest, what is left out of it, and the table at the end."""

import pytest

from .contest import DEVICE, LINEUP, OURS, QUICK, Contest, convolutions_at_their_best
from .last_run import Run

LONGEST = {"cpu": 0.5, "cuda": 60.0}[DEVICE]
TURNS = 0.1 if QUICK else 0.5  # seconds of turns a group, at least
RUN = pytest.StashKey[Run]()
DESELECTED = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption(
        "--longest-call",
        type=float,
        default=LONGEST,
        metavar="S",
        help="leave out contenders whose call would take longer, but those of headlines (default: %(default)s s)",
    )


@pytest.fixture
def longest_call(request):
    """Seconds beyond which something is left out."""
    return request.config.getoption("longest_call")


@pytest.fixture
def run(request, longest_call):
    """The figures of this run."""
    return request.config.stash.setdefault(RUN, Run(longest_call))


@pytest.fixture
def race(benchmark, run, longest_call):
    """Check all contenders of a group, then let them take turns: race(group, how, problem, lineup, always).

    Formulations in `always` are not left out, however long they take. It is what headlines ask for.
    """

    def compete(group, how, problem, lineup=LINEUP, always=()):
        benchmark.group = str(group)
        if run.expected_seconds(group, OURS) > 8 * longest_call:
            pytest.skip("one call would take too long; see --longest-call")
        with convolutions_at_their_best():
            contest = Contest(group, how, problem, lineup)
            for contender in contest.lineup:
                expected = run.expected_seconds(group, contender)
                if contender == OURS or contender.formulation in always or expected <= longest_call:
                    contest.check(contender)
                else:
                    run.leave_out(group, contender, expected)
            turns = max(TURNS, longest_call / 6) / contest.seconds_of_a_turn()
            rounds = min(30, max(2 if always else 1, int(turns)))
            ours = contest.solvers[OURS]
            benchmark.pedantic(ours, setup=contest.take_turns, rounds=rounds)
            contest.seen[OURS].seconds += benchmark.stats.stats.data
        figures = contest.results()
        benchmark.extra_info.update(figures)
        run.add(group, figures)

    return compete


def pytest_configure(config):
    """Every test is a group of its own, whose contenders stand in the table at the end."""
    config.option.benchmark_group_by = "func"
    config.option.benchmark_columns = ["median", "rounds"]


def pytest_deselected(items):
    """Count the benchmarks that -k and the like leave out, so that a report can say that it is partial."""
    if items:
        stash = items[0].config.stash
        stash[DESELECTED] = stash.get(DESELECTED, 0) + len(items)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """What every contender took, beside the published formulation; and the file that a report is made of."""
    run = config.stash.get(RUN, None)
    if run is None:
        return
    run.deselected = config.stash.get(DESELECTED, 0)
    terminalreporter.section(
        "median time, speed beside the published formulation, rate, share of plain products, memory"
    )
    for line in run.lines():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"written to {run.save()}; python -m benchmarks.report makes tables and plots of it")
