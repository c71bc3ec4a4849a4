"""Walks through latents, camera moves and style-mixing grids."""

import math

import pytest
import torch

from cips_fast import CIPSGenerator, camera, grids, walks
from cips_fast.grids import WHOLE

ALL = pytest.mark.parametrize("kind", walks.KINDS)
BOTH = pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])


def draw_keys(count=4, features=16, dtype=torch.float64):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def second_differences(loop):
    return loop.roll(-1, 0) - 2 * loop + loop.roll(1, 0)


@ALL
@BOTH
def test_a_walk_meets_its_keys(kind, closed):
    keys = draw_keys(dtype=torch.float32)
    way = walks.walk(keys, 20 if closed else 16, kind, closed=closed)
    assert way.shape == (20 if closed else 16, 16)
    assert way.dtype == keys.dtype
    met = way[::5]
    torch.testing.assert_close(met, keys, rtol=0, atol=0 if kind != "spherical" else 2e-7)


@ALL
def test_a_loop_has_no_seam(kind):
    """Where it is begun makes no difference: the loop through rotated keys is the same loop, rotated."""
    keys = draw_keys(5)
    way = walks.walk(keys, 40, kind, closed=True)
    begun_elsewhere = walks.walk(keys.roll(-2, 0), 40, kind, closed=True)
    torch.testing.assert_close(way.roll(-16, 0), begun_elsewhere, rtol=0, atol=1e-13)
    assert (way[0] - way[-1]).norm() > 0.1


@ALL
def test_frames_are_equal_steps_whatever_their_number(kind):
    keys = draw_keys(3)
    coarse, fine = (walks.walk(keys, frames, kind, closed=True) for frames in (7, 28))
    torch.testing.assert_close(fine[::4], coarse, rtol=0, atol=1e-13)
    coarse, fine = (walks.walk(keys, frames, kind) for frames in (8, 29))
    torch.testing.assert_close(fine[::4], coarse, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kind", "order"), [("linear", 1), ("spherical", 1), ("spline", 2)])
def test_only_a_spline_has_no_corners_at_its_keys(kind, order):
    """With h the step, a corner's second difference shrinks as h, a smooth way's as h²."""
    keys = draw_keys(4)
    loops = [walks.walk(keys, 4 * steps, kind, closed=True) for steps in (64, 128)]
    sharpest = [second_differences(loop).norm(dim=1).max() for loop in loops]
    assert math.log2(sharpest[0] / sharpest[1]) == pytest.approx(order, abs=0.05)


def test_a_closed_spline_has_no_jump_in_acceleration():
    acceleration = second_differences(walks.walk(draw_keys(4), 4 * 1024, "spline", closed=True))
    assert second_differences(acceleration).norm(dim=1).max() < 0.01 * acceleration.norm(dim=1).max()


def test_an_open_spline_ends_without_acceleration_and_follows_a_straight_line():
    way = walks.walk(draw_keys(5), 4 * 256 + 1, "spline")
    acceleration = (way[2:] - 2 * way[1:-1] + way[:-2]).norm(dim=1)
    assert max(acceleration[0], acceleration[-1]) < 0.02 * acceleration.max()
    line = torch.arange(4.0, dtype=torch.float64)[:, None] * draw_keys(1)
    torch.testing.assert_close(walks.walk(line, 31, "spline"), walks.walk(line, 31), rtol=0, atol=1e-14)


@BOTH
def test_two_keys_are_enough(closed):
    keys = draw_keys(2)
    way = walks.walk(keys, 10, "spline", closed=closed)
    share = (way - keys[0]).norm(dim=1) / (keys[1] - keys[0]).norm()
    if closed:  # there and back on one line, at rest at both ends
        t = torch.arange(5, dtype=torch.float64) / 5
        there = 3 * t**2 - 2 * t**3
        torch.testing.assert_close(share, torch.cat([there, 1 - there]), rtol=0, atol=1e-13)
    else:
        torch.testing.assert_close(share, torch.linspace(0, 1, 10, dtype=torch.float64), rtol=0, atol=1e-13)


def test_spherical_steps_are_equal_angles_and_lengths_change_evenly():
    a, b = torch.tensor([2.0, 0, 0]), torch.tensor([0, 0, 5.0])
    way = walks.walk(torch.stack([a, b]).double(), 10, "spherical")
    angle, length = math.pi / 18, torch.linspace(2, 5, 10, dtype=torch.float64)
    at = angle * torch.arange(10, dtype=torch.float64)
    want = torch.stack([at.cos(), torch.zeros_like(at), at.sin()], 1) * length[:, None]
    torch.testing.assert_close(way, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 1e-300, 1e-12, 1e-8, 1e-4, 3.14])
