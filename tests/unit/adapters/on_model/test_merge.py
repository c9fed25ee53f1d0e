import copy

import pytest
import torch
from torch import nn

from lorakit import (
    LoraConfig,
    active_adapters,
    add_adapter,
    merge_adapters,
    merge_and_unload,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.errors import AdapterStateError
from tiny_models import (
    TinyNet,
    assert_untouched,
    bert,
    bloom,
    distilbert,
    gpt2,
    llama,
    logits,
    randomize_,
    roberta,
    snapshot,
    t5,
    train_steps,
)
from tiny_models.adapted import with_adapter
from tolerances import LOGITS_TOLERANCE, MERGE_TOLERANCE, TOLERANCE, largest_error

BUILDERS = [llama, gpt2, bloom, t5, distilbert, bert, roberta]
TASKS = {distilbert: "SEQ_CLS", bert: "TOKEN_CLS", roberta: "SEQ_CLS"}


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("dtype", list(MERGE_TOLERANCE), ids=str)
def test_unmerge_gives_back_the_very_bytes_and_objects(build, dtype):
    model = build().to(dtype)
    before = snapshot(model)
    add_adapter(model, LoraConfig(r=2, task_type=TASKS.get(build), bias="all"))
    randomize_(model)
    adapted, expected = snapshot(model), logits(model)
    for _ in range(2):
        merge = merge_adapters(model)
        assert merge.names == ("default",) and merge.layers > 0
        assert model.state_dict().keys() == adapted["values"].keys()
        unmerge_adapters(model)
        assert_untouched(model, adapted)
        assert torch.equal(logits(model), expected)
    unload(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_a_merged_model_computes_what_the_adapter_does(build, bias):
    # In float64, so that a mistake cannot hide in the rounding of two ways to add up.
    model = with_adapter(build().double(), bias=bias)
    expected = logits(model)
    merge_adapters(model)
    assert largest_error(logits(model), expected) < TOLERANCE[torch.float64]
    merged = logits(model)
    merge_and_unload(model)
    assert torch.equal(logits(model), merged)


@pytest.mark.parametrize("dtype", list(MERGE_TOLERANCE), ids=str)
def test_the_sum_is_taken_in_float32_and_rounded_once(dtype):
    model = TinyNet(dtype=dtype)
    for seed, name in enumerate("ab"):
        add_adapter(model, LoraConfig(r=2, lora_alpha=3, target_modules=["up"]), name)
        randomize_(model, seed=seed)
    layer = model.layers[0]["up"]
    exact = layer.weight.detach().double()
    for name in "ab":
        update = layer.updates[name]
        exact = exact + 1.5 * update.lora_B.detach().double() @ update.lora_A.detach().double()
    merge = merge_adapters(model, ["a", "b"])
    assert layer.weight.dtype == dtype
    # Half a unit in the last place of each weight: a second rounding would not fit in.
    error = (layer.weight.double() - exact).abs()
    assert (error <= exact.abs() * MERGE_TOLERANCE[dtype] * 1.001 + 1e-6).all()
    if dtype == torch.float32:
        assert merge.largest_rounding == 0
    else:
        everywhere = max((m["up"].weight.double()).abs().max() for m in model.layers)
        assert 0 < merge.largest_rounding <= everywhere * MERGE_TOLERANCE[dtype]


def test_a_small_update_of_a_bfloat16_weight_survives_with_others():
    """Two updates, each below half a step of the weight, add up before the rounding."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False, dtype=torch.bfloat16))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    for name in "ab":
        add_adapter(model, LoraConfig(r=1, lora_alpha=1), name)
        with torch.no_grad():
            model[0].updates[name].lora_A.fill_(1.0)
            model[0].updates[name].lora_B.fill_(2**-9 + 2**-12)
    merge_adapters(model, ["a", "b"])
    assert model[0].weight.item() == 1 + 2**-7


def test_merging_a_tied_embedding_leaves_the_head_alone():
    model = with_adapter(gpt2, target_modules=["wte"])
    wte, head = model.transformer.wte, model.lm_head
    shared, expected = head.weight, logits(model)
    bits = shared.detach().clone()
    merge_adapters(model)
    assert head.weight is shared and torch.equal(shared, bits)
    assert wte.weight is not shared
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    unmerge_adapters(model)
    assert wte.weight is head.weight is shared


class TestStates:
    def test_merging_twice(self):
        model = with_adapter(TinyNet)
        merge_adapters(model)
        with pytest.raises(AdapterStateError) as caught:
            merge_adapters(model)
        assert str(caught.value) == (
            "Cannot merge while adapters ['default'] are merged into the weights. Call "
            "unmerge_adapters(model) first."
        )

    def test_unmerging_what_is_not_merged(self):
        with pytest.raises(AdapterStateError) as caught:
            unmerge_adapters(with_adapter(TinyNet))
        assert str(caught.value) == (
            "Cannot unmerge: no adapter is merged into the weights. Call merge_adapters first."
        )

    @pytest.mark.parametrize("names", [None, []])
    def test_nothing_to_merge(self, names):
        model = with_adapter(TinyNet)
        if names is None:
            set_adapter(model, None)
        active, before = active_adapters(model), snapshot(model)
        with pytest.raises(AdapterStateError) as caught:
            merge_adapters(model, names)
        assert str(caught.value) == (
            "No adapter is active, so there is nothing to merge. Name the adapters to merge, or "
            "call set_adapter first."
        )
        assert active_adapters(model) == active
        assert_untouched(model, before)

    def test_a_name_that_is_not_there_changes_nothing(self):
        model = with_adapter(TinyNet)
        before = snapshot(model)
        with pytest.raises(KeyError, match="No adapter is named 'topic'"):
            merge_adapters(model, ["topic"])
        with pytest.raises(KeyError, match="No adapter is named 'topic'"):
            merge_and_unload(model, "topic")
        assert active_adapters(model) == ("default",)
        assert_untouched(model, before)

    def test_two_heads_cannot_be_merged_together(self):
        model = TinyNet()
        for name in "ab":
            add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"), name)
        before = snapshot(model)
        with pytest.raises(AdapterStateError, match="cannot act together"):
            merge_adapters(model, ["a", "b"])
        assert_untouched(model, before)

    def test_merge_and_unload_of_other_names_than_those_merged(self):
        model = TinyNet()
        for name in "ab":
            add_adapter(model, LoraConfig(r=2), name)
        merge_adapters(model, "a")
        with pytest.raises(AdapterStateError) as caught:
            merge_and_unload(model, "b")
        assert str(caught.value) == (
            "Adapters ['a'] are merged already, but ['b'] were requested. Call unmerge_adapters "
            "first."
        )
        merge_and_unload(model, "a")

    def test_naming_adapters_makes_them_the_active_ones(self):
        model = TinyNet()
        for name in "ab":
            add_adapter(model, LoraConfig(r=2), name)
        merge_adapters(model, "a")
        unmerge_adapters(model)
        assert active_adapters(model) == ("a",)


class TestMergeAndUnload:
    def test_plain_modules_and_the_same_object(self):
        model = distilbert()
        kinds = [type(m) for m in model.modules()]
        names = list(model.state_dict())
        requires = {n: p.requires_grad for n, p in model.named_parameters()}
        add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", bias="all"))
        randomize_(model)
        assert merge_and_unload(model) is model
        assert [type(m) for m in model.modules()] == kinds
        assert list(model.state_dict()) == names
        assert {n: p.requires_grad for n, p in model.named_parameters()} == requires

    def test_an_adapter_that_is_not_merged_is_dropped(self):
        model = TinyNet()
        for seed, name in enumerate("ab"):
            add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"), name)
            randomize_(model, seed=seed)
        set_adapter(model, "a")
        expected = logits(model)
        set_adapter(model, "b")
        merge_and_unload(model, "a")
        assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
        assert not [n for n, _ in model.named_parameters() if "updates" in n or "trained" in n]

    def test_a_merged_model_trains_in_full_again(self):
        model = merge_and_unload(with_adapter(distilbert, bias="all"))
        before = logits(model)
        train_steps(model, steps=1)
        assert not torch.equal(logits(model), before)

    def test_it_is_independent_of_a_copy_made_before(self):
        model = with_adapter(distilbert, bias="all")
        twin = copy.deepcopy(model)
        expected = logits(twin)
        merge_and_unload(model)
        assert torch.equal(logits(twin), expected)

    @pytest.mark.parametrize(("dtype", "drift"), [(torch.bfloat16, 0.3), (torch.float16, 0.04)])
    def test_a_half_precision_base_keeps_its_dtype(self, dtype, drift):
        model = with_adapter(roberta().to(dtype))
        expected = logits(model)
        merge_and_unload(model)
        assert {p.dtype for p in model.parameters()} == {dtype}
        # The unmerged head and products run in more bits; the weights differ by one rounding.
        assert largest_error(logits(model), expected) < drift


def reloaded(model, folder):
    """Save a merged model and load it with nothing but transformers."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


CHECKPOINTS = {
    "llama": (llama, {}),
    "llama, head": (llama, {"modules_to_save": ["lm_head"]}),
    "distilbert": (distilbert, {"bias": "all"}),
    "bert": (bert, {"bias": "all"}),
    "roberta": (roberta, {"bias": "lora_only"}),
    "bloom": (bloom, {"bias": "all"}),
    "gpt2": (gpt2, {"bias": "all"}),
    "gpt2, tied embedding": (gpt2, {"target_modules": ["wte", "c_attn"]}),
    "gpt2, tied head": (gpt2, {"target_modules": ["lm_head"]}),
    "gpt2, tied embedding trained": (
        gpt2,
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    ),
    "gpt2, both tied trained": (
        gpt2,
        {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]},
    ),
    "bloom, tied embedding": (bloom, {"target_modules": ["word_embeddings"]}),
    "bert, tied decoder inside a head": (
        lambda: bert("BertForMaskedLM"),
        {"target_modules": ["query"], "modules_to_save": ["cls"]},
    ),
    "bert, tied decoder adapted": (
        lambda: bert("BertForMaskedLM"),
        {"target_modules": ["decoder"]},
    ),
    "t5": (t5, {}),
    "t5, tied embedding": (t5, {"target_modules": ["embed_tokens", "q"]}),
    "t5, tied embedding that nothing calls": (t5, {"target_modules": ["shared", "q"]}),
    "t5, tied head": (t5, {"target_modules": ["lm_head"]}),
    "t5, tied head trained": (t5, {"target_modules": ["q"], "modules_to_save": ["lm_head"]}),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_merged_checkpoint_loads_with_plain_transformers(case, tmp_path):
    build, options = CHECKPOINTS[case]
    model = with_adapter(build, **options)
    expected = logits(model)
    merge_and_unload(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    again = reloaded(model, tmp_path)
    assert largest_error(logits(again), expected) < LOGITS_TOLERANCE
    assert type(again) is type(model)
    if "tied" in case and build is not t5:  # T5's config no longer knows untied embeddings
        assert not again.config.tie_word_embeddings


def test_a_merge_that_unties_nothing_keeps_the_config_s_ties():
    model = with_adapter(gpt2, target_modules=["c_attn"])
    merge_and_unload(model)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_merge_that_unties_one_weight_saves_all_that_were_tied(tmp_path):
    import transformers

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(
        vocab_size=32, d_model=16, max_position_embeddings=32, init_std=0.3, **sizes, **heads
    )
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config).eval()
    shared = model.model.shared
    assert model.lm_head.weight is shared.weight is model.model.encoder.embed_tokens.weight
    add_adapter(model, LoraConfig(r=2, target_modules=["lm_head"]))
    randomize_(model)
    given = {"input_ids": torch.arange(4, 10)[None], "decoder_input_ids": torch.arange(3, 8)[None]}
    expected = model(**given).logits
    merge_and_unload(model).save_pretrained(tmp_path)
    again, said = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not said["missing_keys"]
    assert largest_error(again(**given).logits, expected) < LOGITS_TOLERANCE
