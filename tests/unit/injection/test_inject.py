import copy
import math

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.errors import (
    AdapterNameError,
    AdapterStateError,
    DtypeError,
    LorakitError,
    ShapeError,
    TargetError,
)
from lorakit.injection import adapter_config, set_adapter, unload
from lorakit.layers import LoraConv1D, LoraEmbedding, LoraLinear, LowRankUpdate
from tiny_models import (
    TinyNet,
    assert_untouched,
    bert,
    bloom,
    distilbert,
    gpt2,
    llama,
    logits,
    roberta,
    snapshot,
    t5,
    tokens,
    train_steps,
)

ATTENTION = {
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bloom": ["query_key_value"],
    "t5": ["q", "v"],
    "distilbert": ["q_lin", "v_lin"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}
BUILDERS = {f.__name__: f for f in (llama, gpt2, bloom, t5, distilbert, bert, roberta)}
TASKS = {"distilbert": "SEQ_CLS", "bert": "TOKEN_CLS", "roberta": "SEQ_CLS"}


def paths(injection):
    return [match.path for match in injection.matches]


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


class TestEveryArchitecture:
    def test_a_fresh_adapter_changes_no_bit_and_unload_leaves_no_trace(self, name):
        model = BUILDERS[name]()
        before, base = snapshot(model), logits(model)
        add_adapter(
            model, LoraConfig(r=2, target_modules=ATTENTION[name], task_type=TASKS.get(name))
        )
        assert torch.equal(logits(model), base)
        assert unload(model) is model
        assert_untouched(model, before)
        assert torch.equal(logits(model), base)

    def test_training_never_writes_to_the_base(self, name):
        model = BUILDERS[name]()
        before, base = snapshot(model), logits(model)
        config = LoraConfig(
            r=2, target_modules=ATTENTION[name], task_type=TASKS.get(name), bias="all"
        )
        add_adapter(model, config)
        model.train()
        train_steps(model, steps=2)
        model.eval()
        assert not torch.allclose(logits(model), base, atol=1e-3)
        for key, value in before["values"].items():
            assert torch.equal(model.state_dict()[key], value), key
        unload(model)
        assert_untouched(model, before)

    def test_every_trained_parameter_gets_a_gradient(self, name):
        model = BUILDERS[name]()
        config = LoraConfig(
            r=2, task_type=TASKS.get(name), init_lora_weights=False, bias="lora_only"
        )
        add_adapter(model, config)
        model(**tokens(model)).logits.square().sum().backward()
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
            else:
                assert parameter.grad is None, parameter_name

    def test_all_linear_takes_every_linear_but_heads_and_embeddings(self, name):
        model = BUILDERS[name]()
        linear = [
            path
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        ]
        heads = ("lm_head", "classifier", "pre_classifier", "score")
        expected = [path for path in linear if not path.startswith(heads)]
        injection = add_adapter(model, LoraConfig(r=1))
        assert paths(injection) == expected and len(expected) >= 8
        unload(model)
        assert paths(add_adapter(model, LoraConfig(r=1, target_modules="all-linear"))) == expected


def test_base_names_and_objects_stay():
    model = llama()
    q_proj = model.model.layers[0].self_attn.q_proj
    weight = q_proj.weight
    names = list(model.state_dict())
    add_adapter(model, LoraConfig(r=2))
    assert model.model.layers[0].self_attn.q_proj is q_proj
    assert q_proj.weight is weight and type(q_proj) is LoraLinear
    assert [n for n in model.state_dict() if ".updates." not in n] == names


def test_only_the_adapter_requires_gradients():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert trained(model) == {
        f"model.layers.{i}.self_attn.q_proj.updates.default.lora_{x}" for i in (0, 1) for x in "AB"
    }


def test_an_adapter_added_as_not_trainable():
    model = llama()
    add_adapter(model, LoraConfig(r=2), trainable=False)
    assert trained(model) == set()
    set_adapter(model, "default")
    assert trained(model) == set()


def test_layer_kinds_and_initialisation():
    torch.manual_seed(0)
    model = gpt2()
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["c_attn", "wte"], lora_dropout=0.25)
    injection = add_adapter(model, config)
    assert [m.kind for m in injection.matches] == ["Embedding", "Conv1D", "Conv1D"]
    c_attn, wte = model.transformer.h[0].attn.c_attn, model.transformer.wte
    assert type(c_attn) is LoraConv1D and type(wte) is LoraEmbedding
    update = c_attn.updates["default"]
    assert update.lora_A.shape == (4, 16) and update.lora_B.shape == (48, 4)
    assert update.lora_A.abs().max() <= 1 / math.sqrt(16) and update.lora_B.eq(0).all()
    assert update.scaling == 0.5 and update.drop_probability == 0.25
    update = wte.updates["default"]
    assert update.lora_A.shape == (4, 32) and update.lora_B.shape == (16, 4)
    assert update.lora_A.eq(0).all() and update.lora_B.ne(0).all()


