"""Exported networks draw what the generator draws, for any number of images and of points."""

import json
import math
import sys

import pytest
import torch
from torch.export import Dim

from cips_fast import CIPSGenerator, export, load_published
from cips_fast.render import with_bicubic_embedding

from .published_formulas import draw_state, images

SMALL = {"size": 4, "width": 16, "embedding_size": 5, "style_features": 8}
# With the published checkpoint below, every variant, activation, geometry, way of counting and form of the inputs.
CASES = {
    "skip": ({}, {}),
    "res": (
        {"size": 8, "variant": "res", "width": [16, 12], "integer_coords": True, "align_corners": False},
        {"per_layer": True, "coords_per_image": True},
    ),
    "cylinder": ({"geometry": "cylinder", "activation": "sinrelu"}, {"coords_per_image": True}),
}


def generator_of(case):
    """A generator with noise in all parameters that start at zero or one, and with an output that is always zero."""
    torch.manual_seed(5)
    generator = CIPSGenerator(**SMALL | CASES[case][0]).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
        generator.layers[1].weight[3] = 0  # its demodulation divides by no more than √1e-8
    return generator


def needs(*packages):
    for package in packages:
        pytest.importorskip(package, reason=f"no {package}")


@pytest.fixture(scope="module", params=["skip", "res"])
def onnx_file(request, tmp_path_factory):
    """A generator, its file, what its inputs are; the second in an older operator set with its weights beside it."""
    needs("onnx", "onnxscript")
    path = tmp_path_factory.mktemp(request.param) / "g.onnx"
    generator, inputs = generator_of(request.param), CASES[request.param][1]
    options = {"opset": 18, "external_data_from": 0} if request.param == "res" else {}
    export.export_onnx(generator, path, **inputs, **options)
    return generator, path, inputs


def test_onnx_draws_what_the_generator_draws(onnx_file):
    needs("onnxruntime")
    generator, path, inputs = onnx_file
    assert export.largest_difference(generator, export.open_onnx(path), **inputs) <= 5e-6


def test_onnx_says_what_it_takes_and_what_it_is(onnx_file):
    import onnx

    generator, path, inputs = onnx_file
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    values = [*model.graph.input, *model.graph.output]
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    layers, own = ([5], ["batch"]) if inputs else ([], [])
    assert shapes == {"w": ["batch", *layers, 8], "coords": [*own, "pixels", 2], "rgb": ["batch", "pixels", 3]}
    assert json.loads(next(p.value for p in model.metadata_props if p.key == "cips_fast")) == generator.config
    assert {"Gather", "GatherND"} & {node.op_type for node in model.graph.node} == {"Gather"}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert model.opset_import[0].version == 18 or not inputs


def test_large_weights_lie_beside_the_file(onnx_file):
    generator, path, inputs = onnx_file
    beside = path.with_name("g.onnx.data")
    assert beside.exists() == bool(inputs)
    weights = sum(p.nbytes for name, p in generator.named_parameters() if name.startswith("layers") and p.dim() > 1)
    assert (beside if inputs else path).stat().st_size > weights


def test_a_program_draws_what_the_generator_draws(tmp_path):
    generator, inputs = generator_of("cylinder"), CASES["cylinder"][1]
    program = export.export_program(generator, **inputs)
    torch.export.save(program, tmp_path / "g.pt2")
    render = torch.export.load(tmp_path / "g.pt2").module()
    assert export.largest_difference(generator, render, **inputs) <= 5e-6
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if not name.startswith(("aten.", "<built-in function"))]
    assert not [name for name in program.state_dict if "mapping" in name]


def test_a_published_checkpoint_keeps_its_formulas():
    state = draw_state("skip", 8, "sin", seed=4, hidden=16, style=12, scale_widths=1 / 32, mapping=2)
    generator = load_published(state, activation="sin", integer_coords=True)
    z = torch.randn(2, 12, generator=torch.Generator().manual_seed(7))
    points = torch.randint(0, 8, (23, 2), generator=torch.Generator().manual_seed(8)).float()
    wanted = images(state, "skip", "sin", z, points.T[None, :, None].expand(2, -1, -1, -1), 8)[:, :, 0]
    got = export.export_program(generator, per_layer=True).module()(
        generator.mapping(z)[:, None].expand(-1, 5, -1), points
    )
    torch.testing.assert_close(got.double(), wanted.transpose(1, 2), rtol=1e-5, atol=2e-5)


