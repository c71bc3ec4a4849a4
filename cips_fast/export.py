"""Exporting the synthesis network for other runtimes: `torch.export` programs and ONNX files."""

import contextlib
import copy
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from . import reference as ref
from .checks import ArgumentError
from .generator import CIPSGenerator
from .module_changes import change_of, plain_affines

SMALLEST_OPSET = 18
# From this size on, the weights go to a separate file, because a protobuf message can hold at most 2 GiB.
EXTERNAL_DATA_BYTES = 1 << 30
COMPARED_SIZES = ((1, 1), (2, 3), (1, 1000), (3, 257))  # (images, points)

SynthesisFunction = Callable[[Tensor, Tensor], Tensor]  # (w, coords) -> rgb


class Synthesis(nn.Module):
    """(w, coords) -> rgb by the formulas of `cips_fast.reference`, on the CPU. This is the module that is exported.

    It has the generator's parameters except those of the mapping, and shares their memory if they are on the CPU.

    Args:
        generator: with parameters in float32 and without noise.

    Raises:
        ValueError: the generator has noise, another dtype, or layers that were replaced or have hooks.
    """

    def __init__(self, generator: CIPSGenerator):
        super().__init__()
        if generator.noise:
            raise ArgumentError(
                "noise", "got True, must be False: an exported network draws none (generator.noise = False)"
            )
        affines = [layer.affine for layer in (*generator.layers, *generator.to_rgb)]
        change = change_of(generator)
        if change is None and not plain_affines(affines):
            change = "affine layers were replaced or have hooks"
        if change is not None:
            raise ArgumentError(
                "generator", f"{change}, must be as it was built: the formulas read only its parameters"
            )
        dtype = generator.encoding.freq.dtype
        if dtype != torch.float32:
            raise ArgumentError("dtype", f"got {dtype}, must be torch.float32 (generator.float())")
        # A copy of all modules but not of the parameters: deepcopy is told that these are the copies it has made
        # already.
        copied = {id(p): nn.Parameter(p.detach().cpu(), requires_grad=False) for p in generator.parameters()}
        self.generator = copy.deepcopy(generator, copied).eval()
        del self.generator.mapping, self.generator.mean_latent, self.generator.noise_strength

    def forward(self, w: Tensor, coords: Tensor) -> Tensor:
        """w [B, S] or [B, L, S], coords [P, 2] or [B, P, 2] -> rgb [B, P, 3].

        Styles are computed by the reference's formula as well, one product a layer. `CIPSGenerator.network` joins these
        products into one, which is faster outside of an exported graph.
        """
        generator = self.generator
        affines = [layer.affine for layer in (*generator.layers, *generator.to_rgb)]
        read = [*range(generator.num_layers), *generator.tapped]  # which layer's latent each affine layer reads
        latents = [w if w.dim() == 2 else w[:, layer] for layer in read]
        styles = [ref.linear_ref(latent, a.weight, a.bias) for latent, a in zip(latents, affines, strict=True)]
        points, table_coords = generator.encoding.points(coords if coords.dim() == 3 else coords[None])
        return ref.synthesis_ref(generator.network_of(styles), points, table_coords, activation=generator.activation)


def export_program(
    generator: CIPSGenerator, *, per_layer: bool = False, coords_per_image: bool = False
) -> ExportedProgram:
    """The synthesis network as a program of plain ATen operators, on the CPU, in float32.

    Call it as `program.module()(w, coords)`, with any number of images and pixels. `coords` is a list of points, as for
    `CIPSGenerator.synthesis`: x first, in [-1, 1] on the native grid, or in pixels with `integer_coords`.

    Args:
        generator: see `Synthesis`.
        per_layer: w is one latent a layer [B, num_layers, S] instead of one for all layers [B, S].
        coords_per_image: every image has its own points [B, P, 2], instead of the same points for all [P, 2].

    Returns:
        (w, coords) -> rgb [B, P, 3], nominally in [-1, 1].

    Raises:
        ValueError: as in `Synthesis`.
    """
    module = Synthesis(generator)
    images, points = 3, 5  # different from each other and from 1, so that torch.export does not take them for one size
    features = generator.style_features
    w = torch.zeros(images, generator.num_layers, features) if per_layer else torch.zeros(images, features)
    coords = torch.zeros(images, points, 2) if coords_per_image else torch.zeros(points, 2)
    named = _open_sizes(coords_per_image)
    sizes = {tensor: {dim: Dim(name) for dim, name in names.items()} for tensor, names in named.items()}
    with torch.no_grad():
        return torch.export.export(module, (w, coords), dynamic_shapes=sizes, strict=False)


