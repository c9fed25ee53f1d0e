"""Adapters with names of other versions of transformers: each tensor finds its place, or none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import AdapterMismatchError
from tiny_models import llama, mixtral
from tiny_models.by_type import small_model
from tolerances import largest_error

MOE = "model.layers.0.block_sparse_moe"
EXPERTS = "model.layers.0.mlp.experts"


def pair(r, in_features, out_features, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, in_features, generator=generator)
    return A, torch.randn(out_features, r, generator=generator)


def of_experts(model, names=("w1", "w2", "w3"), r=2, layers=(0, 1), **options):
    """Return an adapter of Mixtral's experts as transformers 4 names them."""
    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    sizes = {"w1": (hidden, inner), "w3": (hidden, inner), "w2": (inner, hidden)}
    factors = {
        f"model.layers.{layer}.block_sparse_moe.experts.{e}.{name}": pair(
            r, *sizes[name], seed=100 * layer + 10 * e + int(name[1])
        )
        for layer in layers
        for e in range(model.config.num_local_experts)
        for name in names
    }
    given = {"r": r, "lora_alpha": 3, "target_modules": list(names)} | options
    return Adapter(LoraConfig(**given), factors)


def test_an_adapter_with_the_names_of_the_model_stays_the_same_object():
    model = mixtral()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["down_proj"]))
    adapter = Adapter.from_model(model)
    assert in_names_of(mixtral(), adapter) is adapter
    assert in_names_of(model, adapter) is adapter


def test_names_that_mean_nothing_stay():
    adapter = Adapter(LoraConfig(r=2), {"model.layers.0.nothing": pair(2, 4, 4, 0)})
    assert in_names_of(llama(), adapter).factors.keys() == adapter.factors.keys()
    assert in_names_of(nn.Linear(2, 2), adapter) is adapter


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"alpha_pattern": {"w2": 7, "1.w1": 5}}]
)
@pytest.mark.parametrize("names", [("w1", "w2", "w3"), ("w1",), ("w3", "w2")])
def test_updates_of_experts_become_those_of_stacked_weights(names, options):
    model = mixtral()
    options = {} if "w1" not in names and "alpha_pattern" in options else options
    old = of_experts(model, names, **options)
    new = in_names_of(model, old)
    inner = model.config.intermediate_size
    for layer in (0, 1):
        mlp = f"model.layers.{layer}.mlp.experts"
        for e in range(model.config.num_local_experts):
            was = f"model.layers.{layer}.block_sparse_moe.experts.{e}"
            for name in names:
                parameter = f"{mlp}.{'down_proj' if name == 'w2' else 'gate_up_proj'}"
                rows = {"w1": slice(0, inner), "w3": slice(inner, None), "w2": slice(None)}[name]
                found = new.delta_weight(parameter)[e, rows]
                assert largest_error(found, old.delta_weight(f"{was}.{name}")) < 1e-6
    if "w3" not in names:
        assert not new.delta_weight(f"{EXPERTS}.gate_up_proj")[:, inner:].any()
    injection = add_adapter(model, old)
    assert {match.path.rpartition(".")[2] for match in injection.matches} == {
        "down_proj" if name == "w2" else "gate_up_proj" for name in names
    }


def without(adapter, path):
    factors = {key: pair for key, pair in adapter.factors.items() if key != path}
    return replace(adapter, factors=factors)


class TestExpertsThatDoNotFit:
    def refused(self, adapter, model=None):
        with pytest.raises(AdapterMismatchError) as caught:
            add_adapter(model or mixtral(), adapter)
        return str(caught.value)

    def test_one_that_is_missing(self):
        text = self.refused(without(of_experts(mixtral()), f"{MOE}.experts.1.w1"))
        assert f"no tensors for {MOE}.experts.1.w1, which target_modules select" in text

    def test_one_that_was_never_selected_is_zero(self):
        model = mixtral()
        adapter = without(of_experts(model, ("w2",)), f"{MOE}.experts.1.w2")
        config = adapter.config.model_copy(update={"target_modules": tuple(adapter.factors)})
        new = in_names_of(model, Adapter(config, adapter.factors))
        assert not new.delta_weight(f"{EXPERTS}.down_proj")[1].any()
        assert new.delta_weight(f"{EXPERTS}.down_proj")[0].any()

    def test_another_size_and_one_too_many(self):
        adapter = of_experts(mixtral())
        small = {f"{MOE}.experts.0.w1": pair(2, 5, 5, 0)}
        adapter = replace(adapter, factors={**adapter.factors, **small})
        assert f"{MOE}.experts.0.w1 is from 5 to 5, but '{EXPERTS}.gate_up" in self.refused(adapter)
        more = of_experts(mixtral(num_local_experts=5))
        assert f"{MOE}.experts.4.w1 is from" in self.refused(more, mixtral(num_local_experts=4))

    def test_magnitudes(self):
        factors = of_experts(mixtral(), ("w2",)).factors
        magnitudes = {path: torch.ones(B.shape[0]) for path, (_, B) in factors.items()}
        config = LoraConfig(r=2, target_modules=["w2"], use_dora=True)
        adapter = Adapter(config, factors, magnitudes=magnitudes)
        assert "has a magnitude (use_dora), which stacked weights cannot have" in self.refused(
            adapter
        )

    def test_two_of_one_name(self):
        factors = {
            f"model.layers.0.{moe}.gate": pair(2, 16, 3, 0) for moe in ("mlp", "block_sparse_moe")
        }
        text = self.refused(Adapter(LoraConfig(r=2, target_modules=["gate"]), factors))
        assert "which are both 'model.layers.0.mlp.gate' in this base" in text


def test_everything_that_has_a_path_gets_the_new_one():
    model = small_model("llava")
    q, embed = "language_model.model.layers.0.self_attn.q_proj", "language_model.model.embed_tokens"
    config = LoraConfig(
        r=2,
        target_modules=[q],
        rank_pattern={q: 3},
        alpha_pattern={q: 5},
        modules_to_save=["multi_modal_projector"],
        trainable_token_indices={embed: [1]},
        use_dora=True,
    )
    adapter = Adapter(
        config,
        {q: pair(3, 16, 16, 0)},
        {"multi_modal_projector.linear_1.weight": torch.ones(2)},
        base_weights={embed: torch.ones(2)},
        magnitudes={q: torch.ones(16)},
        trained_tokens={embed: torch.ones(1, 16)},
    )
    new = in_names_of(model, adapter)
    path = "model.language_model.layers.0.self_attn.q_proj"
    assert [*new.factors] == [*new.magnitudes] == [path]
    assert [*new.trained_tokens] == [*new.base_weights] == ["model.language_model.embed_tokens"]
    assert [*new.replaced] == ["model.multi_modal_projector.linear_1.weight"]
    assert (new.config.rank_for(path), new.config.alpha_for(path)) == (3, 5)
    assert new.config.target_modules == (path,)
    assert new.config.trainable_token_indices == {"model.language_model.embed_tokens": (1,)}
