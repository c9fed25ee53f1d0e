"""What the base alone reads, and its gradients, seen on batches."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.adapters.on_model.data_passes import input_components, mean_gradients
from lorakit.errors import DataError
from lorakit.injection.state import adapted_layers
from tiny_models import gpt2, llama, padded_batches, randomize_
from tolerances import largest_error


def adapted(model, *targets):
    """Return a model with an adapter that must not act, and its adapted layers by path."""
    add_adapter(model, LoraConfig(r=2, target_modules=targets or None))
    return randomize_(model), dict(adapted_layers(model))


def directions(model, layers, batches, count=2):
    sums, leaders = input_components(model, layers, batches, dict.fromkeys(layers, count))
    return {path: sums[leaders[path]].result()[0] for path in leaders}, leaders


def test_padding_and_labels_that_do_not_count_are_left_out():
    found = []
    for filler in (0, 7):
        batches = padded_batches()
        for batch in batches:
            batch["input_ids"][batch["attention_mask"] == 0] = filler
        made, _ = directions(*adapted(llama(), "q_proj"), batches)
        found.append(made["model.layers.0.self_attn.q_proj"])
    assert torch.equal(*found)


def test_layers_that_read_the_same_share_the_components_that_the_widest_wants():
    model, layers = adapted(llama(), "q_proj", "k_proj", "down_proj")
    first = "model.layers.0.self_attn."
    wanted = dict.fromkeys(layers, 1) | {first + "k_proj": 3}
    sums, leaders = input_components(model, layers, padded_batches(), wanted)
    assert leaders[first + "k_proj"] == leaders[first + "q_proj"] == first + "q_proj"
    assert sums.keys() == set(leaders.values()) and len(sums) == 4
    assert sums[first + "q_proj"].result()[0].shape[0] == 3


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_mean_gradient_is_that_of_the_weight_of_the_base(build):
    model, layers = adapted(build())
    found = mean_gradients(model, layers, padded_batches(), None)
    plain = build()
    for batch in padded_batches():
        (plain(**batch).loss / 3).backward()
    assert found.keys() == layers.keys()
    for path, gradient in found.items():
        expected = plain.get_submodule(path).weight.grad
        expected = expected.t() if build is gpt2 else expected
        assert largest_error(gradient, expected) < 1e-5, path


def test_without_a_mask_every_position_counts_and_nothing_stays_on_the_model():
    model, layers = adapted(nn.Sequential(nn.Linear(4, 4)).train(), "0")
    x = torch.randn(3, 5, 4)
    found, _ = directions(model, layers, [x])
    centred = x.reshape(-1, 4).double() - x.reshape(-1, 4).double().mean(0)
    expected = torch.linalg.svd(centred)[2][:2]
    assert largest_error((found["0"].double() @ expected.T).abs(), torch.eye(2).double()) < 1e-4
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora" in n)


def test_batches_and_losses_that_are_not_there_are_asked_for():
    model, layers = adapted(nn.Sequential(nn.Linear(4, 4)), "0")
    with pytest.raises(DataError, match="got no batches, expected at least one"):
        input_components(model, layers, [], {"0": 1})
    with pytest.raises(DataError, match="output has no loss, expected batches with labels"):
        mean_gradients(model, layers, [torch.ones(1, 4)], None)
    assert not any(m._forward_hooks for m in model.modules())
