"""Every Python snippet of the README and of docs/ runs as it is printed."""

from __future__ import annotations

import re

import pytest
from paths import ROOT

SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(SNIPPET.findall(page.read_text()))
]


def test_the_readme_has_snippets():
    assert any("torch.ops.customloss.soft_f1" in param.values[0] for param in SNIPPETS)


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(code):
    exec(compile(code, "snippet", "exec"), {})
