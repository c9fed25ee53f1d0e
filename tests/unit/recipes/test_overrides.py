"""Dotted overrides of the keys of a mapping."""

import pytest

from lorakit.errors import ConfigError
from lorakit.recipes.overrides import apply_overrides, section_at


def test_values_are_yaml_and_sections_are_made_where_there_are_none():
    values = {"lora": None, "data": {"train": "a.csv"}}
    apply_overrides(["lora.r=8", "data.new_tokens=[<a>]", "a.b=null"], values)
    assert values == {
        "lora": {"r": 8},
        "data": {"train": "a.csv", "new_tokens": ["<a>"]},
        "a": {"b": None},
    }


def test_a_pattern_takes_the_rest_of_a_key_as_the_name_of_modules():
    values = {}
    overrides = ["lora.rank_pattern.layers.0.q_proj=4", "lora.alpha_pattern={a.b: 2}"]
    apply_overrides([*overrides, "lora.alpha_pattern.c.d=3"], values)
    assert values["lora"]["rank_pattern"] == {"layers.0.q_proj": 4}
    assert values["lora"]["alpha_pattern"] == {"a.b": 2, "c.d": 3}


def test_a_mark_alone_is_a_text():
    values = {}
    apply_overrides(["a=|", "b= : ", "c=,", "d=-", "e=#", "f=~", "g=;"], values)
    assert values == {"a": "|", "b": ":", "c": ",", "d": "-", "e": "#", "f": None, "g": ";"}


def test_overrides_that_cannot_be_applied_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        apply_overrides(["lora.r", "model.name=x", "lora.r=[", ".=1"], {"model": "m"})
    assert str(caught.value).splitlines() == [
        "Cannot apply the overrides: got 'lora.r', expected key=value such as lora.r=16.",
        "  got 'model.name=x', but model is a value, not a section.",
        "  Cannot read the override 'lora.r=[', line 1, column 2: expected the node content, but "
        "found '<stream end>'. Check the indentation and quotes there.",
        "  got '.=1', expected key=value such as lora.r=16.",
    ]


def test_the_value_in_the_way_of_a_key_is_named():
    values = {"a": {"b": 1}}
    assert section_at(values, ["a", "c"]) == ({"b": 1}, None)
    assert section_at(values, ["a", "b", "c"])[1] == "a.b"
