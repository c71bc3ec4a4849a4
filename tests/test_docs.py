"""What the documents show works, and what they point to is there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_readme_code_gives_the_shapes_it_names():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    claims = re.findall(r"^ *(\w+) = .*?#.*?(\[[\d, ]+\])", code, re.MULTILINE)
    assert [name for name, _ in claims] == ["image", "wide", "some", "y"]
    for name, shape in claims:
        assert str(list(names[name].shape)) == shape


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
