"""Geometries: what each of them answers, and that nothing outside of geometry.py knows more than that."""

import ast
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cips_fast
from cips_fast import CIPSGenerator, checkpoint, grids, render, repeats, synthesis
from cips_fast.__main__ import main as command
from cips_fast.backends import choice
from cips_fast.geometry import GEOMETRIES, WHOLE
from cips_fast.kernels.device import standing_in
from cips_fast.train.__main__ import main as train
from cips_fast.train.data.patches import Patches

from .pictures import read

WRAPPING = [name for name, geometry in GEOMETRIES.items() if geometry.wraps_any]
ONE_TURN = {"x": (2.0, 0.0), "y": (0.0, 2.0)}


def generator_of(geometry: str, **options) -> CIPSGenerator:
    torch.manual_seed(0)
    small = {"width": 32, "style_features": 16, "embedding_size": 8, "mapping_layers": 2}
    return CIPSGenerator(16, geometry=geometry, **small | options).eval().requires_grad_(False)


def latent(generator: CIPSGenerator, seed: int = 0) -> torch.Tensor:
    return generator.mapping(torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)))[0]


def wrapping_axes(name: str) -> list[str]:
    return [axis for axis, wraps in zip("xy", GEOMETRIES[name].wraps, strict=True) if wraps]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_geometry_answers_for_itself(name):
    geometry = GEOMETRIES[name]
    assert geometry.name == name
    coords = torch.rand(3, 5, 2, dtype=torch.float64) * 2 - 1
    assert geometry.lift(coords).shape == (3, 5, geometry.dimensions)
    assert torch.equal(geometry.table_coords(coords), coords) or geometry.wraps_any
    torch.testing.assert_close(geometry.table_coords(coords), coords)
    for axis in wrapping_axes(name):
        turned = coords + torch.tensor(ONE_TURN[axis])
        torch.testing.assert_close(geometry.lift(turned), geometry.lift(coords))
        torch.testing.assert_close(geometry.table_coords(turned), coords)
    generator = generator_of(name)
    assert generator.native_grid().shape == (*geometry.size(16), 2)
    assert generator.encoding.embedding.shape == (*geometry.size(8), 32)
    assert generator.config["geometry"] == generator.geometry == name


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_grid_divides_a_turn_and_reaches_edges(name):
    wraps, intervals = GEOMETRIES[name].wraps, GEOMETRIES[name].intervals(5, 5)
    for wrap, count, values in zip(wraps, intervals, grids.axes(5, 5, geometry=name), strict=True):
        assert values[0] == -1
        assert float(values[-1]) == pytest.approx(1 - 2 / 5 if wrap else 1)
        torch.testing.assert_close(values.diff(), torch.full((4,), 2 / count, dtype=torch.float64))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_trained_range_has_no_end_where_an_axis_wraps(name):
    geometry = GEOMETRIES[name]
    assert geometry.is_trained(WHOLE)
    assert geometry.is_trained((-2, -1, 3, 1)) == geometry.wraps[0]
    assert geometry.is_trained((-1, -2, 1, 3)) == geometry.wraps[1]
    assert geometry.whole_turns(WHOLE) == geometry.wraps
    assert geometry.whole_turns((0, -1, 1.5, 0)) == (False, False)
    assert geometry.leads_back((2, 0)) == geometry.wraps[0]
    assert geometry.leads_back((0, -4)) == geometry.wraps[1]
    assert not geometry.leads_back((1, 0))


