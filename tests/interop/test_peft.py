"""Files go both ways between lorakit and PEFT, with the same logits on either side."""

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lorakit import Adapter, LoraConfig, add_adapter, count_parameters, load_adapter, save_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import AdapterFileError, AdapterMismatchError
from tiny_models import bert, bloom, distilbert, gpt2, llama, logits, randomize_, roberta, t5
from tiny_models.peft_models import peft_model
from tolerances import LOGITS_TOLERANCE, largest_error

# PEFT's remarks about what it does on its own; none of them concerns what is tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor.* have invalid shape"),
]


SEQ_CLS, TOKEN_CLS = {"task_type": "SEQ_CLS"}, {"task_type": "TOKEN_CLS"}


def score_llama():
    return llama("LlamaForSequenceClassification")


def score_gpt2():
    return gpt2("GPT2ForSequenceClassification")


CASES = {
    "Linear": (llama, {"target_modules": ["q_proj", "v_proj"]}),
    "Linear, task": (llama, {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}),
    "Linear, all-linear": (llama, {"target_modules": "all-linear"}),
    "Linear, regex": (llama, {"target_modules": r".*\.1\..*(q|up)_proj"}),
    "Linear, patterns": (
        llama,
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "r": 4,
            "lora_alpha": 3,
            "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 3},
            "alpha_pattern": {r".*layers\.0.*": 7, "up_proj": 1},
        },
    ),
    "Linear, rslora": (llama, {"target_modules": ["q_proj"], "use_rslora": True, "r": 3}),
    "Linear, one layer": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ),
    "Linear, layers pattern": (
        llama,
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    ),
    "Linear, exclusion": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    ),
    "Linear, head trained": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "Linear, head adapted": (llama, {"target_modules": ["q_proj", "lm_head"]}),
    "Linear, score": (score_llama, {"target_modules": ["q_proj"], **SEQ_CLS}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "Conv1D, all-linear": (gpt2, {"target_modules": "all-linear", "fan_in_fan_out": True}),
    "Conv1D, c_proj": (gpt2, {"target_modules": ["c_proj"], "fan_in_fan_out": True}),
    "Conv1D, lora_only": (
        gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"},
    ),
    "Conv1D, all": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "Conv1D, score": (
        score_gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, **SEQ_CLS},
    ),
    "Embedding": (llama, {"target_modules": ["embed_tokens"]}),
    "Embedding and Linear": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "Embedding and head": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "Embedding, rslora": (
        llama,
        {"target_modules": ["embed_tokens"], "use_rslora": True, "lora_alpha": 5},
    ),
    "DistilBERT": (distilbert, {"target_modules": ["q_lin", "v_lin"], **SEQ_CLS}),
    "DistilBERT, lora_only": (
        distilbert,
        {"target_modules": ["q_lin"], "bias": "lora_only", **SEQ_CLS},
    ),
    "DistilBERT, all": (distilbert, {"target_modules": ["q_lin"], "bias": "all", **SEQ_CLS}),
    "BERT": (bert, {"target_modules": ["query", "value"], **TOKEN_CLS}),
    "BERT, all": (bert, {"target_modules": ["query"], "bias": "all", **TOKEN_CLS}),
    "RoBERTa, dense": (roberta, {"target_modules": ["dense"], **SEQ_CLS}),
    "RoBERTa, all": (roberta, {"target_modules": ["query"], "bias": "all", **SEQ_CLS}),
    "RoBERTa, lora_only": (roberta, {"target_modules": ["dense"], "bias": "lora_only", **SEQ_CLS}),
    "T5": (t5, {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}),
    "T5, all-linear": (t5, {"target_modules": "all-linear"}),
    "T5, all": (t5, {"target_modules": ["q", "v"], "bias": "all"}),
    "BLOOM": (bloom, {"target_modules": ["query_key_value"], "task_type": "CAUSAL_LM"}),
    "BLOOM, all": (bloom, {"target_modules": ["query_key_value"], "bias": "all"}),
    "BLOOM, lora_only": (bloom, {"target_modules": ["query_key_value"], "bias": "lora_only"}),
}


def loaded_by_peft(build, path):
    """Load an adapter with PEFT; it warns of a missing key, and a warning is an error here."""
    model = PeftModel.from_pretrained(build(), path).eval()
    unexpected = load_file(path / WEIGHTS_FILE).keys() - get_peft_model_state_dict(model).keys()
    assert unexpected == set()
    return model


# Only lorakit leaves the heads out of "all-linear"; PEFT adapts and trains them, and fails.
ONLY_HERE = {
    "DistilBERT, all-linear": (distilbert, {"target_modules": "all-linear", **SEQ_CLS}),
    "RoBERTa, all-linear": (roberta, {"bias": "all", **SEQ_CLS}),
    "GPT-2, tied and trained": (
        gpt2,
        {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]},
    ),
}


