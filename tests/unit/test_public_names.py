"""`__all__` is what is exported, in every package of the library."""

import importlib
import inspect
import pkgutil

import pytest

import lorakit

PACKAGES = ["lorakit"] + [
    f"lorakit.{module.name}"
    for module in pkgutil.iter_modules(lorakit.__path__)
    if module.ispkg and module.name not in ("cli", "quickstart")
]


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


def test_all_is_what_the_lazy_table_holds():
    assert set(lorakit.__all__) == set(lorakit._ORIGIN_OF)
    assert lorakit.__all__ == sorted(lorakit.__all__)
    assert set(lorakit.__all__) <= set(dir(lorakit))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lorakit' has no attribute 'add_adpater'"):
        lorakit.add_adpater  # noqa: B018


def test_star_import_gives_the_public_names():
    space = {}
    exec("from lorakit import *", space)
    assert set(lorakit.__all__) <= set(space)