def test_spherical_keeps_to_the_circle_near_and_far(angle):
    a, b = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    way = walks.slerp(a, b, t[:, None])
    assert (way.norm(dim=-1) - 1).abs().max() < 1e-12
    torch.testing.assert_close(torch.atan2(way[:, 1], way[:, 0]), t * angle, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        (draw_keys(1), {}, r"keys: got \[1, 16\].*K at least 2"),
        (torch.zeros(3), {}, r"keys: got \[3\]"),
        (torch.ones(3, 4, dtype=torch.long), {}, "keys: got .*int64, must be floating-point"),
        (torch.full((2, 3), math.nan), {}, "keys: .*must be finite"),
        (draw_keys(), {"frames": 1}, "frames: got 1, must be at least 2"),
        (draw_keys(), {"kind": "cubic"}, "kind: got 'cubic', may be 'linear', 'spherical', 'spline'"),
        (torch.zeros(2, 3), {"kind": "spherical"}, "keys: got one of zeros"),
        (torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), {"kind": "spherical"}, "opposite directions"),
    ],
)
def test_keys_and_frames_that_make_no_walk_are_refused(keys, options, message):
    with pytest.raises(ValueError, match=message):
        walks.walk(keys, **{"frames": 8} | options)


def test_a_zoom_goes_on_at_one_speed_towards_one_point():
    start, end = (-1.0, -0.5, 1.0, 0.5), camera.magnified((-1.0, -0.5, 1.0, 0.5), 64, (0.3, -0.2))
    regions = camera.zoom(start, end, 97)
    assert regions[0] == start
    assert regions[-1] == end
    region = torch.tensor(regions, dtype=torch.float64)
    sides = region[:, 2:] - region[:, :2]
    torch.testing.assert_close(sides[1:] / sides[:-1], torch.full((96, 2), 64 ** (-1 / 96), dtype=torch.float64))
    # Where frame n + 1 lies within frame n is the same for all n, so the picture's flow never changes.
    inside = (region[1:, :2] - region[:-1, :2]) / sides[:-1]
    torch.testing.assert_close(inside, inside[:1].expand(96, 2), rtol=0, atol=1e-12)


def test_a_zoom_renders_what_a_magnified_region_shows():
    """Halfway through a fourfold zoom to the middle is a twofold one."""
    halfway = camera.zoom(WHOLE, camera.magnified(WHOLE, 4, (0.0, 0.0)), 3)[1]
    assert torch.equal(grids.plane(3, 5, halfway), grids.plane(3, 5) / 2)


def test_a_pan_moves_at_equal_steps():
    assert camera.pan((0.0, 0.0, 1.0, 2.0), (2.0, -1.0), 5) == [
        (s, -s / 2, 1 + s, 2 - s / 2) for s in (0.0, 0.5, 1.0, 1.5, 2.0)
    ]
    assert camera.pan(WHOLE, (2.0, 0.0), 4, closed=True) == [(s - 1, -1, s + 1, 1) for s in (0.0, 0.5, 1.0, 1.5)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: camera.zoom((0, 0, 1, 1), (0, 0, 0, 1), 3), r"end: got \(0, 0, 0, 1\), must be .*x0 != x1"),
        (lambda: camera.zoom((0, 0, 1, 1), (1, 0, 0, 1), 3), r"end: got \(1, 0, 0, 1\), which is mirrored"),
        (lambda: camera.zoom((0, 0, math.inf, 1), (0, 0, 1, 1), 3), "start: got"),
        (lambda: camera.zoom((0, 0, 1, math.nan), (0, 0, 1, 1), 3), "start: got"),
        (lambda: camera.pan((0, 0, 1, 1), (1, 1), 1), "frames: got 1"),
        (lambda: camera.magnified((0, 0, 1, 1), 0, (0, 0)), "factor: got 0, must be a positive number"),
    ],
)
def test_camera_moves_that_lead_nowhere_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def small_generator():
    torch.manual_seed(0)
    return CIPSGenerator(size=16, width=32, style_features=32, embedding_size=8, mapping_layers=2).eval()


@torch.no_grad()
def test_a_style_mixing_grid_takes_early_layers_of_rows_and_late_ones_of_columns():
    generator = small_generator()
    w = generator.mapping(torch.randn(5, 32))
    rows, columns = w[:2], w[2:]
    matrix = walks.style_mixing_grid(generator, rows, columns, crossover=4)
    assert matrix.shape == (2, 3, generator.num_layers, 32)
    for row in range(2):
        for column in range(3):
            assert torch.equal(matrix[row, column, :4], rows[row].expand(4, -1))
            assert torch.equal(matrix[row, column, 4:], columns[column].expand(generator.num_layers - 4, -1))
    # At its ends the grid holds the sources themselves.
    grid = generator.native_grid()[None]
    ends = [
        walks.style_mixing_grid(generator, rows, columns, crossover)[1, 2:] for crossover in (generator.num_layers, 0)
    ]
    for mixed, source in zip(ends, (rows[1:], columns[2:]), strict=True):
        torch.testing.assert_close(generator.synthesis(mixed, grid), generator.synthesis(source, grid))


@pytest.mark.parametrize(
    ("rows", "columns", "crossover", "message"),
    [
        (torch.zeros(2, 32), torch.zeros(3, 32), 99, "crossover: got 99, must be 0 to 7"),
        (torch.zeros(32), torch.zeros(3, 32), 2, r"w_rows, w_columns: got \[32\], \[3, 32\]"),
        (torch.zeros(2, 32), torch.zeros(3, 16), 2, r"w_rows, w_columns: got \[2, 32\], \[3, 16\]"),
    ],
)
def test_sources_that_do_not_mix_are_refused(rows, columns, crossover, message):
    with pytest.raises(ValueError, match=message):
        walks.style_mixing_grid(small_generator(), rows, columns, crossover)
