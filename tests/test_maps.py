"""The maps in the `__init__.py` of folders: one line for every file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", ["kernels", "kernels/report", "cips_fast/backends"])
def test_a_map_names_every_file_and_no_other(folder):
    path = ROOT / folder
    lines = (path / "__init__.py").read_text(encoding="utf8").splitlines()
    named = [match[1] for line in lines if (match := re.match(r" *(\w+\.py|\w+/)  +\S", line))]
    files = {file.name for file in path.glob("*.py")} - {"__init__.py"}
    folders = {f"{init.parent.name}/" for init in path.glob("*/__init__.py")}
    assert len(named) == len(set(named))
    assert set(named) == files | folders
