"""Folders with several adapters."""

import pytest
import torch
from torch import nn

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.adapters import adapters_in, load_adapters, save_adapters
from lorakit.errors import AdapterMismatchError, AdapterNameError, MissingFileError
from lorakit.injection import active_adapters, adapter_names
from tiny_models import TinyNet, assert_untouched, randomize_, snapshot


def carrying():
    model = TinyNet()
    for number, name in enumerate(("default", "topic", "tone")):
        add_adapter(model, LoraConfig(r=1 + number, target_modules=["up"]), name)
        randomize_(model, seed=number)
    return model


def test_they_are_written_in_sub_folders_and_read_back(tmp_path):
    model = carrying()
    written = save_adapters(model, tmp_path)
    assert len(written) == 6 and all(path.is_file() for path in written)
    assert adapters_in(tmp_path) == {
        "default": tmp_path,
        "tone": tmp_path / "tone",
        "topic": tmp_path / "topic",
    }
    other = TinyNet()
    added = load_adapters(other, tmp_path)
    assert set(added) == set(adapter_names(other)) == {"default", "topic", "tone"}
    for name in added:
        first, second = (Adapter.from_model(m, name) for m in (model, other))
        for path in first.factors:
            assert torch.equal(first.delta_weight(path), second.delta_weight(path))


def test_some_of_them(tmp_path):
    save_adapters(carrying(), tmp_path, ["topic", "tone"])
    assert set(adapters_in(tmp_path)) == {"topic", "tone"}
    model = TinyNet()
    load_adapters(model, tmp_path, ["tone"])
    assert adapter_names(model) == ("tone",)
    with pytest.raises(MissingFileError, match=r"No adapter named 'tune'.*one of tone, topic"):
        load_adapters(model, tmp_path, ["tune"])


def test_unknown_names_write_nothing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(AdapterNameError, match="No adapter is named 'x'"):
        save_adapters(carrying(), tmp_path / "out", ["topic", "x"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingFileError, match="No adapter in"):
        adapters_in(tmp_path)


def test_a_folder_whose_name_has_a_dot_is_no_adapters_name(tmp_path):
    model = carrying()
    save_adapters(model, tmp_path, ["topic"])
    (tmp_path / "topic").rename(tmp_path / "v1.2")
    before = snapshot(model)
    with pytest.raises(AdapterNameError, match=r"'v1\.2' cannot name an adapter"):
        load_adapters(model, tmp_path)
    assert_untouched(model, before)


def test_one_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    save_adapters(carrying(), tmp_path, ["tone", "topic"])
    wide = TinyNet(width=12)
    add_adapter(wide, LoraConfig(target_modules=["up"]), "zone")
    save_adapters(wide, tmp_path)
    model = TinyNet()
    add_adapter(model, LoraConfig(target_modules=["down"]), "mine")
    before = snapshot(model)
    with pytest.raises(AdapterMismatchError):
        load_adapters(model, tmp_path)
    assert active_adapters(model) == ("mine",)
    assert_untouched(model, before)
    bare = TinyNet()
    before = snapshot(bare)
    with pytest.raises(AdapterMismatchError):
        load_adapters(bare, tmp_path)
    assert_untouched(bare, before)
    assert isinstance(bare, nn.Module)
