"""Parameters that are no layers: how they are named, found, refused, and what is recorded."""

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_names,
    add_adapter,
    hotswap_adapter,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unload,
)
from lorakit.adapters import (
    combine_adapters,
    negated_adapter,
    resize_adapter,
    summed_adapters,
)
from lorakit.adapters.formats.loralib import to_loralib
from lorakit.adapters.operations.extract import extract
from lorakit.errors import AdapterFileError, AdapterMismatchError, ConfigError, TargetError
from lorakit.injection.state import adapted_layers
from tiny_models import (
    Encoder,
    assert_untouched,
    gpt2,
    gpt_oss,
    llama,
    logits,
    mixtral,
    randomize_,
    snapshot,
)
from tiny_models.quantized import quantized
from tolerances import LOGITS_TOLERANCE, largest_error

BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def config(**options):
    return LoraConfig(**{"r": 3, "target_modules": [], "target_parameters": BOTH} | options)


def adapted(build=mixtral, name="default", seed=7, **options):
    model = build()
    add_adapter(model, config(**options), name)
    return randomize_(model, seed=seed)


class UnknownExperts(nn.Module):
    """Stacked weights under the usual names, in a forward nobody knows."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2, 8, 4))

    def forward(self, x):
        return x @ self.gate_up_proj[0].T


class TestMatching:
    def test_parameters_come_on_top_of_modules(self):
        injection = add_adapter(mixtral(), config(target_modules=["q_proj"]))
        last = [match.path.rsplit(".", 1)[-1] for match in injection.matches]
        assert last == ["q_proj", "q_proj"] + ["gate_up_proj", "down_proj"] * 2

    def test_no_modules_named_adapts_every_linear_as_well(self):
        injection = add_adapter(mixtral(), config(target_modules=None))
        kinds = {match.path.rsplit(".", 1)[-1] for match in injection.matches}
        assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}

    def test_the_paths_are_those_of_the_parameters(self):
        model = mixtral()
        add_adapter(model, config())
        paths = [path for path, _ in adapted_layers(model)]
        assert paths == [
            f"model.layers.{layer}.mlp.experts.{name}"
            for layer in (0, 1)
            for name in ("gate_up_proj", "down_proj")
        ]
        assert all(dict(model.named_parameters())[path].ndim == 3 for path in paths)

    def test_layers_ranks_and_alphas(self):
        options = {"layers_to_transform": [1], "rank_pattern": {"down_proj": 2}}
        injection = add_adapter(mixtral(), config(**options, alpha_pattern={"gate_up_proj": 6}))
        assert [(m.path.split(".")[2], m.r, m.scaling) for m in injection.matches] == [
            ("1", 3, 2.0),
            ("1", 2, 4.0),
        ]
        assert injection.config.target_parameters == (
            "model.layers.1.mlp.experts.down_proj",
            "model.layers.1.mlp.experts.gate_up_proj",
        )

    def test_a_second_adapter_names_layers_and_not_what_the_first_adapted(self):
        model = adapted(name="first")
        with pytest.raises(TargetError, match=r"No module matched target_modules=\['down_proj'\]"):
            add_adapter(model, LoraConfig(r=2, target_modules=["down_proj"]), "second")
        injection = add_adapter(model, LoraConfig(r=2), "second")
        assert not any("experts" in match.path for match in injection.matches)
        assert adapter_names(model) == ("first", "second")


class TestWeights:
    def test_the_weight_of_a_layer_is_adapted_as_the_layer(self):
        model, other = llama(), llama()
        by_weight = config(target_parameters=["q_proj.weight"])
        first = add_adapter(model, by_weight)
        second = add_adapter(other, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
        assert [match.path for match in first.matches] == [match.path for match in second.matches]
        assert first.config.target_modules == second.config.target_modules == ("q_proj",)
        assert first.config.target_parameters == ()

    def test_a_layer_named_twice_is_adapted_once(self):
        names = config(target_modules=["q_proj"], target_parameters=["q_proj.weight"])
        assert len(add_adapter(llama(), names).matches) == 2

    def test_a_router_is_named_by_its_weight_and_by_no_other_name(self):
        model = mixtral()
        injection = add_adapter(model, config(target_parameters=["gate.weight"]))
        assert [match.path for match in injection.matches] == [
            "model.layers.0.mlp.gate",
            "model.layers.1.mlp.gate",
        ]
        assert injection.config.target_modules == ()
        assert injection.config.target_parameters == ("gate.weight",)
        with pytest.raises(TargetError, match=r"No module matched target_modules=\['gate'\]"):
            add_adapter(model, LoraConfig(r=2, target_modules=["gate"]), "second")

    def test_an_adapter_of_layers_and_routers_is_combined_with_another(self):
        gates = {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}
        one = Adapter.from_model(adapted(**gates))
        two = Adapter.from_model(adapted(target_modules=["v_proj"], target_parameters=[]))
        model = mixtral()
        total = summed_adapters(one, two)
        add_adapter(model, total)
        assert total.config.target_parameters == (
            "model.layers.0.mlp.gate.weight",
            "model.layers.1.mlp.gate.weight",
        )


class TestRefused:
    def refused(self, model, **options):
        before = snapshot(model)
        with pytest.raises(TargetError) as caught:
            add_adapter(model, config(**options))
        assert_untouched(model, before)
        return str(caught.value)

    def test_a_name_that_matches_nothing(self):
        text = self.refused(mixtral(), target_parameters=["experts.gate_up_porj"])
        assert "No parameter matched target_parameters=['experts.gate_up_porj']" in text
        assert "Stacked weights of experts here: gate_up_proj, down_proj" in text
        assert "Did you mean 'gate_up_proj'?" in text

    def test_a_model_without_experts(self):
        assert "Stacked weights of experts here: none" in self.refused(llama())

    def test_weights_that_are_no_matrix_of_their_module(self):
        text = self.refused(mixtral(), target_parameters=["norm.weight", "embed_tokens.weight"])
        assert "norm.weight: MixtralRMSNorm has its own forward" in text
        assert "expected stacked weights of transformers' experts, or a matrix named 'wei" in text
        assert "tokens.weight: it belongs to a Embedding. Name that module in target_mod" in text
        text = self.refused(gpt2(), target_parameters=["c_attn.weight"])
        assert "c_attn.weight: it belongs to a Conv1D. Name that module in target_modules" in text

    def test_dropout_of_an_input_that_is_not_seen(self):
        text = self.refused(mixtral(), target_parameters=["gate.weight"], lora_dropout=0.1)
        assert "mlp.gate with lora_dropout=0.1: MixtralTopKRouter reads its weight" in text

    def test_biases_of_experts(self):
        text = self.refused(gpt_oss(), target_parameters=["down_proj_bias"])
        assert "it has shape (3, 16); expected gate_up_proj, down_proj of GptOssExperts" in text

    def test_stacked_weights_in_an_unknown_forward(self):
        model = nn.ModuleDict({"experts": UnknownExperts()})
        text = self.refused(model, target_parameters=["gate_up_proj"])
        assert "experts.gate_up_proj: UnknownExperts has its own forward" in text

    def test_magnitudes(self):
        assert "use_dora=True with target_parameters" in self.refused(mixtral(), use_dora=True)

    def test_layers_that_are_not_there(self):
        text = self.refused(mixtral(), layers_to_transform=[7])
        assert "layers_to_transform=[7] leaves no parameter" in text

    def test_one_string_is_no_list(self):
        with pytest.raises(ConfigError, match="target_parameters: got 'down_proj'"):
            LoraConfig(target_parameters="down_proj")
        with pytest.raises(ConfigError, match=r"target_modules: got \[\]; expected at"):
            LoraConfig(target_modules=[])


class TestFiles:
    def test_an_adapter_for_fewer_experts_is_refused(self, tmp_path):
        save_adapter(adapted(), tmp_path)
        model = mixtral(num_local_experts=6)
        before = snapshot(model)
        with pytest.raises(AdapterMismatchError, match=r"gate_up_proj.lora_A has shape \(4, 3, 16"):
            load_adapter(model, tmp_path)
        assert_untouched(model, before)

    def test_an_adapter_for_fewer_layers_is_refused(self, tmp_path):
        save_adapter(adapted(), tmp_path)
        with pytest.raises(AdapterMismatchError, match="which its target_parameters select"):
            load_adapter(mixtral(num_hidden_layers=3), tmp_path)

    def test_names_that_do_not_say_which_parameter_are_refused(self, tmp_path):
        save_adapter(adapted(), tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text(path.read_text().replace('"gate_up_proj"', '"another"'))
        with pytest.raises(AdapterFileError, match=r"2 parameters at .*mlp.experts, but"):
            Adapter.load(tmp_path, allow_edited_config=True)


class TestOperations:
    def test_another_rank_keeps_the_update_where_it_can(self):
        adapter = Adapter.from_model(adapted())
        path = next(iter(adapter.factors))
        larger = resize_adapter(adapter, 5)
        assert largest_error(larger.adapter.delta_weight(path), adapter.delta_weight(path)) < 1e-5
        smaller = resize_adapter(adapter, 2)
        delta = adapter.delta_weight(path).double()
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        best = (left[..., :2] * values[..., None, :2]) @ right[..., :2, :]
        assert largest_error(smaller.adapter.delta_weight(path), best) < 1e-5
        expected = ((delta - best).norm() / delta.norm()).item()
        assert smaller.errors[path] == pytest.approx(expected, rel=1e-5)

    def test_sums_and_negation(self, tmp_path):
        one, two = (Adapter.from_model(adapted(seed=seed)) for seed in (1, 2))
        total = summed_adapters(one, negated_adapter(two))
        for path in one.factors:
            expected = one.delta_weight(path) - two.delta_weight(path)
            assert largest_error(total.delta_weight(path), expected) < 1e-5
        total.save(tmp_path)
        again = Adapter.load(tmp_path)
        for path, pair in total.factors.items():
            assert all(torch.equal(a, b) for a, b in zip(again.factors[path], pair, strict=True))

    @pytest.mark.parametrize("method", ["linear", "svd", "ties", "dare_ties_svd"])
    def test_combining_on_a_model(self, method):
        model = adapted(name="a")
        add_adapter(model, config(), "b")
        randomize_(model, seed=3)
        combine_adapters(model, {"a": 1.0}, "same", "svd")
        found = logits(model)
        set_adapter(model, "a")
        assert largest_error(found, logits(model)) < LOGITS_TOLERANCE
        combine_adapters(model, {"a": 0.6, "b": 0.4}, "both", method)
        assert logits(model).isfinite().all()

    def test_extraction_gives_the_updates_back(self):
        model = adapted()
        found = logits(model)
        tuned = merge_and_unload(model)
        made = extract(mixtral(), tuned, config())
        again = mixtral()
        add_adapter(again, made.adapter)
        assert largest_error(logits(again), found) < LOGITS_TOLERANCE
        assert all(share > 0.999 for share in made.kept.values())

    def test_swapping_weights_in_place(self):
        model, other = adapted(seed=1), adapted(seed=2, r=2)
        expected = logits(other)
        hotswap_adapter(model, Adapter.from_model(other))
        assert largest_error(logits(model), expected) < LOGITS_TOLERANCE

    def test_formats_without_stacked_weights_refuse_them_by_name(self):
        with pytest.raises(AdapterFileError, match=r"experts.gate_up_proj has factors of shape"):
            to_loralib(Adapter.from_model(adapted()))


class TestAttentionOperations:
    def test_scalings_that_files_cannot_say_are_folded(self, tmp_path):
        def made(seed, r):
            model = Encoder()
            add_adapter(model, LoraConfig(r=r, target_modules=["self_attn"]))
            return Adapter.from_model(randomize_(model, seed=seed))

        total = summed_adapters(made(1, 2), made(2, 3))
        assert total.config.scaling_for("encoder.layers.0.self_attn.out_proj") == 1
        total.save(tmp_path)
        again = Adapter.load(tmp_path)
        assert again.config.scaling_for("encoder.layers.0.self_attn.out_proj") == 2
        for path in total.factors:
            assert largest_error(again.delta_weight(path), total.delta_weight(path)) < 1e-6
        smaller = resize_adapter(total, 2).adapter
        smaller.save(tmp_path / "smaller")
        model = Encoder()
        load_adapter(model, tmp_path / "smaller")

    def test_sums_of_different_selections_name_attentions_alone(self, tmp_path):
        adapters = []
        for targets in (["self_attn"], ["linear1"]):
            model = Encoder()
            add_adapter(model, LoraConfig(r=2, target_modules=targets))
            adapters.append(Adapter.from_model(randomize_(model)))
        total = summed_adapters(*adapters)
        assert not any("out_proj" in name for name in total.config.target_modules)
        total.save(tmp_path)
        again, found = Encoder(), Encoder()
        load_adapter(again, tmp_path)
        add_adapter(found, total)
        ids = torch.arange(6).view(1, 6)
        assert largest_error(again(ids), found(ids)) < LOGITS_TOLERANCE

    def test_on_a_base_in_4_bits(self):
        pytest.importorskip("bitsandbytes")
        model = quantized(Encoder())
        injection = add_adapter(model, LoraConfig(r=2))
        kinds = {match.path.rsplit(".", 1)[-1]: match.kind for match in injection.matches}
        assert kinds["linear1"] == "Linear4bit"
        assert kinds["self_attn"] == "MultiheadAttention"
        ids = torch.arange(6).view(1, 6)
        before = model(ids)
        assert not torch.equal(randomize_(model)(ids), before)

    def test_extraction_from_an_attention(self):
        model = Encoder()
        settings = LoraConfig(r=2, target_modules=["self_attn"])
        add_adapter(model, settings)
        tuned = merge_and_unload(randomize_(model))
        made = extract(Encoder(), tuned, settings)
        again = Encoder()
        add_adapter(again, made.adapter)
        ids = torch.arange(6).view(1, 6)
        assert largest_error(again(ids), tuned(ids)) < LOGITS_TOLERANCE


def test_experts_of_a_base_in_4_bits_stay_dense_and_are_adapted():
    pytest.importorskip("bitsandbytes")
    model = quantized(mixtral())
    experts = model.model.layers[0].mlp.experts
    assert experts.gate_up_proj.dtype == torch.float32
    base = logits(model)
    injection = add_adapter(model, config(target_modules=["q_proj"]))
    assert {match.kind for match in injection.matches} == {"Linear4bit", "MixtralExperts (4)"}
    assert largest_error(logits(model), base) < LOGITS_TOLERANCE
    randomize_(model)
    model.train()
    model(input_ids=torch.arange(6).view(1, 6)).logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert largest_error(logits(model.eval()), base) > 1e-2
    unload(model)
    assert largest_error(logits(model), base) < LOGITS_TOLERANCE
