import sys
import types

import pytest

from lorakit.libraries.lazy_names import lazy_names


@pytest.fixture
def package(monkeypatch):
    made = types.ModuleType("made")
    monkeypatch.setitem(sys.modules, "made", made)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    made.__getattr__, made.__dir__ = lazy_names("made", {"wave": ("Error",), "json": ("dumps",)})
    return made


def test_a_module_is_imported_when_a_name_of_it_is_used(package):
    assert "wave" not in sys.modules
    assert package.Error is sys.modules["wave"].Error


def test_another_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="module 'made' has no attribute 'loads'"):
        package.loads  # noqa: B018


def test_dir_lists_the_names_and_the_module_s_attributes(package):
    assert {"Error", "dumps", "__name__"} <= set(dir(package))
