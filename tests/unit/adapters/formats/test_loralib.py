"""loralib's state dicts; tests/interop/test_loralib.py compares with the package itself."""

import pytest
import torch

from lorakit import (
    LoraConfig,
    add_adapter,
    lora_state_dict,
    mark_only_lora_as_trainable,
    merge_adapters,
    set_adapter,
)
from lorakit.adapters import from_loralib, to_loralib
from lorakit.errors import AdapterFileError, AdapterNameError, ConfigError
from lorakit.layers import LowRankUpdate
from tiny_models import TinyNet, randomize_
from tiny_models.adapters import layered_adapter, random_factors
from tolerances import TOLERANCE, largest_error


def state_dict(**pairs):
    return {f"{path}.lora_{n}": t for path, pair in pairs.items() for n, t in zip("AB", pair)}  # noqa: B905


@pytest.mark.parametrize(
    "config", [{}, {"lora_alpha": 7}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 2}}]
)
def test_loralibs_scaling_of_what_is_written_gives_the_updates(config):
    adapter = layered_adapter(**config)
    tensors = to_loralib(adapter)
    for path in adapter.factors:
        A, B = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        s = adapter.config.alpha_for(path) / A.shape[0]
        assert largest_error(s * B @ A, adapter.delta_weight(path)) < TOLERANCE[torch.float32]


def test_there_and_back():
    adapter = layered_adapter(lora_alpha=3)
    again = from_loralib(to_loralib(adapter), 3, base_model="x")
    assert again.base_model == "x" and again.config.lora_alpha == 3
    for path, pair in adapter.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, again.factors[path], strict=True))
        assert torch.equal(again.delta_weight(path), adapter.delta_weight(path))


def test_different_ranks_keep_one_alpha():
    made = from_loralib(state_dict(a=random_factors(2, 5, 6), b=random_factors(4, 5, 6)), 8)
    assert made.config.scaling_for("a") == 4 and made.config.scaling_for("b") == 2


def test_embeddings_are_recognized_by_their_weight_or_by_name():
    A, B = random_factors(2, 12, 8)
    tensors = state_dict(e=(A, B))
    assert from_loralib(tensors, 1).embeddings == frozenset()
    assert from_loralib(tensors, 1, embeddings=["e"]).embeddings == {"e"}
    assert from_loralib(tensors | {"e.weight": torch.ones(12, 8)}, 1).embeddings == {"e"}
    assert from_loralib(tensors | {"e.weight": torch.ones(8, 12)}, 1).embeddings == frozenset()


def test_a_transposed_linear_layer_is_no_embedding():
    """A Linear with fan_in_fan_out has its weight (in, out), as an embedding has (rows, dim)."""
    tensors = state_dict(e=random_factors(2, 12, 8)) | {"e.weight": torch.ones(12, 8)}
    with_bias = tensors | {"e.bias": torch.ones(8)}
    assert from_loralib(with_bias, 1).embeddings == frozenset()
    A, B = random_factors(4, 12, 8)
    merged = state_dict(m=(A, B[:, :2])) | {"m.weight": torch.ones(12, 8)}
    assert from_loralib(merged, 1, enable_lora=[True, True]).embeddings == frozenset()
    one = state_dict(m=random_factors(2, 12, 8)) | {"m.weight": torch.ones(12, 24)}
    made = from_loralib(one, 1, enable_lora=[True, False, False])
    assert made.embeddings == frozenset() and made.factors["m"][1].shape == (24, 2)


def test_enable_lora_of_one_part_is_recognized_by_the_weight():
    (A, B), plain = random_factors(2, 5, 6), random_factors(2, 5, 6)
    weights = {"m.weight": torch.ones(18, 5), "p.weight": torch.ones(6, 5)}
    tensors = state_dict(m=(A, B), p=plain)
    made = from_loralib(tensors | weights, 1, enable_lora=[False, True, False])
    assert torch.equal(made.factors["m"][1][6:12], B) and not made.factors["m"][1][:6].any()
    assert torch.equal(made.factors["p"][1], plain[1])
    by_path = from_loralib(tensors, 1, enable_lora={"m": [False, True, False]})
    for path, pair in made.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, by_path.factors[path], strict=True))
    # An embedding that is named is no MergedLinear.
    alone = state_dict(m=plain) | {"p.lora_A": A, "p.lora_B": B, "p.weight": torch.ones(18, 5)}
    named = from_loralib(alone, 1, enable_lora=[True, False, False], embeddings=["m"])
    assert named.embeddings == {"m"} and named.factors["p"][1].shape == (18, 2)


def test_biases_of_adapted_layers_are_taken_from_a_dict_without_base_weights():
    tensors = state_dict(m=random_factors(2, 5, 6)) | {"m.bias": torch.ones(6)}
    made = from_loralib(tensors, 1)
    assert made.config.bias == "lora_only" and list(made.replaced) == ["m.bias"]
    whole = from_loralib(tensors | {"m.weight": torch.ones(6, 5)}, 1)
    assert whole.config.bias == "none" and not whole.replaced


