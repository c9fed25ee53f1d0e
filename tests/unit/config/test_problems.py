"""Every problem of an input, in one message."""

import re

import pytest
from pydantic import Field

from lorakit.config import LoraConfig, QuantizationConfig, StrictConfig
from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError


def problems(values, config=LoraConfig):
    with pytest.raises(ConfigError) as caught:
        config.parse(values, "f")
    return str(caught.value)


def test_an_unknown_key_with_and_without_a_near_one():
    assert problems({"lora_drop": 0.1}) == (
        "In f: unknown key 'lora_drop'. Did you mean 'lora_dropout'?"
    )
    text = problems({"zzz": 1})
    assert text.startswith("In f: unknown key 'zzz'. Known keys: r, lora_alpha, ")
    assert text.endswith("fan_in_fan_out.")


def test_all_problems_are_listed_at_once():
    assert problems({"r": 0, "lora_dropout": 2, "lora_aplha": 1}) == (
        "f has 3 problems:\n"
        "  r: got 0; input should be greater than or equal to 1.\n"
        "  lora_dropout: got 2; input should be less than 1.\n"
        "  unknown key 'lora_aplha'. Did you mean 'lora_alpha'?"
    )


class Inner(StrictConfig):
    size: int = Field(gt=0)
    names: dict[str, float] = {}


class Quantized(StrictConfig):
    inner: QuantizationConfig


class Outer(StrictConfig):
    inner: Inner
    label: str
    other: Inner | None = None


def test_parse_names_the_file_and_nested_keys():
    with pytest.raises(ConfigError) as caught:
        Outer.parse({"inner": {"sise": 1}, "other": {"size": 0}}, "recipe.yaml")
    assert str(caught.value) == (
        "recipe.yaml has 4 problems:\n"
        "  missing key 'inner.size'. Add it.\n"
        "  unknown key 'inner.sise'. Did you mean 'size'?\n"
        "  missing key 'label'. Add it.\n"
        "  other.size: got 0; input should be greater than 0."
    )


class Sources(StrictConfig):
    train: str | list[Inner]


def test_a_list_that_is_wrong_inside_is_not_asked_to_be_a_text():
    with pytest.raises(ConfigError) as caught:
        Sources.parse({"train": [{"size": 0}]}, "recipe.yaml")
    assert (
        str(caught.value) == "In recipe.yaml: train.0.size: got 0; input should be greater than 0."
    )
    with pytest.raises(ConfigError, match="valid string or input should be a valid list"):
        Sources.parse({"train": 3}, "recipe.yaml")


def test_a_section_that_is_no_mapping():
    with pytest.raises(ConfigError, match="In f: inner: got 3; input should be a section of keys"):
        Outer.parse({"inner": 3, "label": "x"}, "f")
    with pytest.raises(ConfigError, match=r"^In f: got 3; input should be "):
        Outer.parse(3, "f")  # type: ignore[arg-type]


def test_a_problem_of_several_keys_begins_with_what_it_says():
    assert problems({"r": 4, "eva_rho": 3.0}) == (
        "In f: eva_rho is a setting of init_lora_weights eva, got init_lora_weights=True; leave "
        "eva_rho out."
    )
    text = problems({"inner": {"bits": 8, "quant_type": "fp4"}}, Quantized)
    assert text.startswith("In f: inner: quant_type and double_quant require bits: 4; ")


def test_long_values_and_many_problems_are_cut_short():
    text = problems(
        {f"key_{n}" + "x" * 5000: "y" * 9000 for n in range(60)} | {"bias": "z" * 10**6}
    )
    assert "has 61 problems" in text and re.search(r"and \d+ more", text) and len(text) < 40_000


def test_parse_returns_the_config():
    assert Outer.parse({"inner": {"size": 1}, "label": "x"}, "f").inner.size == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**400, "a number of 400 digits"),
        (True, "True"),
        ("q" * 300, "'" + "q" * 7 + "… (300 characters)"),
        ([1] * 300, "[1, 1, 1,…"),
    ],
)
def test_values_are_shown_short(value, text):
    assert short_repr(value, most=9) == text


def test_the_name_that_another_tool_uses_is_understood():
    assert problems({"rank": 4}) == "In f: unknown key 'rank'. Did you mean 'r'?"
