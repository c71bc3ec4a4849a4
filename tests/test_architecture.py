"""The direction of imports, kernels <- cips_fast <- train, and that a wheel has every sub-package."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What the files of a folder may import.
MAY_IMPORT = {
    "cips_fast.kernels": ("cips_fast.kernels",),
    "cips_fast": ("cips_fast.kernels", "cips_fast"),
    "cips_fast.train": ("cips_fast.kernels", "cips_fast", "cips_fast.train"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "cips_fast" else ("cips_fast", *parts)
    return ".".join(parts).removesuffix(".__init__")


PATHS = {module_name(path): path for top in ("cips_fast", "kernels", "train") for path in (ROOT / top).rglob("*.py")}


def folder_of(module: str) -> str:
    inner = ("cips_fast.kernels", "cips_fast.train")
    return next((name for name in inner if f"{module}.".startswith(f"{name}.")), "cips_fast")


def imports(module: str) -> Iterator[str]:
    """The project's modules that a module imports, also inside functions; imports for type checkers do not count."""
    path = PATHS[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in PATHS)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                found = next((name for name in (f"{source}.{alias.name}", source) if name in PATHS), None)
                if found:
                    yield found


IMPORTS = {module: sorted(set(imports(module))) for module in PATHS}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_import_leads_upward(folder):
    upward = {
        module: [other for other in others if folder_of(other) not in MAY_IMPORT[folder]]
        for module, others in IMPORTS.items()
        if folder_of(module) == folder and PATHS[module].name != "__init__.py"
    }
    assert not {module: others for module, others in upward.items() if others}


def test_no_file_imports_itself_through_others():
    """Take away files that import none of the rest, or that none of the rest imports: cycles stay."""
    left = {module: set(others) - {module} for module, others in IMPORTS.items()}
    while left:
        imported = {other for others in left.values() for other in others}
        done = {module for module, others in left.items() if not others & left.keys() or module not in imported}
        if not done:
            break
        left = {module: others - done for module, others in left.items() if module not in done}
    assert not left


def test_every_folder_is_a_package_that_the_wheel_has():
    listing = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r'"(.+?)"', listing[1]))
    assert listed == {module_name(path) for path in PATHS.values() if path.name == "__init__.py"}
    assert {path.parent for path in PATHS.values()} == {PATHS[name].parent for name in listed}


def test_the_imports_are_read_right():
    """What these tests rest on: a known import of each form."""
    assert "cips_fast.kernels.chips" in IMPORTS["cips_fast.kernels.tiles"]
    assert "cips_fast.kernels.modulate" in IMPORTS["cips_fast.backends.triton_ops"]  # inside a function
    assert "cips_fast.files.images" in IMPORTS["cips_fast.train.data.folder"]
    assert "cips_fast.train.data.folder" in IMPORTS["cips_fast.train.data.sources"]
