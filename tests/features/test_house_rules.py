"""Rules of the repository that no linter knows: lengths, reasons, words to avoid, and the C."""

import re
import subprocess
from pathlib import Path

import pytest

from lorakit.ops.native import compiled_library

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FOLDERS = ("src", "tests", "benchmarks", "tools")
PYTHON = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TEXTS = [*SOURCES, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
C_SOURCES = sorted((ROOT / "src").rglob("*.c"))
MOST_LINES = 400
FEW_LINES, MOST_SMALL_FILES = 40, 15
REASON = re.compile(r"type: ignore\[[^]]+\]  # \S")
AVOIDED = re.compile(
    r"\b(anew|in place of|is no valid|of (its|their|his) own|as ever|without a word)\b|"
    r'"""Of [a-z]|\bown\b *(=|:=|: Any =)'
)


def lines_of(path):
    return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))


def test_no_file_is_too_long_to_read():
    lengths = {str(path.relative_to(ROOT)): len(lines_of(path)) for path in PYTHON}
    assert {name.partition("/")[0] for name in lengths} == set(FOLDERS)
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_few_sources_are_small():
    """A file with few lines is to be joined with its nearest relative."""
    modules = [path for path in SOURCES if path.name != "__init__.py"]
    small = [str(path.relative_to(ROOT)) for path in modules if len(lines_of(path)) < FEW_LINES]
    assert len(small) <= MOST_SMALL_FILES, small


def test_an_ignored_type_has_its_reason_in_the_line():
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in lines_of(path)
        if "type: ignore" in line and not REASON.search(line)
    ]


def test_words_that_cost_readers_time_are_avoided():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in lines_of(path)
        if AVOIDED.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["begins anew", "a model of its own", '"""Of the rows', "own = 3", "own: Any = layer"]
)
def test_the_search_for_words_finds(text):
    assert AVOIDED.search(text)
    assert not AVOIDED.search("its own model, known = 3")


@pytest.mark.parametrize("source", C_SOURCES, ids=lambda path: path.name)
def test_a_compiler_has_nothing_to_remark(source):
    compiler = compiled_library._compiler()
    if compiler is None:
        pytest.skip("there is no gcc")
    flags = [*compiled_library._FLAGS, "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only"]
    words = [compiler, *flags, str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
