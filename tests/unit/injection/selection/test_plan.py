"""Which modules, biases and heads a configuration selects on real architectures."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.injection import unload
from tiny_models import (
    assert_untouched,
    bert,
    distilbert,
    gpt2,
    llama,
    logits,
    roberta,
    snapshot,
    t5,
)


def paths(injection):
    return [match.path for match in injection.matches]


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


class TestSelection:
    def test_suffix_names_and_regex(self):
        by_name = add_adapter(llama(), LoraConfig(r=1, target_modules=["q_proj", "up_proj"]))
        by_regex = add_adapter(llama(), LoraConfig(r=1, target_modules=r".*\.(q|up)_proj"))
        assert paths(by_name) == paths(by_regex)
        assert len(paths(by_name)) == 4

    def test_all_linear_in_a_tied_model_leaves_embedding_and_head(self):
        model = gpt2()
        injection = add_adapter(model, LoraConfig(r=1))
        assert not {"lm_head", "transformer.wte"} & set(paths(injection))
        assert ("lm_head", "the output head") in injection.skipped

    def test_the_head_can_be_named(self):
        model = llama()
        assert paths(add_adapter(model, LoraConfig(r=1, target_modules=["lm_head"]))) == ["lm_head"]

    def test_a_tied_head_is_adapted_without_touching_the_embedding(self):
        model = gpt2()
        add_adapter(model, LoraConfig(r=1, target_modules=["lm_head"], init_lora_weights=False))
        assert type(model.transformer.wte) is nn.Embedding
        assert model.lm_head.weight is model.transformer.wte.weight

    def test_exclusion_layers_and_patterns(self):
        config = LoraConfig(
            r=4,
            lora_alpha=4,
            exclude_modules=["down_proj", "gate_proj"],
            layers_to_transform=[1],
            rank_pattern={"q_proj": 2},
            alpha_pattern={r".*mlp.*": 8},
        )
        injection = add_adapter(llama(), config)
        got = {m.path.rsplit(".", 1)[-1]: (m.r, m.scaling) for m in injection.matches}
        assert got == {
            "q_proj": (2, 2.0),
            "k_proj": (4, 1.0),
            "v_proj": (4, 1.0),
            "o_proj": (4, 1.0),
            "up_proj": (4, 2.0),
        }
        assert all(".layers.1." in path for path in paths(injection))

    def test_layers_pattern_counts_in_the_list_named(self):
        config = LoraConfig(
            r=1, target_modules=["q"], layers_to_transform=[1], layers_pattern="block"
        )
        assert paths(add_adapter(t5(), config)) == [
            "encoder.block.1.layer.0.SelfAttention.q",
            "decoder.block.1.layer.0.SelfAttention.q",
            "decoder.block.1.layer.1.EncDecAttention.q",
        ]

    def test_dense_does_not_reach_into_roberta_s_head(self):
        injection = add_adapter(
            roberta(), LoraConfig(r=1, target_modules=["dense"], task_type="SEQ_CLS")
        )
        assert injection.heads == ("classifier",)
        assert len(paths(injection)) == 6
        assert not any(path.startswith("classifier") for path in paths(injection))
        assert ("classifier.dense", "trained in full") in injection.skipped


class TestBias:
    def test_lora_only_trains_the_adapted_layers_biases(self):
        model = distilbert()
        heads = ["classifier", "pre_classifier"]
        config = LoraConfig(r=1, target_modules=["q_lin"], bias="lora_only", exclude_modules=heads)
        injection = add_adapter(model, config)
        wanted = {f"distilbert.transformer.layer.{i}.attention.q_lin.bias" for i in (0, 1)}
        assert set(injection.biases) == wanted
        assert {n for n in trained(model) if n.endswith("bias")} == {
            n.removesuffix("bias") + "updates.default.bias" for n in wanted
        }

    def test_all_trains_every_bias_outside_the_heads(self):
        model = distilbert()
        wanted = {
            n for n, _ in model.named_parameters() if n.endswith(".bias") and "classifier" not in n
        }
        config = LoraConfig(r=1, target_modules=["q_lin"], bias="all", task_type="SEQ_CLS")
        injection = add_adapter(model, config)
        assert set(injection.biases) == wanted
        got = {n for n in trained(model) if "lora_" not in n}
        expected = {
            n.removesuffix("bias")
            + ("updates.default.bias" if "q_lin" in n else "trained_copies.default.bias")
            for n in wanted
        }
        expected |= {
            f"{head}.trained_copies.default.{kind}"
            for head in ("classifier", "pre_classifier")
            for kind in ("weight", "bias")
        }
        assert got == expected

    def test_all_is_every_parameter_named_bias_and_no_other(self):
        # T5's relative_attention_bias is an embedding table; PEFT leaves it alone as well.
        model = t5()
        injection = add_adapter(model, LoraConfig(r=1, target_modules=["q"], bias="all"))
        assert injection.biases == ()

    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_trained_biases_start_at_the_base_s(self, bias):
        model = bert()
        base = logits(model)
        add_adapter(model, LoraConfig(r=1, target_modules=["query"], bias=bias))
        assert torch.equal(logits(model), base)

    def test_a_module_s_own_bias_does_not_shadow_its_children_s(self):
        class Parent(nn.Module):
            def __init__(self):
                super().__init__()
                self.child = nn.Linear(4, 4)
                self.inner = nn.LayerNorm(4)
                self.bias = nn.Parameter(torch.zeros(4))

            def forward(self, x):
                return self.inner(self.child(x)) + self.bias

        model = nn.Sequential(Parent())
        x = torch.randn(3, 4)
        before = snapshot(model)
        add_adapter(model, LoraConfig(r=1, target_modules=["child"], bias="all"))
        for _ in range(2):
            model(x).square().sum().backward()
        biases = {n: p for n, p in model.named_parameters() if p.requires_grad and "bias" in n}
        assert len(biases) == 3
        assert all(p.grad is not None for p in biases.values())
        unload(model)
        assert_untouched(model, before)


class TestHeads:
    @pytest.mark.parametrize(
        "build,model_class,task,heads",
        [
            (
                distilbert,
                "DistilBertForSequenceClassification",
                "SEQ_CLS",
                ("pre_classifier", "classifier"),
            ),
            (bert, "BertForSequenceClassification", "SEQ_CLS", ("classifier",)),
            (bert, "BertForTokenClassification", "TOKEN_CLS", ("classifier",)),
            (roberta, "RobertaForSequenceClassification", "SEQ_CLS", ("classifier",)),
            (gpt2, "GPT2ForSequenceClassification", "SEQ_CLS", ("score",)),
            (gpt2, "GPT2ForTokenClassification", "TOKEN_CLS", ("classifier",)),
            (llama, "LlamaForSequenceClassification", "SEQ_CLS", ("score",)),
            (t5, "T5ForSequenceClassification", "SEQ_CLS", ("classification_head",)),
        ],
    )
    def test_the_head_is_trained_without_being_named(self, build, model_class, task, heads):
        model = build(model_class)
        before = snapshot(model)
        injection = add_adapter(model, LoraConfig(r=1, task_type=task))
        assert injection.heads == heads
        in_heads = {
            name for name, _ in model.named_parameters() if ".trained_copies.default." in name
        }
        expected = {
            f"{head}.trained_copies.default.{name}"
            for head in heads
            for name, _ in getattr(model, head).trained_copies["default"].named_parameters()
        }
        assert in_heads == expected <= trained(model)
        assert not any(path.startswith(heads) for path in paths(injection))
        unload(model)
        assert_untouched(model, before)

    def test_tied_modules_to_save_stay_tied(self):
        model = gpt2()
        add_adapter(
            model, LoraConfig(r=1, target_modules=["c_attn"], modules_to_save=["wte", "lm_head"])
        )
        wte = model.transformer.wte.trained_copies["default"]
        assert wte.weight is model.lm_head.trained_copies["default"].weight
