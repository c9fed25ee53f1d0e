"""Blocks in docs/ that quote a file consist of lines of that file, in its order."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUOTE = re.compile(r"```python\n# from (\S+)\n(.*?)```", re.DOTALL)
QUOTES = [
    (page.name, source, block)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for source, block in QUOTE.findall(page.read_text(encoding="utf-8"))
]


def test_there_are_quotes_to_check():
    assert len(QUOTES) >= 7


@pytest.mark.parametrize(("page", "source", "block"), QUOTES)
def test_quoted_lines_stand_in_the_file(page, source, block):
    lines = iter((ROOT / source).read_text(encoding="utf-8").splitlines())
    for quoted in block.splitlines():
        assert quoted in lines, f"{page} quotes a line that {source} does not have: {quoted!r}"


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_examples_about_quantisation_give_what_the_page_says():
    page = ROOT / "docs" / "quantization.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted >= 15 and results.failed == 0
