"""tests/unit mirrors the packages: each module has a file of tests, and each file a module."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "lorakit"
UNIT = ROOT / "tests" / "unit"
NOT_YET = {"layers", "ops"}
"""Packages of which some modules have no tests yet."""


def has_source(test: Path) -> bool:
    """Whether test_<name>.py stands where <name>.py, __<name>__.py or <name>/ stands."""
    folder = test.relative_to(UNIT).parent
    name = test.stem.removeprefix("test_")
    candidates = (f"{name}.py", f"__{name}__.py", f"{name}/__init__.py")
    return any(
        (sources / folder / candidate).is_file()
        for sources in (ROOT, SOURCES)
        for candidate in candidates
    )


def test_every_unit_test_is_of_a_module_or_a_package():
    files = sorted(UNIT.rglob("test_*.py"))
    assert files
    assert [str(file.relative_to(ROOT)) for file in files if not has_source(file)] == []


def test_the_long_files_that_are_tested_first_exist():
    files = re.findall(r'^    "(.+)",$', (ROOT / "tests/conftest.py").read_text(), re.MULTILINE)
    assert files
    assert [name for name in files if not (ROOT / "tests" / name).is_file()] == []


def test_a_test_without_a_module_is_found():
    assert not has_source(UNIT / "ops" / "test_absent.py")
    assert not has_source(UNIT / "layers" / "test_low_rank.py")
    assert has_source(UNIT / "ops" / "test_low_rank.py")


def file_of(module: Path) -> Path:
    """Return where the tests of a module stand."""
    return UNIT / module.relative_to(SOURCES).parent / f"test_{module.name}"


def test_every_module_has_unit_tests():
    modules = [path for path in sorted(SOURCES.rglob("*.py")) if not path.name.startswith("__")]
    assert modules
    missing = [file_of(path).relative_to(UNIT) for path in modules if not file_of(path).is_file()]
    assert [str(path) for path in missing if path.parts[0] not in NOT_YET] == []
