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
from lorakit.injection import set_adapter, unload
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


def test_layer_kinds_and_initialization():
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

    def test_a_taken_name(self):
        model = llama()
        add_adapter(model, LoraConfig(r=2))
        text = self.refused(AdapterNameError, model)
        assert text == (
            "An adapter named 'default' is already there. Choose another name, or take it out "
            "first: set_adapter(model, None), then delete_adapter(model, 'default')."
        )

    def test_a_subclass_with_its_own_forward(self):
        class Scaled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4))
        text = self.refused(TargetError, model, LoraConfig(r=1, target_modules=["0"]))
        assert "Cannot adapt 0: Scaled is a subclass with its own forward." in text
        injection = add_adapter(model, LoraConfig(r=1))
        assert paths(injection) == ["1"]
        assert ("0", "Scaled is a subclass with its own forward") in injection.skipped

    def test_an_embedding_that_rewrites_its_weight(self):
        model = nn.Sequential(nn.Embedding(4, 4, max_norm=1.0), nn.Linear(4, 4))
        assert "max_norm" in self.refused(TargetError, model, LoraConfig(r=1, target_modules=["0"]))

    def test_a_forward_on_the_instance(self):
        model = TinyNet()
        model.layers[1]["up"].forward = lambda x: x
        text = self.refused(TargetError, model, LoraConfig(r=2, target_modules=["up"]))
        assert "A Linear cannot be adapted: the instance has its own forward" in text

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

    monkeypatch.setattr(LowRankUpdate, "set_factors_", fail)
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
