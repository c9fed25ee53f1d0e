"""Trained tokens as PEFT has them: outputs, gradients of the rows, and files both ways."""

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from lorakit import Adapter, LoraConfig, add_adapter, load_adapter, merge_and_unload, save_adapter
from lorakit.adapters import adapter_state_dict
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import AdapterMismatchError
from tiny_models import bert, bloom, gpt2, llama, logits, randomize_, t5, tokens
from tolerances import GRADIENT_TOLERANCE, LOGITS_TOLERANCE, largest_error

# PEFT's remarks about what it does on its own; none of them concerns what is tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]


def tied_llama():
    return llama(tie_word_embeddings=True)


def score_gpt2():
    return gpt2("GPT2ForSequenceClassification")


CASES = {
    "gpt2, tied": (gpt2, {"target_modules": ["c_attn"]}, [9, 5, 3]),
    "gpt2, both named": (
        gpt2,
        {"target_modules": ["c_attn"]},
        {"wte": [9, 5, 3], "lm_head": [9, 5, 3]},
    ),
    "gpt2, other rows": (gpt2, {"target_modules": ["c_attn"]}, {"wte": [9, 5], "lm_head": [3]}),
    "gpt2, head alone": (gpt2, {"target_modules": ["c_attn"]}, {"lm_head": [3, 20]}),
    "gpt2, head adapted": (gpt2, {"target_modules": ["c_attn", "lm_head"]}, [9, 5, 3]),
    "gpt2, classifier": (
        score_gpt2,
        {"target_modules": ["c_attn"], "task_type": "SEQ_CLS"},
        [9, 5],
    ),
    "bloom, tied": (bloom, {"target_modules": ["query_key_value"]}, [9, 5, 3]),
    "llama, tied": (tied_llama, {"target_modules": ["q_proj"]}, [9, 5, 3]),
    "llama, untied": (llama, {"target_modules": ["q_proj"]}, [9, 5, 3]),
    "llama, both": (
        llama,
        {"target_modules": ["q_proj"]},
        {"embed_tokens": [9, 5], "lm_head": [30, 4, 9]},
    ),
    "llama, whole path": (llama, {"target_modules": ["q_proj"]}, {"model.embed_tokens": [9]}),
    "llama, head adapted": (llama, {"target_modules": ["q_proj", "lm_head"]}, [9, 5, 3]),
    "llama, dora": (llama, {"target_modules": ["q_proj"], "use_dora": True}, [9, 5, 3]),
    "llama, head trained": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        [9, 5],
    ),
    "bert": (bert, {"target_modules": ["query"], "task_type": "TOKEN_CLS"}, [9, 5]),
    "t5, tied": (t5, {"target_modules": ["q", "v"]}, [9, 5, 3]),
    "t5, one side": (t5, {"target_modules": ["q"]}, {"encoder.embed_tokens": [9, 5]}),
    "t5, two sides": (t5, {"target_modules": ["q"]}, {"embed_tokens": [9, 5]}),
}


def peft_model(case, seed=3):
    """Return a PEFT model with random factors, rows and heads."""
    build, options, indices = CASES[case]
    torch.manual_seed(0)
    config = peft.LoraConfig(trainable_token_indices=indices, **options)
    return randomize_(get_peft_model(build(), config).eval(), seed=seed)


def base_logits(case):
    return logits(CASES[case][0]())


@pytest.mark.parametrize("case", CASES)
def test_files_go_both_ways_with_the_same_logits(case, tmp_path):
    build = CASES[case][0]
    theirs = peft_model(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = build()
    load_adapter(ours, tmp_path / "theirs")
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE
    assert largest_error(logits(ours), base_logits(case)) > 100 * LOGITS_TOLERANCE

    save_adapter(ours, tmp_path / "ours")
    mine, saved = (load_file(tmp_path / f / WEIGHTS_FILE) for f in ("ours", "theirs"))
    assert mine.keys() == saved.keys()
    assert all(torch.equal(mine[key], saved[key]) for key in mine)
    again = PeftModel.from_pretrained(build(), tmp_path / "ours").eval()
    assert load_file(tmp_path / "ours" / WEIGHTS_FILE).keys() == (
        get_peft_model_state_dict(again).keys()
    )
    assert largest_error(logits(again), logits(theirs)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_rows_are_peft_s(case, tmp_path):
    theirs = peft_model(case)
    theirs.save_pretrained(tmp_path)
    ours = CASES[case][0]()
    load_adapter(ours, tmp_path, trainable=True)
    for parameter in theirs.parameters():
        parameter.requires_grad_(True)
    for model in (ours, theirs):
        out = model(**tokens(ours)).logits
        out.float().square().mean().backward()
    rows = {
        name.removesuffix(".token_adapter.trainable_tokens_delta.default"): parameter.grad
        for name, parameter in theirs.named_parameters()
        if "trainable_tokens_delta" in name
    }
    found = {
        f"base_model.model.{path}": module.trained_copies["default"].rows.grad
        for path, module in ours.named_modules()
        if getattr(module, "trained_copies", None)
        and getattr(module.trained_copies["default"], "is_named", False)
    }
    found = {key.removesuffix(".base_layer"): gradient for key, gradient in found.items()}
    assert rows.keys() == found.keys()
    for path, gradient in rows.items():
        assert gradient.any()
        assert largest_error(found[path], gradient) < 4 * GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("case", CASES)
def test_a_merge_gives_what_peft_gives(case, tmp_path):
    theirs = peft_model(case)
    theirs.save_pretrained(tmp_path)
    expected = logits(theirs)
    ours = CASES[case][0]()
    load_adapter(ours, tmp_path)
    merge_and_unload(ours)
    assert largest_error(logits(ours), expected) < LOGITS_TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_files_of_a_model_whose_vocabulary_has_grown(tied, tmp_path):
    """PEFT repeats both embeddings in such a file, and the rows of tied ones under both names."""
    small = llama(tie_word_embeddings=tied)
    small.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    grown = type(small).from_pretrained(tmp_path / "base")
    grown.resize_token_embeddings(36)
    grown.save_pretrained(tmp_path / "grown")
    config = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 33])
    theirs = randomize_(get_peft_model(grown.eval(), config), seed=3).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    assert any("base_layer.weight" in key for key in load_file(tmp_path / "adapter" / WEIGHTS_FILE))

    with pytest.raises(AdapterMismatchError, match=r"resize_token_embeddings\(3[46]\)"):
        load_adapter(small, tmp_path / "adapter")
    ours = type(small).from_pretrained(tmp_path / "grown").eval()
    load_adapter(ours, tmp_path / "adapter")
    inputs = {"input_ids": torch.tensor([[5, 33, 35, 7]])}
    with torch.no_grad():
        got, expected = ours(**inputs).logits, theirs(**inputs).logits
    assert largest_error(got, expected) < LOGITS_TOLERANCE


def test_the_config_says_what_peft_s_says(tmp_path):
    ours = llama()
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[9, 5])
    add_adapter(ours, config)
    save_adapter(ours, tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert values["trainable_token_indices"] == [9, 5]
    assert Adapter.load(tmp_path).config.trainable_token_indices == (9, 5)
    assert any("trainable_tokens_delta" in key for key in adapter_state_dict(ours))
