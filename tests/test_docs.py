"""What the documents show works, and what they point to is there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


CODE = {
    "README.md": ["image", "wide", "some", "fast", "y"],
    "docs/rendering.md": ["image", "tile", "some", "colours", "painted", "blend"],
}


@pytest.mark.parametrize(("page", "claimed"), CODE.items(), ids=CODE)
def test_code_gives_the_shapes_it_names(page, claimed):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    claims = re.findall(r"^ *(\w+) = .*?#[^\[\n]*(\[[\d, ]+\])", code, re.MULTILINE)
    assert [name for name, _ in claims] == claimed
    for name, shape in claims:
        assert str(list(names[name].shape)) == shape


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
