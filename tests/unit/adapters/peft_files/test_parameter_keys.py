"""What files say of attentions' output projections, and of experts beside them."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lorakit import Adapter, LoraConfig, add_adapter, load_adapter, save_adapter, set_adapter
from lorakit.adapters import adapter_state_dict, combine_adapters, load_adapter_state_dict
from lorakit.adapters.peft_files.files import WEIGHTS_FILE
from lorakit.errors import AdapterMismatchError
from tiny_models import assert_untouched, mixtral, randomize_, snapshot
from tolerances import LOGITS_TOLERANCE, largest_error


class AttentionsAndLinears(nn.Module):
    """Two attentions and more layers of other kinds, so that these have the most frequent rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.linears = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))

    def forward(self, x):
        for attention in (self.a, self.b):
            x = x + attention(x, x, x, need_weights=False)[0]
        return self.linears(x)


class AttentionAndExperts(nn.Module):
    """An attention before a mixture of experts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.moe = mixtral()


def combined(*attentions):
    """Return a model with an adapter "c" whose output projections have their own scalings."""
    model = AttentionsAndLinears()
    targets = [*attentions, *(f"linears.{i}" for i in range(5))]
    ranks = {name: r for name, r in {"a": 4, "b": 2}.items() if name in attentions}
    add_adapter(model, LoraConfig(r=8, target_modules=targets, rank_pattern=ranks))
    combine_adapters(randomize_(model), {"default": 1.0}, "c", "cat")
    set_adapter(model, "c")
    return model


@pytest.mark.parametrize("by_value", [True, False])
def test_scalings_of_combined_attentions_are_saved(by_value, tmp_path):
    model, again = combined("a", "b"), AttentionsAndLinears()
    if by_value:
        add_adapter(again, Adapter.from_model(model, "c"))
    else:
        save_adapter(model, tmp_path, "c")
        load_adapter(again, tmp_path)
    x = torch.randn(2, 3, 8)
    assert largest_error(again(x), model(x)) < LOGITS_TOLERANCE


@pytest.mark.parametrize(
    "alphas",
    [
        {r"^a\.out_proj": 8.0},
        # The second entry is the one that files imply, but the first is found.
        {"out_proj": 8.0, r"^a\.out_proj": 16.0},
    ],
)
def test_patterns_of_an_output_projection_itself_are_folded(alphas, tmp_path):
    model = AttentionsAndLinears()
    add_adapter(model, LoraConfig(r=2, target_modules=["a"]))
    made = Adapter.from_model(randomize_(model))
    config = made.config.model_copy(update={"alpha_pattern": alphas})
    adapter = dataclasses.replace(made, config=config)
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path)
    for path in adapter.factors:
        assert largest_error(again.delta_weight(path), adapter.delta_weight(path)) < 1e-6


@pytest.mark.parametrize("attentions", ["a", "ab"])
def test_tensors_are_those_of_the_file_and_are_taken_back(attentions, tmp_path):
    model = combined(*attentions)
    save_adapter(model, tmp_path, "c")
    saved, found = load_file(tmp_path / WEIGHTS_FILE), adapter_state_dict(model, "c")
    assert sorted(found) == sorted(saved)
    assert all(torch.equal(found[key], tensor) for key, tensor in saved.items())
    x = torch.randn(2, 3, 8)
    expected = model(x)
    load_adapter_state_dict(randomize_(model, seed=5), saved, "c")
    assert largest_error(model(x), expected) < LOGITS_TOLERANCE


def test_tensors_of_a_rank_the_model_lacks_are_refused():
    model = AttentionsAndLinears()
    add_adapter(model, LoraConfig(r=2, target_modules=["a"]))
    made = Adapter.from_model(randomize_(model))
    A, B = made.factors["a.out_proj"]
    wider = {**made.factors, "a.out_proj": (torch.cat((A, A)), torch.cat((B, B), 1))}
    config = made.config.model_copy(update={"rank_pattern": {r"^a\.out_proj": 4}})
    model = AttentionsAndLinears()
    add_adapter(model, dataclasses.replace(made, factors=wider, config=config))
    tensors = {key: tensor.clone() for key, tensor in adapter_state_dict(model).items()}
    before, x = snapshot(model), torch.randn(2, 3, 8)
    expected = model(x)
    load_adapter_state_dict(model, tensors)
    assert largest_error(model(x), expected) < LOGITS_TOLERANCE
    tensors["base_model.model.a.lora_A.weight"] += 1
    with pytest.raises(AdapterMismatchError, match="at a: got values beyond rank 2"):
        load_adapter_state_dict(model, tensors)
    assert_untouched(model, before)


def test_short_names_of_experts_do_not_match_an_attention(tmp_path):
    model = AttentionAndExperts()
    add_adapter(
        model,
        LoraConfig(
            r=3,
            target_modules=["attn", "q_proj"],
            target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        ),
    )
    made = Adapter.from_model(randomize_(model))
    assert "gate_up_proj" in made.config.target_parameters
    made.save(tmp_path)
    again = Adapter.load(tmp_path)
    assert set(again.factors) == set(made.factors)
    for path, pair in made.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(again.factors[path], pair, strict=True))
    load_adapter(AttentionAndExperts(), tmp_path)
