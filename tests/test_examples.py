"""The examples: their pictures, their networks compiled whole and exported, and that the field learns."""

import importlib.util
import io
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from .pictures import ROOT

# Without a C++ compiler inductor cannot serve CPUs; that the graph is whole and right is tested even so.
COMPILER = "inductor" if any(map(shutil.which, ("g++", "clang++", "cl"))) else "aot_eager"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLES = {name: load(name) for name in ("cppn", "field")}
cppn, field = EXAMPLES.values()
TINY = {
    "cppn": ["--latents", "5", "--size", "20"],
    "field": ["--steps", "3", "--scenes", "4", "--size", "20"],
}
GRIDS = {"cppn": (2, 3), "field": (3, 4)}  # rows and columns of a picture

each_example = pytest.mark.parametrize("name", EXAMPLES)


def draw(name, path, *more):
    EXAMPLES[name].main([*TINY[name], "--device", "cpu", "--out", str(path), *more])
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


def tiles(pixels, side):
    height, width, _ = pixels.shape
    return [pixels[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network_and_inputs(name):
    """A network with random biases and inputs of it; no two of the leading dimensions are equal."""
    torch.manual_seed(0)
    if name == "cppn":
        network, inputs = cppn.CPPN(8, 8, ("sinrelu",)), (cppn.coordinates(5), randn(3, 8, seed=1))
    else:
        directions = nn.functional.normalize(randn(2, 3, 3, seed=2), dim=-1)
        network, inputs = field.Field(8, depth=2), (randn(2, 3, 5, 3, seed=3), directions, randn(2, field.Z, seed=4))
    for parameter in network.parameters():
        if parameter.dim() == 1:  # biases of zero would hide a mistake
            nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return network, inputs


def outputs_and_gradients(function, parameters, inputs):
    """Outputs, and the gradients of all parameters and inputs for random gradients of the outputs."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [randn(*output.shape, seed=5 + i) for i, output in enumerate(outputs)]
    return outputs, torch.autograd.grad(outputs, [*parameters, *inputs], upstream)


@each_example
def test_picture(name, tmp_path):
    side = 24  # more rays than the field renders at a time
    pixels = draw(name, tmp_path / "picture.png", "--size", str(side))
    rows, columns = GRIDS[name]
    assert pixels.shape == (rows * side, columns * side, 3)
    pieces = tiles(pixels, side)
    if name == "cppn":
        assert (pieces.pop() == 255).all()  # five patterns on six places
    assert min(piece.std(axis=(0, 1)).max() for piece in pieces) > 2
    assert len({piece.tobytes() for piece in pieces}) == len(pieces)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cppn", ["--latents", "0"], "--latents: got 0, must be at least 1"),
        ("cppn", ["--size", "-1"], "--size: got -1, must be at least 1"),
        ("cppn", ["--seed", str(2**64)], "--seed: got 18446744073709551616, must be at least 0"),
        ("cppn", ["--out", "nowhere/x.png"], "--out: got 'nowhere/x.png', must be a .png in a folder that exists"),
        ("field", ["--steps", "0"], "--steps: got 0, must be at least 1"),
        ("field", ["--scenes", "0"], "--scenes: got 0, must be at least 1"),
        ("field", ["--size", "many"], "--size: got 'many', must be a whole number"),
        ("field", ["--out", "x.bmp"], "--out: got 'x.bmp', must be a .png in a folder that exists"),
    ],
)
def test_a_bad_value_is_one_line(capsys, name, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        EXAMPLES[name].main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@each_example
def test_seeds(name, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for path, seed in zip(files, "112", strict=True):
        draw(name, path, "--seed", seed)
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert first != other


@each_example
def test_options_reach_the_layers(name, tmp_path, monkeypatch):
    layers, compiled, torch_compile = [], [], torch.compile

    def compile_cheaply(network, **options):
        layers.extend(layer for layer in network.modules() if isinstance(layer, cppn.ModFC))
        compiled.append(options)
        return torch_compile(network, backend="eager", **options)

    wanted = draw(name, tmp_path / "eager.png", "--backend", "reference")
    monkeypatch.setattr(torch, "compile", compile_cheaply)
    got = draw(name, tmp_path / "compiled.png", "--backend", "reference", "--compile")
    assert compiled == [{"fullgraph": True}]
    assert {layer.backend for layer in layers} == {"reference"}
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("name", "backend", "with_gradients"),
    # A C++ compiler takes its time, so it gets what the scripts compile: cppn.py draws, field.py also trains.
    [("cppn", COMPILER, False), ("cppn", "aot_eager", True), ("field", COMPILER, True)],
)
def test_compiled_whole_is_eager(name, backend, with_gradients):
    torch.compiler.reset()
    network, inputs = network_and_inputs(name)
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    if not with_gradients:
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)
        return
    wanted = outputs_and_gradients(network, network.parameters(), inputs)
    got = outputs_and_gradients(compiled, network.parameters(), inputs)
    for some, others in zip(got, wanted, strict=True):
        for a, b in zip(some, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@each_example
def test_exported_is_eager(name):
    network, inputs = network_and_inputs(name)
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, inputs), file)
    file.seek(0)
    exported = torch.export.load(file).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(*inputs), network(*inputs), rtol=1e-5, atol=1e-6)


@each_example
def test_points_and_latents_do_not_mix(name):
    network, inputs = network_and_inputs(name)
    with torch.no_grad():
        colours = network(*inputs) if name == "cppn" else network(*inputs)[1]
        for i in range(len(colours)):
            if name == "cppn":
                coords, latent = inputs
                alone = network(coords[:, 1:3, 2:], latent[i : i + 1])
                wanted = colours[i : i + 1, 1:3, 2:]
            else:
                points, directions, latent = (tensor[i : i + 1] for tensor in inputs)
                alone = network(points[:, 1:, 2:4], directions[:, 1:], latent)[1]
                wanted = colours[i : i + 1, 1:, 2:4]
            torch.testing.assert_close(alone, wanted, rtol=1e-5, atol=1e-6)
    assert (colours[0] - colours[1]).abs().max() > 0.01


def test_density_does_not_depend_on_the_direction():
    network, (points, directions, latent) = network_and_inputs("field")
    with torch.no_grad():
        density, colour = network(points, directions, latent)
        turned_density, turned_colour = network(points, -directions, latent)
    assert density.min() >= 0
    torch.testing.assert_close(turned_density, density)
    assert (turned_colour - colour).abs().amin(-1).max() > 1e-3


def test_renders_fog():
    """Fog of one density and colour has a closed form."""
    directions = nn.functional.normalize(randn(2, 7, 3, seed=0), dim=-1)
    colour = torch.tensor([0.2, 0.5, 0.9])
    for density in (0.0, 0.7, 100.0):

        def fog(points, directions, latent, density=density):
            return torch.full(points.shape[:-1], density), colour.expand_as(points)

        got = field.render(fog, torch.zeros(2, 7, 3), directions, torch.zeros(2, 1))
        left = math.exp(-density * (field.FAR - field.NEAR))
        torch.testing.assert_close(got, (left + (1 - left) * colour).expand(2, 7, 3))


def test_field_learns():
    torch.manual_seed(0)
    network = field.Field(32, octaves=3)
    latents = (0.3 * torch.randn(2, field.Z)).requires_grad_()
    start = latents.detach().clone()
    losses = field.train(network, latents, steps=60, rays=64)
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert (latents - start).abs().amin() > 0