def test_what_is_exported_is_a_copy_that_follows_the_generator_as_it_is():
    generator = with_bicubic_embedding(generator_of("skip"), 2)
    generator.layers[0].weight.requires_grad_()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    module = export.Synthesis(generator)
    assert export.largest_difference(generator, module) <= 5e-6
    assert module.generator.encoding.embedding.shape != generator_of("skip").encoding.embedding.shape
    assert generator.layers[0].weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


def test_a_difference_is_found():
    generator = generator_of("skip")
    largest = 0.0

    def off_at_the_last_of_many(by):
        def render(w, coords):
            nonlocal largest
            rgb = generator.synthesis(w, coords)
            if len(coords) == 1000:
                largest = rgb.abs().max().item()
                rgb[0, -1, 1] += by
            return rgb

        return render

    got = export.largest_difference(generator, off_at_the_last_of_many(0.25))
    assert got == pytest.approx(0.25 / max(1, largest), rel=1e-5)
    assert math.isnan(export.largest_difference(generator, off_at_the_last_of_many(math.nan)))
    assert export.largest_difference(generator, generator.synthesis) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda generator: setattr(generator, "noise", True), "noise: got True, must be False"),
        (lambda generator: generator.double(), "dtype: got torch.float64, must be torch.float32"),
    ],
)
def test_generators_that_cannot_be_exported_are_refused(change, words):
    generator = generator_of("skip")
    change(generator)
    with pytest.raises(ValueError, match=words):
        export.export_program(generator)


@pytest.mark.parametrize("opset", [17, 1000])
def test_operator_sets_that_there_are_not(opset, tmp_path):
    needs("onnx", "onnxscript")
    with pytest.raises(ValueError, match=f"opset: got {opset}, must be 18 to"):
        export.export_onnx(generator_of("skip"), tmp_path / "g.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(package, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    use = {"onnxruntime": lambda: export.open_onnx(tmp_path / "g.onnx")}
    write = lambda: export.export_onnx(generator_of("skip"), tmp_path / "g.onnx")
    with pytest.raises(ImportError, match=rf"package {package}: pip install -e '\.\[export\]'"):
        use.get(package, write)()


class Drawing(torch.nn.Module):
    """A module of a user's own that draws with a generator."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, w, coords):
        return self.generator.synthesis(w, coords)


@pytest.mark.parametrize(
    ("case", "differentiated"), [("skip", False), ("skip", True), ("res", True), ("cylinder", False)]
)
def test_a_module_that_draws_exports_with_open_sizes(case, differentiated):
    generator = generator_of(case)
    generator.integer_coords = False
    module, S, rng = Drawing(generator), generator.style_features, torch.Generator().manual_seed(1)
    b, p, auto = Dim("b"), Dim("p"), Dim.AUTO

    def draw(images, *shape):
        return torch.randn(images, S, generator=rng), torch.rand(*shape, 2, generator=rng) * 2 - 1

    sizes = [(1, 9), (4, 4), (2, 1), (6, 3000)]
    shared, own = [draw(B, P) for B, P in sizes], [draw(B, B, P) for B, P in sizes[1:]]
    forms = [
        (draw(3, 3, 5), ({0: b}, {0: b, 1: p}), own),
        (draw(3, 5), ({0: b}, {0: p}), shared),
        (draw(3, 5), (None, {0: p}), [draw(3, 9), draw(3, 700)]),
        (draw(3, 5), ({0: auto}, {0: auto}), shared[1:2] + shared[3:]),
    ]
    for inputs, dims, others in forms if case == "skip" else forms[:1]:
        with torch.set_grad_enabled(differentiated):
            program = torch.export.export(module, inputs, dynamic_shapes=dims).module()
        for given in others:
            torch.testing.assert_close(program(*given), module(*given), rtol=1e-5, atol=1e-5)


def test_a_generator_with_changed_layers_is_not_exported():
    generator = generator_of("skip")
    generator.layers[1].register_forward_hook(lambda m, i, y: y)
    with pytest.raises(ValueError, match=r"generator: layers\.1 has hooks, must be as it was built"):
        export.export_program(generator)
