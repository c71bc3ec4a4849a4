"""The benchmarks' machinery: a contender with wrong results is found, and a run becomes a page."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import bench_mod_fc, bench_scaling, comparison, gemm, report
from benchmarks.results import Run
from cips_fast import reference as ref

DOCUMENTED = Path(report.__file__).parent.parent / "docs" / "benchmarks"
CASE = bench_mod_fc.Case("forward + backward", 40, 2, 8, 8)  # more pixels than are compared


def right(x, weight, style, bias, **options):
    return ref.mod_fc_ref(x, weight, style, bias, **options)


def without_a_tile(x, weight, style, bias, **options):
    y = right(x, weight, style, bias, **options)
    return torch.cat([y[:, :64] * 0, y[:, 64:]], 1)


def without_a_tile_going_back(x, weight, style, bias, **options):
    x = torch.cat([x[:, :64].detach(), x[:, 64:]], 1)
    y = right(x, weight, style, bias, **options)
    frozen = right(x, weight.detach(), style, bias, **options)
    return torch.cat([frozen[:, :64], y[:, 64:]], 1)


@pytest.mark.parametrize("precision", comparison.PRECISIONS)
@pytest.mark.parametrize(
    ("function", "named"),
    [(right, None), (without_a_tile, "result"), (without_a_tile_going_back, "gradient of")],
    ids=["right", "tile missing", "gradient missing"],
)
def test_a_wrong_contender_is_found(function, named, precision):
    operation = bench_mod_fc.operation(CASE, precision)
    assert len(operation.sample) < CASE.size**2
    found = operation.runner(function, operation.inputs, operation.sparse_upstream)()
    if named is None:
        return operation.check(found)
    with pytest.raises(AssertionError, match=named):
        operation.check(found)


def test_contenders_take_turns():
    contenders = [comparison.PUBLISHED, comparison.OURS]
    case = bench_mod_fc.Case("forward", 8, 1, 8, 8)
    operation = partial(bench_mod_fc.operation, case)
    group = comparison.Comparison(case.group, bench_mod_fc.FORMULATIONS, operation, contenders)
    for contender in contenders:
        group.check(contender)
    group.take_turns()
    assert [len(group.measured[one].gemm) for one in contenders] == [2, 2]
    figures = group.results()
    assert list(figures) == [str(one) for one in contenders]
    assert all(one["flop"] == 2 * 64 * 8 * 8 and one["GFLOP/s"] > 0 for one in figures.values())


def test_plain_products_are_those_of_a_layer():
    products = gemm.layer_products(2, 64, 32, 16, backward=True)
    assert sum(product.flop for product in products) == 3 * 2 * 2 * 64 * 32 * 16
    calls = gemm.Gemm(products, torch.float32, "cpu").calls()
    assert [count for count, _ in calls] == [2, 2, 2]
    for _, call in calls:
        call()
        torch.testing.assert_close(call.out, call.a @ call.b)


def test_the_time_of_a_call_is_expected_from_a_smaller_one():
    run = Run(1.5)
    small, large = comparison.Group("mod_fc", "forward", 64, 1), comparison.Group("mod_fc", "forward", 128, 4)
    assert run.expected_seconds(small, comparison.PUBLISHED) == 0
    run.add(small, {str(comparison.PUBLISHED): {"seconds": 0.5}})
    assert run.expected_seconds(large, comparison.PUBLISHED) == 8


def test_time_that_grows_as_pixels_has_the_exponent_one():
    pixels = [2**k for k in range(14, 22, 2)]
    assert bench_scaling.fitted_exponent(pixels, [3e-6 * n for n in pixels]) == pytest.approx(1)


def test_a_run_becomes_a_page(tmp_path):
    run = Run(1.5)
    for direction in comparison.DIRECTIONS:
        for size in (64, 128):
            figures = {"flop": 2e6, "moved bytes": 1e4, "GFLOP/s": 0.5, "share of GEMM": 0.25, "peak bytes": 3 << 20}
            ours = figures | {"seconds": 0.002 * size}
            published = figures | {"seconds": 0.008 * size}
            group = comparison.Group("generator", direction, size, 1)
            run.add(group, {str(comparison.PUBLISHED): published, str(comparison.OURS): ours})
            run.leave_out(group, comparison.OTHERS[-1], 12.0)
    run.add_single(what="sampling", width=512, size=64, seconds=0.1, **{"MiB beside the image": 12.0})
    path = run.save(tmp_path / "runs" / "run.json")
    assert json.loads(path.read_text())["machine"]["threads"] == torch.get_num_threads()
    assert report.main([str(path), "--out", str(tmp_path / "docs")]) == 0
    (page,) = (tmp_path / "docs").glob("*.md")
    assert "| 64² B1 | published fp32 | 512.00 | 1.00 | 0 | 0.25 | 3 |" in page.read_text()
    assert f"| {comparison.OURS} | 128.00 | 4.00 |" in page.read_text()
    assert "left out: 12 s" in page.read_text()
    for plot in ("time", "memory", "roofline"):
        assert (tmp_path / "docs" / f"{page.stem}-{plot}.png").stat().st_size > 10_000


@pytest.fixture
def layers_alone(tmp_path):
    """A run of `-k mod_fc`: no figures of generators."""
    run = Run(1.5)
    figures = {"flop": 2e6, "moved bytes": 1e4, "GFLOP/s": 0.5, "share of GEMM": 0.25, "peak bytes": 3 << 20}
    run.add(comparison.Group("mod_fc", "forward", 64, 1), {str(comparison.OURS): figures | {"seconds": 0.1}})
    run.deselected = 12
    return run.save(tmp_path / "run.json")


def test_a_partial_run_says_so_and_has_no_empty_plots(layers_alone, tmp_path, capsys, recwarn):
    assert report.main([str(layers_alone), "--out", str(tmp_path / "docs")]) == 0
    (page,) = (tmp_path / "docs").glob("*.md")
    assert [plot.name for plot in (tmp_path / "docs").glob("*.png")] == [f"{page.stem}-roofline.png"]
    text = page.read_text()
    assert "time.png" not in text
    assert "memory.png" not in text
    for output in (text, capsys.readouterr().err):
        assert "no figures for: whole generator;" in output
        assert "12 benchmarks deselected" in output
    assert not [str(one.message) for one in recwarn if "legend" in str(one.message)]


def test_a_report_does_not_touch_the_documented_pages(layers_alone, tmp_path, monkeypatch):
    assert report.FOLDER.parent.name == ".benchmarks"
    monkeypatch.setattr(report, "FOLDER", tmp_path / "default")
    documented = sorted((path.name, path.stat().st_mtime_ns) for path in DOCUMENTED.iterdir())
    assert report.main([str(layers_alone)]) == 0
    assert list((tmp_path / "default").glob("*.md"))
    assert documented == sorted((path.name, path.stat().st_mtime_ns) for path in DOCUMENTED.iterdir())


def test_no_run_is_an_error(tmp_path, capsys):
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "pytest benchmarks/" in capsys.readouterr().err