def test_updates_follow_the_model_s_mode():
    model = llama().eval()
    add_adapter(model, LoraConfig(r=2))
    update = model.model.layers[0].mlp.up_proj.updates["default"]
    assert not update.training
    model.train()
    assert update.training
    add_adapter(model, LoraConfig(r=2), "late")
    assert model.model.layers[0].mlp.up_proj.updates["late"].training


@pytest.mark.parametrize(
    "base,dtype,expected",
    [
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16, torch.float16),
    ],
)
def test_factor_dtypes(base, dtype, expected):
    model = TinyNet(dtype=base)
    add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", bias="all"), dtype=dtype)
    update = model.layers[0]["up"].updates["default"]
    assert {update.lora_A.dtype, update.lora_B.dtype, update.bias.dtype} == {expected}
    assert model.classifier.trained_copies["default"].weight.dtype == expected
    norm = model.norm.trained_copies["default"]
    assert norm.bias.dtype == expected and norm.weight is model.norm.weight
    assert model.layers[0]["up"].weight.dtype == base
    assert model(**tokens(model)).dtype == base


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_a_bfloat16_base_trains(bias):
    model = TinyNet(dtype=torch.bfloat16)
    before = snapshot(model)
    add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", bias=bias))
    losses = train_steps(model, steps=8, learning_rate=0.02)
    assert losses[-1] < losses[0]
    unload(model)
    assert_untouched(model, before)


def test_small_steps_of_every_bias_add_up_on_a_bfloat16_base():
    """A step below the rounding of bfloat16 must not be lost: biases are kept in float32."""
    model = TinyNet(dtype=torch.bfloat16)
    with torch.no_grad():
        model.norm.bias.fill_(1.0)
    add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", bias="all"))
    train_steps(model, steps=8, learning_rate=5e-4)
    moved = (model.norm.trained_copies["default"].bias - 1).abs()
    assert (moved > 1e-3).all()


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

    def test_the_recorded_config_selects_the_same_modules_again(self):
        first = llama()
        config = LoraConfig(
            r=2, exclude_modules=["o_proj"], layers_to_transform=[0], modules_to_save=["lm_head"]
        )
        expected = paths(add_adapter(first, config))
        recorded = adapter_config(first)
        assert recorded.exclude_modules is recorded.layers_to_transform is None
        assert paths(add_adapter(llama(), recorded)) == expected


