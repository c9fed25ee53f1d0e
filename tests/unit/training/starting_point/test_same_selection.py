"""Whether a recipe selects what an adapter has."""

import pytest

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.errors import ConfigError, TargetError
from lorakit.training.starting_point.same_selection import require_same_selection
from tiny_models import TinyNet


@pytest.fixture
def adapter():
    model = TinyNet()
    add_adapter(model, LoraConfig(r=2, target_modules=["up", "down"], bias="lora_only"))
    return Adapter.from_model(model)


def test_nothing_is_compared_without_keys(adapter):
    require_same_selection(TinyNet(), adapter, {}, "runs/a")


def test_other_words_may_select_the_same(adapter):
    require_same_selection(TinyNet(), adapter, {"target_modules": "(.*[.])?(up|down)"}, "runs/a")


def test_what_differs_is_named(adapter):
    with pytest.raises(ConfigError) as caught:
        wanted = {"target_modules": ("up", "embed"), "bias": "none"}
        require_same_selection(TinyNet(), adapter, wanted, "runs/a")
    text = str(caught.value)
    assert "of start_from 'runs/a': got embed, which it does not have and nothing for " in text
    assert "down" in text and "up.bias" in text
    assert "Leave lora.target_modules, lora.bias out, or train a new adapter." in text


def test_a_pattern_that_selects_nothing_is_an_error(adapter):
    with pytest.raises(TargetError):
        require_same_selection(TinyNet(), adapter, {"target_modules": ("upp",)}, "runs/a")