@pytest.mark.parametrize(
    "tensors,options,said",
    [
        ({"m.weight": torch.ones(2, 2)}, {}, "no key that ends in .lora_A"),
        ({"m.lora_A": torch.ones(2, 2)}, {}, "m.lora_A has no partner m.lora_B"),
        ({"m.lora_B": torch.ones(2, 2)}, {}, "m.lora_B has no partner m.lora_A"),
        (state_dict(m=(torch.ones(4, 3), torch.ones(6, 2))), {}, "is a MergedLinear"),
        (
            state_dict(m=(torch.ones(4, 3), torch.ones(6, 2))),
            {"enable_lora": [True, False]},
            "do not fit enable_lora",
        ),
        (
            state_dict(m=random_factors(2, 5, 6)),
            {"enable_lora": [True, False, False]},
            "cannot tell whether m is a MergedLinear",
        ),
        (
            state_dict(m=random_factors(2, 5, 6)),
            {"enable_lora": [True, False, True]},
            "no MergedLinear, but enable_lora=[True, False, True] is given",
        ),
        (
            state_dict(m=random_factors(2, 5, 6)),
            {"enable_lora": {"q": [True, False]}},
            "there is no q, which enable_lora names",
        ),
        (
            state_dict(m=random_factors(2, 5, 6)) | {"m.weight": torch.ones(6, 5)},
            {"enable_lora": {"m": [True, False, False]}},
            "m.weight (6, 5), which do not fit enable_lora=[True, False, False]",
        ),
        (
            state_dict(c=(torch.ones(6, 3), torch.ones(6, 6))) | {"c.conv.weight": torch.ones(1)},
            {},
            "c has a weight (1,), not a convolution's",
        ),
        (state_dict(m=(torch.ones(2), torch.ones(2, 2))), {}, "not two matrices"),
        (state_dict(m=random_factors(2, 3, 3)), {"embeddings": ["e"]}, "there is no e"),
    ],
)
def test_dicts_that_cannot_be_read_are_refused_by_name(tensors, options, said):
    with pytest.raises(AdapterFileError) as caught:
        from_loralib(tensors, 1, where="x.pt", **options)
    assert said in str(caught.value) and "Cannot read x.pt" in str(caught.value)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), True])
def test_alpha_has_to_be_a_number_above_zero(alpha):
    with pytest.raises(ConfigError, match="expected a number above 0"):
        from_loralib(state_dict(m=random_factors(2, 3, 3)), alpha)


def adapted(bias="none"):
    model = TinyNet()
    config = LoraConfig(r=2, target_modules=["up"], bias=bias, modules_to_save=["classifier"])
    add_adapter(model, config)
    return randomize_(model)


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_only_lora_is_trained_and_the_biases_asked_for(bias):
    model = adapted("all")
    mark_only_lora_as_trainable(model, bias)
    names = trained(model)
    factors = {n for n in names if "lora_" in n}
    assert len(factors) == 4 and all("updates.default.lora_" in n for n in factors)
    others = names - factors
    if bias == "none":
        assert others == set()
    else:
        assert {f"layers.{i}.up.updates.default.bias" for i in range(2)} <= others
        assert len(others) == (2 if bias == "lora_only" else 3)  # norm.bias too
        assert all("bias" in n and "classifier" not in n for n in others)
    set_adapter(model, "default")
    assert any("classifier" in n for n in trained(model))


def test_a_kind_of_update_says_itself_what_is_trained(monkeypatch):
    model = adapted("all")
    called = []
    original = LowRankUpdate.require_gradients_

    def spy(update, required):
        called.append(required)
        original(update, required)

    monkeypatch.setattr(LowRankUpdate, "require_gradients_", spy)
    mark_only_lora_as_trainable(model)
    assert called == [True] * 2


def test_biases_that_the_adapter_does_not_have_cannot_be_trained():
    model = adapted()
    before = trained(model)
    with pytest.raises(ConfigError, match="it was added with bias='none'"):
        mark_only_lora_as_trainable(model, "lora_only")
    with pytest.raises(ConfigError, match="Unknown setting of bias: got 'some'"):
        mark_only_lora_as_trainable(model, "some")
    assert trained(model) == before
    with pytest.raises(AdapterNameError):
        mark_only_lora_as_trainable(TinyNet())


def test_the_state_dict_has_loralibs_names():
    model = adapted("lora_only")
    tensors = lora_state_dict(model)
    assert tensors.keys() == {f"layers.{i}.up.lora_{n}" for i in range(2) for n in "AB"}
    update = model.layers[0]["up"].updates["default"]
    assert tensors["layers.0.up.lora_A"].data_ptr() == update.lora_A.data_ptr()
    some = lora_state_dict(model, "lora_only")
    assert some.keys() - tensors.keys() == {"layers.0.up.bias", "layers.1.up.bias"}
    assert torch.equal(some["layers.0.up.bias"], update.bias)
    every = lora_state_dict(model, "all")
    assert every.keys() - some.keys() == {"norm.bias", "classifier.bias"}
    with pytest.raises(ConfigError, match="Unknown setting of bias"):
        lora_state_dict(model, "no")


def test_one_of_several_adapters_is_named():
    model = adapted()
    add_adapter(model, LoraConfig(r=3, target_modules=["down"]), "other")
    assert "layers.0.up.lora_A" in lora_state_dict(model)
    assert "layers.0.down.lora_A" in lora_state_dict(model, name="other")
    with pytest.raises(AdapterNameError, match="No adapter is named 'x'"):
        lora_state_dict(model, name="x")
    merge_adapters(model)
    assert "layers.0.up.lora_A" in lora_state_dict(model)