@pytest.mark.parametrize("name", WRAPPING)
def test_a_turn_changes_no_bit_of_an_image(name):
    generator = generator_of(name)
    w = latent(generator)
    whole = render.image(generator, w, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing lies beyond what was trained
        for axis in wrapping_axes(name):
            dx, dy = ONE_TURN[axis]
            shifted = render.image(generator, w, 32, 32, (-1 + dx / 2, -1 + dy / 2, 1 + dx / 2, 1 + dy / 2))
            assert torch.equal(shifted.roll(16, 2 if axis == "x" else 1), whole)
    for axis in wrapping_axes(name):
        ends = torch.linspace(-1, 1, 50)
        first, last = (torch.full_like(ends, end) for end in (-1.0, 1.0))
        pairs = [(end, ends) if axis == "x" else (ends, end) for end in (first, last)]
        before, behind = (generator.synthesis(w[None], torch.stack(pair, -1)) for pair in pairs)
        assert torch.equal(before, behind)
        near = [(end * (1 - 1e-5), ends) if axis == "x" else (ends, end * (1 - 1e-5)) for end in (first, last)]
        before, behind = (generator.synthesis(w[None], torch.stack(pair, -1)) for pair in near)
        assert 0 < (before - behind).abs().max() < 1e-2


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_embedding_continues_where_an_axis_wraps(name):
    """Half a cell beyond the last cell lies the mean of the last and the first."""
    encoding = generator_of(name).encoding
    rows, columns = encoding.embedding.shape[:2]
    for axis in wrapping_axes(name):
        at = [1 - 1 / columns, -1.0] if axis == "x" else [-1.0, 1 - 1 / rows]
        read = encoding(torch.tensor([[at]]))[0, 0, encoding.freq.shape[0] :]
        line = encoding.embedding[0] if axis == "x" else encoding.embedding[:, 0]
        torch.testing.assert_close(read, line[[-1, 0]].mean(0))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_are_the_reference_s(name):
    """Of every parameter and of the coordinates, in as many dimensions as the geometry has."""
    gradients = []
    for backend in ("cpu", "reference"):
        generator = generator_of(name, backend=backend).requires_grad_(True)
        coords = (torch.rand(1, 70, 2, generator=torch.Generator().manual_seed(1)) * 3 - 1).requires_grad_()
        image = generator.synthesis(latent(generator)[None], coords)
        gradients.append(torch.autograd.grad(image.square().mean(), [coords, *generator.encoding.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("cells", [1, 8])
def test_a_bicubic_embedding_keeps_its_cells(name, cells):
    generator = generator_of(name, embedding_size=cells)
    finer = render.with_bicubic_embedding(generator, 4)
    old, new = generator.encoding.embedding, finer.encoding.embedding
    torch.testing.assert_close(new[::4, ::4], old, rtol=0, atol=1e-6)
    assert new.shape[:2] == tuple(
        4 * count if wraps else 4 * (count - 1) + 1
        for count, wraps in zip(old.shape[:2], reversed(GEOMETRIES[name].wraps), strict=True)
    )
    for axis in wrapping_axes(name):  # a shift of the cells by one is a shift of the finer ones by four
        dimension = 1 if axis == "x" else 0
        generator.encoding.embedding = torch.nn.Parameter(old.roll(1, dimension), requires_grad=False)
        shifted = render.with_bicubic_embedding(generator, 4).encoding.embedding
        torch.testing.assert_close(shifted, new.roll(4, dimension), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WRAPPING)
def test_an_axis_that_wraps_takes_no_counted_or_edged_grid(name):
    with pytest.raises(ValueError, match=f"integer_coords: got True, must be False on a {name}"):
        CIPSGenerator(8, width=8, geometry=name, integer_coords=True)
    with pytest.raises(ValueError, match=f"align_corners: got False, must be True on a {name}"):
        CIPSGenerator(8, width=8, geometry=name, align_corners=False)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_checkpoint_keeps_the_geometry(name, tmp_path):
    generator = generator_of(name)
    checkpoint.save(generator, tmp_path / "g.safetensors")
    read = cips_fast.load(tmp_path / "g.safetensors")
    assert read.config == generator.config
    assert torch.equal(render.image(read, latent(read), 9, 9), render.image(generator, latent(generator), 9, 9))


@pytest.mark.exhaustive("plane", "cylinder")
@pytest.mark.parametrize("name", GEOMETRIES)
def test_auto_runs_layers_on_the_kernels_in_any_dimensions(name, interpreter, monkeypatch):
    """The machine is taken for one with a GPU. What the kernels do not encode, the reference formulas do."""
    launched = []
    execute = interpreter.execute
    monkeypatch.setattr(interpreter, "execute", lambda call: launched.append(call.kernel) or execute(call))
    found = choice.resolve_backend
    monkeypatch.setattr(synthesis, "resolve_backend", lambda name, *of: found(name.replace("auto", "triton"), *of))
    torch.manual_seed(0)
    generator = CIPSGenerator(4, width=8, style_features=8, embedding_size=3, geometry=name)
    w, coords = torch.randn(2, 8), torch.rand(1, 20, 2) * 2 - 1
    assert_same = {"rtol": 1e-3, "atol": 1e-4}
    with standing_in(interpreter):
        got = generator.synthesis(w, coords)
        gradients = torch.autograd.grad(got.square().mean(), list(generator.layers.parameters()))
    assert launched
    monkeypatch.undo()
    generator.backend = "reference"
    wanted = generator.synthesis(w, coords)
    torch.testing.assert_close(got, wanted, **assert_same)
    for one, other in zip(
        gradients, torch.autograd.grad(wanted.square().mean(), list(generator.layers.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other, **assert_same)
    if GEOMETRIES[name].dimensions not in choice.TRITON_DIMENSIONS:
        with pytest.raises(ValueError, match=f"backend: got 'triton', which encodes 2 or 3 .* and a {name} has"):
            CIPSGenerator(4, width=8, style_features=8, geometry=name, backend="triton")


class Numbered:
    """One image whose pixels tell their row and column."""

    name = "numbered"

    def __init__(self, height: int, width: int):
        self.height, self.width, self.resolution = height, width, height

    def __len__(self):
        return 1

    def load(self, index):
        rows, columns = np.mgrid[: self.height, : self.width]
        return np.stack([rows * 16, columns * 8, 0 * rows], -1).astype(np.uint8)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_are_windows_that_go_over_edges_where_an_axis_wraps(name):
    geometry = GEOMETRIES[name]
    height, width = geometry.size(8)
    patches = Patches(Numbered(height, width), 4, 4, (0.5, 0.5), seed=3, geometry=name)
    images, coords = (torch.cat(parts) for parts in zip(*(patches.step(n) for n in range(50)), strict=True))
    rows, columns, _ = ((images + 1) * 127.5).round().unbind(1)
    row, column = rows[:, :, 0] / 16, columns[:, 0] / 8  # of every patch, [N, 4]
    across, down = geometry.intervals(height, width)
    x, y = (coords[:, 0, :, 0] + 1) / 2 * across, (coords[:, :, 0, 1] + 1) / 2 * down  # in pixels of the coordinates
    for pixel, position, count, wraps in ((column, x, width, geometry.wraps[0]), (row, y, height, geometry.wraps[1])):
        steps = pixel.diff() % count
        assert set(steps.flatten().tolist()) == {1.0, 2.0}
        torch.testing.assert_close(position.diff(), steps, rtol=0, atol=1e-4)
        offsets = (pixel - position).round() % count  # of the image against the coordinates
        assert len(set(offsets[:, 0].tolist())) == (count if wraps else 1)
        assert bool((pixel[:, -1] < pixel[:, 0]).any()) == wraps  # over the edge


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_picture_repeats_where_its_axes_wrap(name):
    generator = generator_of(name)
    picture = render.Renderer(generator, latent(generator), 12, 20)
    once = picture.image()
    twice = repeats.Repeated(picture, 3, 2)
    assert torch.equal(twice.image(), once.repeat(1, 2, 3))
    assert torch.equal(twice.tile(slice(5, 15), slice(17, 50)), once.repeat(1, 2, 3)[:, 5:15, 17:50])
    assert torch.equal(twice.pixels(torch.tensor([13, 0]), torch.tensor([21, 59])), once[:, [1, 0], [1, 19]].T)
    assert twice.fingerprint() != picture.fingerprint()
    for axis, wraps in zip("xy", GEOMETRIES[name].wraps, strict=True):
        count = (2, 1) if axis == "x" else (1, 2)
        if wraps:
            repeats.check_repeats(*count, WHOLE, name)
            with pytest.raises(ValueError, match=f"repeat: got 2 .*the region is not a whole turn along {axis}"):
                repeats.check_repeats(*count, (0, 0, 1, 1), name)
        else:
            with pytest.raises(ValueError, match=f"repeat: got 2 .*must be 1: {axis} does not wrap on a {name}"):
                repeats.check_repeats(*count, WHOLE, name)
    repeats.check_repeats(1, 1, (0, 0, 1, 1), name)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_seams_are_measured_along_both_axes(name):
    generator = generator_of(name)
    picture = render.Renderer(generator, latent(generator), 64, 64)
    for axis, wraps in zip("xy", GEOMETRIES[name].wraps, strict=True):
        met = repeats.seam(picture, -1, 1, axis=axis)
        assert (met.gap == 0) == wraps
        assert (met.step < 2 * met.beside) == wraps
        lines = picture.image()[..., [-2, -1, 0, 1]] if axis == "x" else picture.image()[:, [-2, -1, 0, 1]].mT
        before, step, behind = lines.diff(dim=-1).abs().mean((0, 1)).tolist()
        assert met.step == pytest.approx(step, rel=1e-4)
        assert met.beside == pytest.approx((before + behind) / 2, rel=1e-4)


def test_no_other_file_compares_names_of_geometries():
    """A comparison with a name is a rule that a new geometry would have to be written into."""
    package = Path(cips_fast.__file__).parent
    files = [*package.rglob("*.py"), *(Path(cips_fast.train.__file__).parent).rglob("*.py")]
    compared = {
        f"{path.name}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value in GEOMETRIES for side in (node.left, *node.comparators))
    }
    assert len(files) > 60
    assert not compared


def test_a_torus_is_trained_on_a_folder_and_sampled_as_a_tile(tmp_path, capsys):
    folder, run, out = tmp_path / "textures", tmp_path / "run", tmp_path / "tile.png"
    folder.mkdir()
    waves = np.sin(np.arange(16) / 16 * 2 * np.pi)
    texture = np.stack([waves[:, None] + 0 * waves, waves + 0 * waves[:, None], waves[:, None] * waves], -1)
    Image.fromarray(((texture + 1) * 127).astype(np.uint8)).save(folder / "waves.png")
    arguments = ["--geometry", "torus", "--data", str(folder), "--res", "16", "--crop", "16", "--kimg", "0.008"]
    small = ["--width", "8", "--style-features", "8", "--batch", "4", "--device", "cpu"]
    assert train([*arguments, *small, "--out", str(run)]) == 0
    with Image.open(next((run / "samples").iterdir())) as preview:
        assert preview.size == (5 * 16, 3 * 16)
    capsys.readouterr()
    assert command(["sample", str(run), "--seed", "1", "--size", "32", "--out", str(out)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["width"], record["height"], record["seeds"]) == (32, 32, [1])
    for axis in "xy":
        assert record[f"seam_{axis}"] == 0
        assert 0 < record[f"step_{axis}"] < 3 * record[f"beside_{axis}"]
    tile = read(out)
    assert command(["sample", str(run), "--seed", "1", "--size", "32", "--repeat", "3x2", "--out", str(out)]) == 0
    assert np.array_equal(read(out), np.tile(tile, (2, 3, 1)))
    assert train([*arguments, *small, "--geometry", "plane", "--out", str(run)]) == 2
    assert "--backend: got 'triton'" in refusal_of(["--backend", "triton", *arguments], capsys)


def refusal_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert train(arguments) == 2
    return capsys.readouterr().err