def export_onnx(
    generator: CIPSGenerator,
    path: str | Path,
    *,
    per_layer: bool = False,
    coords_per_image: bool = False,
    opset: int | None = None,
    external_data_from: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Write the synthesis network as an ONNX file: inputs `w` and `coords`, output `rgb`, all float32.

    The inputs are those of `export_program`; the generator's configuration is the metadata entry `cips_fast`. If the
    network has a large embedding, its weights may not fit into one file. They are then in `<name>.data` in the same
    folder; that file must not be renamed or moved.

    Args:
        generator, per_layer, coords_per_image: as in `export_program`.
        path: the file.
        opset: ONNX operator set, at least 18; None for the one that the installed PyTorch writes.
        external_data_from: size of all weights in bytes, from which on they go to the second file.

    Raises:
        ImportError: the packages onnx and onnxscript are not installed.
        ValueError: as in `Synthesis`, or the operator set cannot be written.
    """
    defs, onnxscript = _import("onnx.defs"), _import("onnxscript")
    newest = defs.onnx_opset_version()
    if opset is not None and not SMALLEST_OPSET <= opset <= newest:
        raise ArgumentError("opset", f"got {opset}, must be {SMALLEST_OPSET} to {newest}")

    def read_cells(table: Any, indices: Any) -> Any:
        """The embedding's cells [..., 4] -> [..., 4, C]. The exporter's translation would transpose the table twice."""
        (cells,) = indices
        return onnxscript.opset18.Gather(table, cells, axis=0)

    with _quiet_exporter():
        program = torch.onnx.export(
            export_program(generator, per_layer=per_layer, coords_per_image=coords_per_image),
            dynamo=True,
            verbose=False,
            optimize=False,  # its rules treat the 1e-8 of the demodulation as zero
            opset_version=opset,
            input_names=["w", "coords"],
            output_names=["rgb"],
            dynamic_shapes=_open_sizes(coords_per_image),
            custom_translation_table={torch.ops.aten.index.Tensor: read_cells},
        )
    model = program.model
    written = model.opset_imports[""]
    if opset not in (None, written):
        raise ArgumentError("opset", f"got {opset}, which the installed exporter cannot write; it writes {written}")
    onnxscript.optimizer.fold_constants(model)
    onnxscript.optimizer.remove_unused_nodes(model)
    # The metadata would hold the paths of our source files, among other things.
    _import("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(model)
    model.metadata_props["cips_fast"] = json.dumps(generator.config)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    program.save(str(path), external_data=size >= external_data_from)


def open_onnx(path: str | Path) -> SynthesisFunction:
    """A file that `export_onnx` wrote, run by onnxruntime on the CPU: (w, coords) -> rgb, float32.

    Raises:
        ImportError: the package onnxruntime is not installed.
        ValueError: onnxruntime cannot run the file.
    """
    onnxruntime = _import("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other common class
        raise ArgumentError("ONNX", f"got {str(path)!r}, which onnxruntime cannot run ({error})") from None

    def synthesis(w: Tensor, coords: Tensor) -> Tensor:
        (rgb,) = session.run(["rgb"], {"w": w.numpy(), "coords": coords.numpy()})
        return torch.from_numpy(rgb)

    return synthesis


@torch.no_grad()
def largest_difference(
    generator: CIPSGenerator, synthesis: SynthesisFunction, *, per_layer: bool = False, coords_per_image: bool = False
) -> float:
    """How much an exported network differs from the generator, for several numbers of random latents and points.

    Points are on the native grid and a tenth beyond; noise is drawn from the same seed.

    Args:
        generator: it computes with its own backend, on its device.
        synthesis: the exported network, (w, coords) -> rgb [B, P, 3], on the CPU, with shapes as in `export_program`.
        per_layer, coords_per_image: as in `export_program`.

    Returns:
        The largest difference of two colours, divided by the largest colour if that is beyond 1; NaN if a colour is
        NaN.
    """
    rng = torch.Generator().manual_seed(0)
    grid = generator.native_grid()
    first, last = grid[0, 0].cpu(), grid[-1, -1].cpu()
    differences = []
    for images, points in COMPARED_SIZES:
        z = torch.randn(images, generator.num_layers if per_layer else 1, generator.style_features, generator=rng)
        w = generator.mapping(z.to(grid.device)) if per_layer else generator.mapping(z[:, 0].to(grid.device))
        where = torch.rand(images if coords_per_image else 1, points, 2, generator=rng) * 1.2 - 0.1
        coords = first + where * (last - first)  # [B|1, P, 2]
        coords = coords if coords_per_image else coords[0]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            wanted = generator.synthesis(w, coords.to(grid.device)).cpu()
            torch.manual_seed(0)
            got = synthesis(w.cpu(), coords)
        differences.append((got - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    return torch.stack(differences).max().item()


def _open_sizes(coords_per_image: bool) -> dict[str, dict[int, str]]:
    """Names of the dimensions of w and of coords whose size an exported network leaves open."""
    points = {0: "batch", 1: "pixels"} if coords_per_image else {0: "pixels"}
    return {"w": {0: "batch"}, "coords": points}


def _import(name: str) -> ModuleType:
    """A module of an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ImportError(f"ONNX needs the package {package}: pip install -e '.[export]'") from None


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's messages about packages that are not installed and operator sets and names it chose."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
