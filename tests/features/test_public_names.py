"""`__all__` is what is exported, in every package of the library."""

import importlib
import inspect
import pkgutil

import pytest

import lorakit

EVERY_PACKAGE = ["lorakit"] + [
    module.name for module in pkgutil.walk_packages(lorakit.__path__, "lorakit.") if module.ispkg
]
PACKAGES = [
    name
    for name in EVERY_PACKAGE
    if name != "lorakit.quickstart" and not f"{name}.".startswith("lorakit.cli.")
]
LAZY = [name for name in PACKAGES if hasattr(importlib.import_module(name), "__getattr__")]


@pytest.mark.parametrize("package", EVERY_PACKAGE)
def test_a_package_has_its_public_names_its_modules_and_nothing_stray(package):
    module = importlib.import_module(package)
    inside = {found.name for found in pkgutil.iter_modules(module.__path__)}
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public <= {*getattr(module, "__all__", ()), *inside}


def test_packages_whose_names_are_imported_when_first_used_are_these():
    lazy = ("analysis", "inference", "planning", "serving", "training", "tuning")
    assert ["lorakit", *(f"lorakit.{name}" for name in lazy)] == LAZY


@pytest.mark.parametrize("package", LAZY)
def test_dir_is_the_public_names_and_no_more(package):
    module = importlib.import_module(package)
    listed = {name for name in dir(module) if not (name.startswith("__") and name.endswith("__"))}
    assert listed == set(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_in_all_can_be_imported_and_is_listed_once(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", [p for p in PACKAGES if p != "lorakit"])
def test_nothing_of_lorakit_is_imported_into_a_package_without_being_listed(package):
    module = importlib.import_module(package)
    imported = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and str(getattr(value, "__module__", "")).startswith("lorakit")
    }
    assert imported <= set(module.__all__)


def test_every_public_name_says_what_it_is():
    for name in lorakit.__all__:
        value = getattr(lorakit, name)
        assert inspect.getdoc(value), name


def test_the_public_names_are_sorted():
    assert lorakit.__all__ == sorted(lorakit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lorakit' has no attribute 'add_adpater'"):
        lorakit.add_adpater  # noqa: B018


def test_star_import_gives_the_public_names():
    space = {}
    exec("from lorakit import *", space)
    assert set(lorakit.__all__) <= set(space)