class TestBias:
    def test_lora_only_trains_the_adapted_layers_biases(self):
        model = distilbert()
        injection = add_adapter(model, LoraConfig(r=1, target_modules=["q_lin"], bias="lora_only"))
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

    def test_modules_to_save_by_name(self):
        model = llama()
        injection = add_adapter(model, LoraConfig(r=1, modules_to_save=["lm_head", "norm"]))
        assert injection.heads == ("lm_head", "model.norm")
        assert {n for n in trained(model) if "lora" not in n} == {
            "lm_head.trained_copies.default.weight",
            "model.norm.trained_copies.default.weight",
        }

    def test_a_head_inside_a_head_is_trained_once(self):
        injection = add_adapter(
            roberta(), LoraConfig(r=1, task_type="SEQ_CLS", modules_to_save=["classifier.dense"])
        )
        assert injection.heads == ("classifier",)

    def test_tied_modules_to_save_stay_tied(self):
        model = gpt2()
        add_adapter(
            model, LoraConfig(r=1, target_modules=["c_attn"], modules_to_save=["wte", "lm_head"])
        )
        wte = model.transformer.wte.trained_copies["default"]
        assert wte.weight is model.lm_head.trained_copies["default"].weight

    def test_a_task_without_a_head_is_an_error(self):
        with pytest.raises(TargetError) as caught:
            add_adapter(bert("BertModel"), LoraConfig(r=1, task_type="SEQ_CLS"))
        assert str(caught.value) == (
            "task_type=SEQ_CLS trains the model's head, but BertModel has none beside its "
            "backbone. Load the model with a head, or name the head in modules_to_save."
        )

    @pytest.mark.parametrize("container", ["layers", "layers.0"])
    def test_a_container_cannot_be_trained_in_full(self, container):
        # ModuleList and ModuleDict have no forward, so a copy of one would never act.
        model = TinyNet()
        before = snapshot(model)
        with pytest.raises(TargetError, match=f"modules_to_save.*{container}.*no forward"):
            add_adapter(
                model, LoraConfig(r=1, target_modules=["classifier"], modules_to_save=[container])
            )
        assert_untouched(model, before)


class TestErrors:
    def refused(self, error, model, config=None, **options):
        """Check that adding fails, that it is a LorakitError, and that nothing was touched."""
        before = snapshot(model)
        rng = torch.get_rng_state()
        with pytest.raises(error) as caught:
            add_adapter(model, config or LoraConfig(r=2), **options)
        assert isinstance(caught.value, LorakitError)
        assert_untouched(model, before)
        assert torch.equal(rng, torch.get_rng_state())
        return str(caught.value)

    def test_unmatched_name(self):
        text = self.refused(TargetError, llama(), LoraConfig(target_modules=["q_porj"]))
        assert text == (
            "No module matched target_modules=['q_porj']. Modules here: embed_tokens, q_proj, "
            "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head. "
            "Did you mean 'q_proj'?"
        )

    def test_all_problems_at_once(self):
        config = LoraConfig(target_modules=["nope"], modules_to_save=["nada"])
        text = self.refused(TargetError, llama(), config)
        assert "target_modules=['nope']" in text and "modules_to_save=['nada']" in text

    def test_rank_larger_than_the_layer(self):
        text = self.refused(ShapeError, llama(), LoraConfig(r=17, target_modules=["q_proj"]))
        assert text == (
            "The rank is larger than the layer in model.layers.0.self_attn.q_proj (in=16, out=16, "
            "r=17), model.layers.1.self_attn.q_proj (in=16, out=16, r=17); expected r up to "
            "min(in, out). Lower r, give these layers a rank_pattern, or exclude them."
        )

    @pytest.mark.parametrize("target", ["up", "down"])
    def test_the_smaller_side_of_a_layer_limits_the_rank(self, target):
        # up maps 8 to 16 and down 16 to 8.
        text = self.refused(ShapeError, TinyNet(), LoraConfig(r=9, target_modules=[target]))
        assert f"layers.0.{target} (in=" in text
        add_adapter(TinyNet(), LoraConfig(r=8, target_modules=[target]))

    def test_a_long_list_of_ranks_is_cut(self):
        text = self.refused(ShapeError, TinyNet(layers=4), LoraConfig(r=9))
        assert "layers.2.up (in=8, out=16, r=9) and 3 more; expected r up to" in text

    def test_rank_equal_to_the_layer_is_allowed(self):
        add_adapter(llama(), LoraConfig(r=16, target_modules=["q_proj"]))

    @pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", "ä", "keys", "training", "forward"])
    def test_malformed_names(self, name):
        text = self.refused(AdapterNameError, llama(), name=name)
        assert text.startswith(f"{name!r} cannot name an adapter, expected letters, digits, '_'")

    @pytest.mark.parametrize("name", ["a", "A-1_b", "0", "_x", "default"])
    def test_good_names(self, name):
        model = TinyNet()
        add_adapter(model, LoraConfig(r=1, task_type="SEQ_CLS"), name)
        assert model(**tokens(model)).shape == (2, 6, 3)

    def test_a_taken_name(self):
        model = llama()
        add_adapter(model, LoraConfig(r=2))
        text = self.refused(AdapterNameError, model)
        assert text == (
            "An adapter named 'default' is already there. Choose another name, or call "
            "delete_adapter(model, 'default') first."
        )

    def test_a_subclass_with_its_own_forward(self):
        class Scaled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4))
        text = self.refused(TargetError, model, LoraConfig(r=1, target_modules=["0"]))
        assert "Cannot adapt 0: Scaled is a subclass with a forward of its own." in text
        injection = add_adapter(model, LoraConfig(r=1))
        assert paths(injection) == ["1"]
        assert ("0", "Scaled is a subclass with a forward of its own") in injection.skipped

    def test_an_embedding_that_rewrites_its_weight(self):
        model = nn.Sequential(nn.Embedding(4, 4, max_norm=1.0), nn.Linear(4, 4))
        assert "max_norm" in self.refused(TargetError, model, LoraConfig(r=1, target_modules=["0"]))

    def test_a_forward_on_the_instance(self):
        model = TinyNet()
        model.layers[1]["up"].forward = lambda x: x
        text = self.refused(TargetError, model, LoraConfig(r=2, target_modules=["up"]))
        assert "A Linear cannot be adapted: its instance has a forward of its own" in text

    def test_a_model_without_linear_layers(self):
        assert "no linear layer" in self.refused(TargetError, nn.Sequential(nn.ReLU()))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
    def test_factors_must_be_floating(self, dtype):
        text = self.refused(DtypeError, TinyNet(), dtype=dtype)
        assert f"got {dtype}" in text

    def test_a_merged_model(self):
        from lorakit import merge_adapters, unmerge_adapters

        model = TinyNet()
        add_adapter(model, LoraConfig(r=2))
        merge_adapters(model)
        with pytest.raises(AdapterStateError) as caught:
            add_adapter(model, LoraConfig(r=2), "b")
        assert str(caught.value) == (
            "Cannot add an adapter while adapters ['default'] are merged into the weights. Call "
            "unmerge_adapters(model) first."
        )
        unmerge_adapters(model)

    def test_bias_of_a_layer_another_adapter_adapts(self):
        model = TinyNet()
        add_adapter(model, LoraConfig(r=2, target_modules=["up"]), "a")
        text = self.refused(
            TargetError, model, LoraConfig(r=2, target_modules=["down"], bias="all"), name="b"
        )
        assert "bias='all' would train the bias of layers.0.up" in text

    @pytest.mark.parametrize("first,second", [("part", "whole"), ("whole", "part")])
    def test_adapters_on_a_part_and_on_the_whole(self, first, second):
        model = TinyNet()
        objects = {"part": model.layers, "whole": model}
        add_adapter(objects[first], LoraConfig(r=2))
        text = self.refused(AdapterStateError, objects[second])
        assert "another object" in text


