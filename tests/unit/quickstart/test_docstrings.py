import json
from collections import Counter

import pytest

from lorakit.errors import DataError
from lorakit.quickstart.docstrings import (
    Docstring,
    collect_docstrings,
    split_docstrings,
    write_docstrings,
    write_splits,
)

LONG = "Return something long enough to count"


def write(root, path, source):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        file.write_bytes(source)
    else:
        file.write_text(source, encoding="utf-8")


@pytest.fixture
def fake_stdlib(tmp_path):
    write(tmp_path, "alone.py", f'"""{LONG}: a module without a package."""')
    write(tmp_path, "nopackage/module.py", f'"""{LONG}: a folder without __init__."""')
    write(tmp_path, "test/__init__.py", f'"""{LONG}: tests."""')
    write(tmp_path, "site-packages/other/__init__.py", f'"""{LONG}: others."""')
    write(
        tmp_path,
        "alpha/__init__.py",
        f'''"""{LONG}: alpha.

    Indented by four.
    """

class Thing:
    """{LONG}: a class."""

    def method(self):
        """{LONG}: a method."""
        def inner():
            """{LONG}: a nested function."""

    async def wait(self):
        r"""{LONG}: a coroutine \\d."""

def short():
    """Too short."""

def twice():
    """{LONG}: a method."""

def nothing():
    "\\d is an invalid escape, and these words are long enough"

def shared():
    """{LONG}: said in two packages."""
''',
    )
    write(tmp_path, "alpha/tests/test_a.py", f'"""{LONG}: tests of alpha."""')
    write(tmp_path, "alpha/idle_test/a.py", f'"""{LONG}: tests of alpha, too."""')
    write(tmp_path, "alpha/broken.py", "def (:\n")
    write(tmp_path, "alpha/nulls.py", b"x = 1\x00")
    write(tmp_path, "alpha/latin.py", b'# coding: latin-1\n"""' + b"\xe9" * 30 + b'"""')
    write(tmp_path, "alpha/deep/module.py", f'"""{LONG}: deep inside alpha."""')
    write(tmp_path, "beta/__init__.py", "")
    write(tmp_path, "beta/code.py", f'def f():\n    """{LONG}: said in two packages."""')
    write(tmp_path, "beta/more.py", f'def f():\n    """{LONG}: beta."""')
    return tmp_path


def rows_of(counts):
    return [
        Docstring(f"{label} says {number}", label)
        for label, count in counts.items()
        for number in range(count)
    ]


def test_collects_packages_only_cleaned_unique_and_unshared(fake_stdlib):
    rows = collect_docstrings(fake_stdlib)
    texts = {row.text.removeprefix(f"{LONG}: ") for row in rows if row.label == "alpha"}
    assert texts == {
        "alpha.\n\nIndented by four.",
        "a class.",
        "a method.",
        "a nested function.",
        "a coroutine \\d.",
        "\\d is an invalid escape, and these words are long enough",
        "é" * 30,
        "deep inside alpha.",
    }
    assert [row.text for row in rows if row.label == "beta"] == [f"{LONG}: beta."]
    assert len(rows) == 9


def test_imports_nothing(tmp_path):
    write(tmp_path, "trap/__init__.py", f'"""{LONG}."""\nraise SystemExit("imported")\n')
    assert [row.label for row in collect_docstrings(tmp_path)] == ["trap"]


def test_a_python_without_sources_is_an_error(fake_stdlib, tmp_path):
    with pytest.raises(DataError, match=r"got 2 packages .* \.py files"):
        split_docstrings(collect_docstrings(fake_stdlib))
    with pytest.raises(DataError, match="got 0 packages"):
        split_docstrings(collect_docstrings(tmp_path / "not-there"))


def test_keeps_the_ten_largest_packages_with_ties_by_name():
    counts = {f"p{number:02}": 40 - number for number in range(8)} | dict.fromkeys("zyxw", 20)
    splits = split_docstrings(rows_of(counts))
    assert splits.labels == (*(f"p{number:02}" for number in range(8)), "w", "x")
    assert {row.label for row in splits.train} == set(splits.labels)


def test_splits_are_disjoint_stratified_and_deterministic():
    rows = rows_of({f"p{number}": 40 * (number + 1) for number in range(10)})
    splits = split_docstrings(rows, validation_share=0.25, seed=3)
    assert splits == split_docstrings(rows, validation_share=0.25, seed=3)
    assert splits != split_docstrings(rows, validation_share=0.25, seed=4)
    assert {*splits.train, *splits.validation} == set(rows)
    assert len(splits.train) + len(splits.validation) == len(rows)
    assert Counter(row.label for row in splits.validation) == {
        f"p{number}": 10 * (number + 1) for number in range(10)
    }


def test_the_cap_keeps_the_shares_of_the_classes():
    rows = rows_of({f"p{number}": 40 * (number + 1) for number in range(10)})
    splits = split_docstrings(rows, max_rows=550, validation_share=0.2)
    assert (len(splits.train), len(splits.validation)) == (440, 110)
    assert Counter(row.label for row in splits.train + splits.validation) == {
        f"p{number}": 10 * (number + 1) for number in range(10)
    }
    assert len(split_docstrings(rows, max_rows=9999).train) == 1760


def test_too_few_rows_for_the_classes_is_an_error():
    rows = rows_of({f"p{number}": 5 for number in range(10)})
    with pytest.raises(DataError, match=r"max_rows=12 .* Raise max_rows"):
        split_docstrings(rows, max_rows=12)


def test_files_hold_the_rows_and_nothing_is_left_over(tmp_path):
    rows = rows_of({f"p{number}": 8 for number in range(10)})
    rows[0] = Docstring('Zeilen\nmit "Ümlaut" und \u2028 Trenner', "p0")
    splits = split_docstrings(rows)
    files = write_splits(splits, tmp_path / "new" / "data")
    for path, kept in ((files.train, splits.train), (files.validation, splits.validation)):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [Docstring(**json.loads(line)) for line in lines] == list(kept)
    assert files.labels == splits.labels
    assert sorted(path.name for path in files.train.parent.iterdir()) == [
        "train.jsonl",
        "validation.jsonl",
    ]


def test_this_python_has_a_task(tmp_path):
    rows = collect_docstrings()
    assert len({row.text for row in rows}) == len(rows)
    splits = split_docstrings(rows, max_rows=1000, seed=1)
    assert len(splits.labels) == 10
    assert {row.label for row in splits.validation} == set(splits.labels)
    assert not {row.text for row in splits.train} & {row.text for row in splits.validation}


def test_in_one_go_is_the_same_as_step_by_step(fake_stdlib, tmp_path):
    for number in range(10):
        for row in range(9):
            write(fake_stdlib, f"p{number}/m{row}.py", f'"""{LONG}: {number}, {row}."""')
        write(fake_stdlib, f"p{number}/__init__.py", f'"""{LONG}: the package {number}."""')
    at_once = write_docstrings(tmp_path / "a", max_rows=60, seed=5, stdlib=fake_stdlib)
    splits = split_docstrings(collect_docstrings(fake_stdlib), max_rows=60, seed=5)
    by_step = write_splits(splits, tmp_path / "b")
    assert at_once.train.read_bytes() == by_step.train.read_bytes()
    assert at_once.validation.read_bytes() == by_step.validation.read_bytes()
    assert len(by_step.train.read_text().splitlines()) == 48
