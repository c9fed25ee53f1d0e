"""What operations refuse, and the target modules of their results."""

from dataclasses import replace

import pytest
import torch

from lorakit import Adapter, LoraConfig
from lorakit.adapters import combine
from lorakit.adapters.operations.requirements import (
    list_whole_paths,
    require_base_independent,
    require_low_rank,
)
from lorakit.errors import (
    AdapterFileError,
)
from lorakit.layers import KernelShape
from tiny_models.adapters import adapter_of, layered_adapter, random_factors


def test_numbers_that_are_not_finite_are_refused():
    A, B = random_factors(2, 4, 4)
    A[0, 0] = float("nan")
    with pytest.raises(AdapterFileError, match="Cannot combine a: m has NaN"):
        combine({"a": adapter_of({"m": (A, B)})}, {"a": 1.0})


def test_a_feature_nobody_taught_the_operations_is_refused_by_name():
    from dataclasses import dataclass, field

    @dataclass(frozen=True)
    class WithMore(Adapter):
        shifts: dict = field(default_factory=dict)

    plain = layered_adapter()
    odd = WithMore(plain.config, plain.factors, shifts={"m": torch.ones(2)})
    with pytest.raises(AdapterFileError, match="Cannot combine b: got shifts"):
        combine({"a": plain, "b": odd}, {"a": 1, "b": 1})


def test_settings_that_are_more_than_a_product_are_named_with_the_next_step():
    adapter = layered_adapter(trainable_token_indices=[1, 2])
    with pytest.raises(AdapterFileError) as caught:
        require_low_rank(adapter, "resize", "mine", "Do that.")
    assert str(caught.value) == (
        "Cannot resize mine: got trainable_token_indices=(1, 2), expected updates that are exactly "
        "s B A. Do that."
    )
    for supported in ({"use_rslora": True}, {"init_lora_weights": "eva", "eva_rho": 2}):
        require_low_rank(layered_adapter(**supported), "resize", "mine")


def test_stacked_factors_are_taken_where_that_is_said():
    adapter = adapter_of(
        {"m.experts": (torch.ones(2, 4, 8), torch.ones(2, 8, 4))}, target_parameters=["experts"]
    )
    with pytest.raises(AdapterFileError, match=r"factors of shape \(2, 4, 8\) and \(2, 8, 4\)"):
        require_low_rank(adapter, "combine", "mine")
    stacked = replace(adapter, config=adapter.config.model_copy(update={"r": 4}))
    assert stacked.stacked == {"m.experts"}
    require_low_rank(stacked, "combine", "mine", takes_stacked=True)


def test_groups_of_channels_and_a_base_that_peft_changed_are_refused():
    grouped = replace(
        adapter_of({"conv": random_factors(2, 6, 4)}),
        convolutions={"conv": KernelShape(4, (3,), 2)},
    )
    with pytest.raises(AdapterFileError, match="got 2 groups of channels at conv"):
        require_low_rank(grouped, "combine", "mine")
    with pytest.raises(AdapterFileError, match="got init_lora_weights='pissa', with which the up"):
        require_base_independent(layered_adapter(init_lora_weights="pissa"), "combine", "mine")
    require_base_independent(layered_adapter(init_lora_weights="gaussian"), "combine", "mine")


def test_targets_are_whole_paths_in_the_form_of_the_configuration():
    paths = dict.fromkeys(["b.q", "attn.out_proj", "attn", "other.out_proj"])
    names = ("attn", "b.q", "other.out_proj")
    assert list_whole_paths(paths, LoraConfig(target_modules=["q"])) == names
    assert list_whole_paths(paths, LoraConfig(target_modules="all-linear")) == names
    regex = list_whole_paths(paths, LoraConfig(target_modules=".*q"))
    assert regex == r"b\.q|attn|other\.out_proj"
