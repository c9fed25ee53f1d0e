"""Mixtures of adapters: those of `combine`, kept while they may be tried."""

import shutil

import pytest
import torch

from lorakit.adapters import Adapter, combine
from lorakit.errors import ConfigError, LorakitError, MissingFileError
from lorakit.runs import mixtures
from lorakit.runs.adapters import find_adapters
from lorakit.runs.mixtures import (
    labelling_adapter,
    mixture_name,
    mixture_place,
    read_mixture,
    write_mixture,
)


@pytest.fixture
def adapters(adapter_folder):
    return {name: adapter_folder / name for name in ("german", "french")}


def test_a_mixture_is_what_combine_makes(tmp_path, adapters):
    place = write_mixture(tmp_path, adapters, {"german": 0.5, "french": -1.0})
    made = Adapter.load(place / "adapter")
    loaded = {name: Adapter.load(path) for name, path in adapters.items()}
    expected = combine(loaded, {"german": 0.5, "french": -1.0})
    for path, (a, b) in expected.factors.items():
        assert torch.equal(made.factors[path][0], a) and torch.equal(made.factors[path][1], b)
    assert read_mixture(place) == "0.5 german − 1 french"
    assert find_adapters(tmp_path) == []


def test_the_same_sliders_make_it_once_and_old_ones_go(tmp_path, adapters, monkeypatch):
    monkeypatch.setattr(mixtures, "_KEPT", 2)
    first = write_mixture(tmp_path, adapters, {"german": 1.0, "french": 0.0})
    assert write_mixture(tmp_path, adapters, {"german": 1.0}) == first
    for weight in (0.25, 0.5):
        write_mixture(tmp_path, adapters, {"german": weight})
    assert len(list(first.parent.iterdir())) == 2 and not first.exists()


def test_nothing_and_what_does_not_fit_are_refused(tmp_path, adapters, adapter_folder):
    with pytest.raises(ConfigError, match="got weights of 0 alone"):
        write_mixture(tmp_path, adapters, {"german": 0.0})
    with pytest.raises(LorakitError):
        write_mixture(
            tmp_path, {**adapters, "mood": adapter_folder / "mood"}, {"german": 1, "mood": 1}
        )
    assert not list(tmp_path.glob(".lorakit/mixtures/*"))


@pytest.mark.parametrize("content", [None, '{"weights": [1]}', "{", '{"weights": {"a": "x"}}'])
def test_a_directory_of_something_else_is_no_mixture(tmp_path, content):
    if content is not None:
        (tmp_path / "mixture.json").write_text(content)
    with pytest.raises(MissingFileError, match=r"No mixture in .*Combine the adapters again"):
        read_mixture(tmp_path)


def test_the_head_is_that_of_one_adapter(tmp_path, adapter_folder):
    other = shutil.copytree(adapter_folder / "mood", tmp_path / "other")
    adapters = {"mood": adapter_folder / "mood", "other": other}
    place = write_mixture(tmp_path, adapters, {"mood": 0.5, "other": 0.5}, heads_from="mood")
    made, mood = Adapter.load(place / "adapter"), Adapter.load(adapters["mood"])
    assert all(torch.equal(made.replaced[name], mood.replaced[name]) for name in mood.replaced)
    assert (place / "adapter" / "lorakit.json").is_file()
    assert labelling_adapter(place / "adapter") == "mood"
    assert labelling_adapter(adapter_folder / "mood") is None


def test_names_of_mixtures(tmp_path):
    assert mixture_name({"a": -2}) == "−2 a"
    with pytest.raises(MissingFileError, match=r"No mixture '\.\./x'"):
        mixture_place(tmp_path, "../x")
