"""The maps in the `__init__.py` of folders: one line for every file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


FOLDERS = ["kernels", "kernels/report", "cips_fast/backends", "cips_fast/files", "train", "train/data"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_map_names_every_file_and_no_other(folder):
    path = ROOT / folder
    lines = (path / "__init__.py").read_text(encoding="utf8").splitlines()
    named = [match[1] for line in lines if (match := re.match(r" *(\w+\.py|\w+/)  +\S", line))]
    files = {file.name for file in path.glob("*.py")} - {"__init__.py"}
    folders = {f"{init.parent.name}/" for init in path.glob("*/__init__.py")}
    assert len(named) == len(set(named))
    assert set(named) == files | folders


def test_the_page_on_architecture_names_every_file_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf8")
    sections = re.findall(r"^### [^\n]*`(\S+)/`\n(.*?)(?=^#)", page, re.MULTILINE | re.DOTALL)
    named = {
        f"{folder}/{name}" for folder, text in sections for name in re.findall(r"^\| (\S+\.py) \|", text, re.MULTILINE)
    }
    files = {
        path.relative_to(ROOT).as_posix()
        for top in ("cips_fast", "kernels", "train")
        for path in (ROOT / top).rglob("*.py")
    }
    assert named == {file for file in files if not file.endswith("__init__.py")}
