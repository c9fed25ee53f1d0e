"""Combining adapters gives what PEFT's add_weighted_adapter gives, to equal outputs."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

from lorakit import combine_adapters, load_adapter, save_adapter
from tiny_models import gpt2, llama, logits, randomize_
from tolerances import LOGITS_TOLERANCE, largest_error

TOLERANCE = 1e-5
BUILDS = {
    "llama": (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "o_proj"]}),
}
METHODS = {
    "linear": {},
    "cat": {},
    "svd": {"rank": 5},
    "ties": {"density": 0.4},
    "magnitude_prune": {"density": 0.6},
    "ties_svd": {"density": 0.4, "rank": 4},
    "magnitude_prune_svd": {"density": 0.6, "rank": 4},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "dare_linear_svd": {"density": 0.5, "rank": 4},
    "dare_ties_svd": {"density": 0.5, "rank": 4},
}
WEIGHTS = {
    "both added": {"first": 0.7, "second": 0.4},
    "one subtracted": {"first": 1.3, "second": -0.6},
}


def striped(input, generator=None):
    """Return a fixed mask instead of a random one, so that both tools drop the same elements.

    It is the same for a transposed matrix, as PEFT keeps updates as the base's weight is stored.
    """
    rows, columns = (torch.arange(size) for size in input.shape)
    pattern = (rows[:, None] + columns) * 37 % 101 < 101 * input.flatten()[0].item()
    return pattern.to(input.dtype)


def pair(build, options, tmp_path, ranks=(4, 4), alphas=(6, 3)):
    """Return a PEFT model with two adapters, and a lorakit model that loaded their files."""
    torch.manual_seed(0)
    configs = [
        peft.LoraConfig(r=r, lora_alpha=alpha, **options)
        for r, alpha in zip(ranks, alphas, strict=True)
    ]
    theirs = get_peft_model(build(), configs[0], "first").eval()
    theirs.add_adapter("second", configs[1])
    for number, name in enumerate(("first", "second")):
        theirs.set_adapter(name)
        randomize_(theirs, seed=number)
    theirs.save_pretrained(tmp_path)
    ours = build()
    for name in ("first", "second"):
        load_adapter(ours, tmp_path / name, name)
    return theirs, ours


def theirs_of(model, weights, method, density=None, rank=None, majority_sign="total"):
    model.add_weighted_adapter(
        list(weights),
        list(weights.values()),
        "both",
        combination_type=method,
        density=density,
        svd_rank=rank,
        majority_sign_method=majority_sign,
    )
    model.set_adapter("both")
    return logits(model)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", BUILDS)
def test_both_combine_to_the_same_model(build, method, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "bernoulli", striped)
    theirs, ours = pair(*BUILDS[build], tmp_path)
    expected = theirs_of(theirs, WEIGHTS[weights], method, **METHODS[method])
    combine_adapters(ours, WEIGHTS[weights], "both", method, **METHODS[method])
    assert largest_error(logits(ours), expected) < TOLERANCE
    assert largest_error(expected, logits(BUILDS[build][0]())) > 100 * TOLERANCE


@pytest.mark.parametrize("majority_sign", ["total", "frequency"])
def test_both_count_signs_in_the_same_way(majority_sign, tmp_path):
    theirs, ours = pair(*BUILDS["llama"], tmp_path)
    options = {"density": 0.8, "majority_sign": majority_sign}
    expected = theirs_of(theirs, {"first": 1.0, "second": 1.0}, "ties", **options)
    combine_adapters(ours, {"first": 1.0, "second": 1.0}, "both", "ties", **options)
    assert largest_error(logits(ours), expected) < TOLERANCE


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_both_combine_different_ranks(method, tmp_path):
    theirs, ours = pair(*BUILDS["llama"], tmp_path, ranks=(2, 5))
    expected = theirs_of(theirs, {"first": 1.0, "second": 0.5}, method)
    combine_adapters(ours, {"first": 1.0, "second": 0.5}, "both", method)
    assert largest_error(logits(ours), expected) < TOLERANCE


def test_rank_stabilised_adapters_are_weighted_by_what_they_are(tmp_path):
    """PEFT scales the result by the square root of its rank again; merging does not."""
    options = {"target_modules": ["q_proj"], "use_rslora": True}
    theirs, ours = pair(llama, options, tmp_path)
    theirs.base_model.set_adapter(["first", "second"])
    expected = logits(theirs)
    combine_adapters(ours, {"first": 1.0, "second": 1.0}, "both", "cat")
    assert largest_error(logits(ours), expected) < TOLERANCE


def test_peft_loads_a_combination_of_different_modules_and_ranks(tmp_path):
    ours = llama()
    for name, targets, r in (
        ("first", ["q_proj", "v_proj"], 3),
        ("second", ["v_proj", "up_proj"], 5),
    ):
        torch.manual_seed(r)
        theirs = get_peft_model(llama(), peft.LoraConfig(r=r, target_modules=targets))
        randomize_(theirs, seed=r).save_pretrained(tmp_path / name)
        load_adapter(ours, tmp_path / name, name)
    combine_adapters(ours, {"first": 0.5, "second": 2.0}, "both", "cat")
    save_adapter(ours, tmp_path / "both", "both")
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "both").eval()
    assert largest_error(logits(theirs), logits(ours)) < LOGITS_TOLERANCE
