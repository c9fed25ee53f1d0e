"""What pyproject.toml declares is what the sources import, and what constraints.txt pins."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import lorakit
from lorakit.libraries.extras import EXTRA_OF

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_USERS = ("quantization", "metrics", "tune", "gguf", "serve", "serve-ray", "studio")
HELD_TO_A_MINOR = ("transformers", "trl", "accelerate")


def plain(name):
    return name.lower().replace("_", "-").partition("[")[0]


def requirements(*groups):
    return [Requirement(text) for group in groups for text in group]


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {plain(name): Version(version) for name, version in pairs}


def imported_modules():
    """Yield the top-level modules that the sources import, with the file, at any depth."""
    for path in (ROOT / "src" / "lorakit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0], path


@pytest.mark.parametrize("name", HELD_TO_A_MINOR)
def test_a_library_whose_inside_is_used_is_held_to_one_minor_version(name):
    (found,) = [one for one in requirements(PROJECT["dependencies"]) if one.name == name]
    bounds = {one.operator: Version(one.version) for one in found.specifier}
    oldest, newest = bounds[">="], bounds["<"]
    assert (newest.major, newest.minor) == (oldest.major, oldest.minor + 1)


def test_the_pinned_versions_are_within_the_declared_bounds():
    pinned = pins()
    for requirement in requirements(PROJECT["dependencies"], *EXTRAS.values()):
        if requirement.name == "lorakit":
            continue
        assert plain(requirement.name) in pinned, f"constraints.txt has no {requirement.name}"
        assert pinned[plain(requirement.name)] in requirement.specifier, requirement


def test_every_package_that_is_imported_is_declared():
    declared = {
        plain(one.name)
        for one in requirements(PROJECT["dependencies"], *(EXTRAS[name] for name in FOR_USERS))
    }
    distributions = packages_distributions()
    # These come with a declared one: numpy with torch, pyarrow with datasets, the hub with trl,
    # starlette with fastapi, markdown2 with nicegui.
    come_along = {
        "numpy",
        "huggingface-hub",
        "tokenizers",
        "jinja2",
        "triton",
        "packaging",
        "pyarrow",
        "pydantic-core",
        "starlette",
        "markdown2",
    }
    missing = {
        (module, path.name)
        for module, path in imported_modules()
        if module not in sys.stdlib_module_names and module != "lorakit"
        if not {plain(name) for name in distributions.get(module, [module])}
        & (declared | come_along)
    }
    assert not missing


def test_every_extra_for_users_is_named_where_its_package_is_missing():
    distributions = packages_distributions()
    for module, extra in EXTRA_OF.items():
        assert distributions[module][0].lower().replace("_", "-") in {
            plain(one.name) for one in requirements(EXTRAS[extra])
        }
    assert set(EXTRA_OF.values()) == set(FOR_USERS) - {"serve-ray"}  # Ray is of two extras


def test_dev_includes_every_extra_for_users():
    (itself,) = [one for one in requirements(EXTRAS["dev"]) if one.name == "lorakit"]
    assert itself.extras == set(FOR_USERS)


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert Version(lorakit.__version__)
