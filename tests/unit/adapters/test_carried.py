"""Adapters that a model carries: what saving them refuses."""

import pytest

from lorakit import LoraConfig, add_adapter, merge_adapters, save_adapter, unmerge_adapters
from lorakit.errors import AdapterStateError
from tiny_models import TinyNet, randomize_


def test_saving_while_merged_is_refused(tmp_path):
    model = TinyNet()
    add_adapter(model, LoraConfig(r=2))
    randomize_(model)
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match=r"Cannot save an adapter while .* are merged"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    unmerge_adapters(model)
    save_adapter(model, tmp_path / "adapter")