# PEFT trains a copy of each; lorakit's stay one.
ONLY_THERE = {
    "tied and trained": (
        lambda: llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
}


@pytest.mark.parametrize("case", CASES | ONLY_THERE)
def test_what_peft_saved_lorakit_loads(case, tmp_path):
    build, options = (CASES | ONLY_THERE)[case]
    theirs = peft_model(build, **options)
    theirs.save_pretrained(tmp_path)
    ours = build()
    injection = load_adapter(ours, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE
    assert largest_error(logits(ours), logits(build())) > 100 * LOGITS_TOLERANCE
    factors = [n for n, _ in theirs.named_parameters() if ".lora_A." in n or "embedding_A" in n]
    assert len(injection.matches) == len(factors)


@pytest.mark.parametrize("case", CASES | ONLY_HERE)
def test_what_lorakit_saved_peft_loads(case, tmp_path):
    build, options = (CASES | ONLY_HERE)[case]
    ours = build()
    add_adapter(ours, LoraConfig(**options))
    randomize_(ours)
    save_adapter(ours, tmp_path)
    theirs = loaded_by_peft(build, tmp_path)
    assert largest_error(logits(theirs), logits(ours)) < LOGITS_TOLERANCE
    assert largest_error(logits(ours), logits(build())) > 100 * LOGITS_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_both_adapt_the_same_and_train_as_many_parameters(case):
    build, options = CASES[case]
    theirs = get_peft_model(build(), peft.LoraConfig(**options))
    ours = build()
    add_adapter(ours, LoraConfig(**options))
    trainable, total = theirs.get_nb_trainable_parameters()
    count = count_parameters(ours)
    assert count.trainable == trainable
    if options.get("bias", "none") == "none":  # PEFT trains biases in place, without a copy
        assert count.total == total


def test_a_round_trip_through_peft_keeps_every_bit(tmp_path):
    ours = distilbert()
    add_adapter(ours, LoraConfig(r=2, target_modules=["q_lin"], **SEQ_CLS))
    randomize_(ours)
    save_adapter(ours, tmp_path / "ours")
    PeftModel.from_pretrained(distilbert(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    first, second = (Adapter.load(tmp_path / name) for name in ("ours", "theirs"))
    assert first.factors.keys() == second.factors.keys()
    for path, pair in first.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second.factors[path], strict=True))
    assert first.replaced.keys() == second.replaced.keys()
    assert all(torch.equal(t, second.replaced[k]) for k, t in first.replaced.items())


def test_an_adapter_in_a_sub_folder_of_its_name(tmp_path):
    model = get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]), "topic")
    randomize_(model.eval()).save_pretrained(tmp_path)
    ours = llama()
    with pytest.raises(FileNotFoundError, match="Sub-folders that hold an adapter: topic"):
        load_adapter(ours, tmp_path)
    load_adapter(ours, tmp_path / "topic")
    assert largest_error(logits(ours), logits(model)) < LOGITS_TOLERANCE


def test_half_precision_files(tmp_path):
    theirs = peft_model(lambda: llama().bfloat16(), target_modules=["q_proj"])
    theirs.base_model.model.to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = llama().bfloat16()
    load_adapter(ours, tmp_path)
    # Both round to bfloat16, each at other places.
    assert largest_error(logits(ours), logits(theirs)) < 0.05


def test_the_embedding_peft_repeats_must_be_the_base_s(tmp_path):
    theirs = peft_model(llama, target_modules=["embed_tokens"])
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    tensors = load_file(weights)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in tensors
    tensors[key] = tensors[key] + 1
    save_file(tensors, weights)
    with pytest.raises(AdapterMismatchError, match="differs from the base's"):
        load_adapter(llama(), tmp_path)
    tensors[key] = tensors[key][:-1].clone()
    save_file(tensors, weights)
    with pytest.raises(AdapterMismatchError, match=r"has shape \(31, 16\).*is \(32, 16\).*Resize"):
        load_adapter(llama(), tmp_path)


def test_a_resized_vocabulary_is_reported(tmp_path):
    """PEFT repeats both embeddings when their size changed; the base must have them too."""
    theirs = peft_model(llama, target_modules=["q_proj"])
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    ours = llama()
    load_adapter(ours, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE
    with pytest.raises(AdapterMismatchError, match=r"weight has shape \(32, 16\).*Resize"):
        load_adapter(resized(), tmp_path)


def resized():
    model = llama()
    model.resize_token_embeddings(40)
    return model


@pytest.mark.parametrize(
    "config,named",
    [
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication=[[0, 2], [0, 2]]"),
    ],
)
def test_features_lorakit_does_not_have_are_refused_by_name(config, named, tmp_path):
    theirs = get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], **config))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(llama(), tmp_path)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        peft.VeraConfig(target_modules=["q_proj"], r=2),
    ],
    ids=lambda c: c.peft_type.value,
)
def test_other_methods_are_refused_by_name(config, tmp_path):
    get_peft_model(llama(), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match=f"of type '{config.peft_type.value}'"):
        load_adapter(llama(), tmp_path)


@pytest.mark.parametrize("init", ["eva", "orthogonal", "gaussian"])
def test_initializations_that_leave_the_base_alone(init, tmp_path):
    theirs = peft_model(llama, target_modules=["q_proj"])
    theirs.save_pretrained(tmp_path)
    file = tmp_path / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
    ours = llama()
    load_adapter(ours, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning")
def test_files_that_peft_has_converted_from_a_rewritten_base(init, use_rslora, tmp_path):
    """They are plain LoRA of twice the rank, for the base as it was."""
    options = {"target_modules": ["q_proj"], "init_lora_weights": init, "use_rslora": use_rslora}
    theirs = get_peft_model(llama(), peft.LoraConfig(r=4, lora_alpha=6, **options)).eval()
    theirs.peft_config["default"].init_lora_weights = True  # what PEFT asks for
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    theirs.save_pretrained(
        tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    ours = llama()
    injection = load_adapter(ours, tmp_path / "end")
    assert {match.r for match in injection.matches} == {8}
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE
    assert largest_error(logits(ours), logits(llama())) > 100 * LOGITS_TOLERANCE


def test_a_merge_here_equals_a_merge_there(tmp_path):
    from lorakit import merge_and_unload

    theirs = peft_model(roberta, target_modules=["query", "value"], bias="all", **SEQ_CLS)
    theirs.save_pretrained(tmp_path)
    ours = roberta()
    load_adapter(ours, tmp_path)
    merged = merge_and_unload(ours).state_dict()
    expected = theirs.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(merged[name], tensor, atol=1e-6), name
