"""Kernels and blocks that factors must share with those they replace."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    hotswap_adapter,
)
from lorakit.adapters.on_model.compatible_layers import require_like_layers
from lorakit.errors import (
    AdapterMismatchError,
)
from tiny_models import (
    gpt2,
    logits,
)
from tiny_models.adapted import with_adapter


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 4}, "mixes 3 slices that are adapted separately"),
        ({"r": 1, "enable_lora": [True, False, True]}, "has rank 2 in all its blocks, expected 4"),
    ],
)
def test_factors_without_those_parts_are_refused_and_nothing_changes(options, said):
    options = {"target_modules": ["c_attn"]} | options
    if "enable_lora" in options:
        options["enable_lora"] = {"c_attn": options["enable_lora"]}
    model = with_adapter(
        gpt2, enable_lora={"c_attn": [True, False, True]}, target_modules=["c_attn"]
    )
    before = logits(model)
    new = Adapter.from_model(with_adapter(gpt2, seed=2, **options))
    with pytest.raises(AdapterMismatchError, match=said):
        hotswap_adapter(model, new)
    assert torch.equal(logits(model), before)


def test_every_module_with_another_kernel_is_counted_and_modules_without_factors_are_not_asked():
    model = with_adapter(
        nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(4, 4)),
        target_modules=["0", "1", "2"],
    )
    same = Adapter.from_model(model)
    require_like_layers(model, same, "default")
    other = replace(same, convolutions={})
    with pytest.raises(AdapterMismatchError) as caught:
        require_like_layers(model, other, "default")
    assert str(caught.value) == (
        "The new adapter cannot replace 'default': 0 has another kernel, or other groups of "
        "channels; 1 more. Load it under another name."
    )
    require_like_layers(model, replace(other, factors={"2": same.factors["2"]}), "default")