@pytest.mark.parametrize("carrying", [False, True], ids=["first adapter", "second adapter"])
@pytest.mark.parametrize("fails_at", [0, 3])
def test_an_interrupted_add_leaves_the_model_as_it_was(monkeypatch, carrying, fails_at):
    model = TinyNet()
    model.embed.weight.requires_grad_(False)
    if carrying:
        add_adapter(model, LoraConfig(r=1, target_modules=["up"], task_type="SEQ_CLS"), "first")
    before, base = snapshot(model), logits(model)
    calls = []

    def fail(self, *_):
        calls.append(self)
        if len(calls) > fails_at:
            raise MemoryError

    monkeypatch.setattr(LowRankUpdate, "initialize_", fail)
    with pytest.raises(MemoryError):
        add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", bias="lora_only"), "second")
    assert_untouched(model, before)
    assert torch.equal(logits(model), base)


def test_seeded_twice_gives_the_same_adapter():
    made = []
    for _ in range(2):
        model = llama()
        torch.manual_seed(1)
        add_adapter(model, LoraConfig(r=2))
        made.append({n: p for n, p in model.named_parameters() if "lora_" in n})
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[0])


def test_deepcopy_of_a_model_is_independent():
    model = distilbert()
    add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", bias="all", init_lora_weights=False))
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    before = snapshot(model)
    train_steps(twin)
    assert_untouched(model, before)
    unload(twin)
    assert_untouched(model, before)
