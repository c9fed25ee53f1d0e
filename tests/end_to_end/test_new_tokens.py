"""New tokens from the recipe to the merged checkpoint: trained, resumed, generated with, merged."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorakit.adapters import Adapter, load_adapter
from lorakit.errors import AdapterMismatchError
from lorakit.inference import generate_text, load_for_inference
from lorakit.inference.merge_checkpoint import merge_to_checkpoint
from lorakit.training import Recipe, evaluate, train

NEW = ["<call>", "</call>"]


@pytest.fixture(scope="module")
def calls_jsonl(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "calls.jsonl"
    rows = [
        {"prompt": f"what colour is the {thing}?", "completion": f" <call>{colour}</call>"}
        for thing, colour in (("grass", "green"), ("sky", "blue")) * 12
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe_for(model, data, output, **training):
    values = {
        "model": model,
        "task": "CAUSAL_LM",
        "data": {"train": data, "validation_fraction": 0.25, "new_tokens": NEW},
        "lora": {"r": 4, "lora_dropout": 0.1},
        "output": str(output),
        "training": {
            "num_train_epochs": 15,
            "per_device_train_batch_size": 6,
            "learning_rate": 2e-2,
            "use_cpu": True,
            **training,
        },
    }
    return Recipe.check(values, "the recipe")


@pytest.fixture(scope="module", params=["tiny_llama_dir", "tiny_gpt2_dir"])
def trained(request, calls_jsonl, tmp_path_factory):
    """A finished run on an untied and on a tied model, and its base's directory."""
    base = request.getfixturevalue(request.param)
    result = train(recipe_for(base, calls_jsonl, tmp_path_factory.mktemp("runs") / "run"))
    return result, base


def test_the_adapter_has_the_rows_and_the_tokenizer(trained):
    result, base = trained
    adapter = Adapter.load(result.adapter_path)
    tokenizer = AutoTokenizer.from_pretrained(result.adapter_path)
    ids = tokenizer.convert_tokens_to_ids(NEW)
    there = len(AutoTokenizer.from_pretrained(base))
    assert ids == [there, there + 1]
    assert [len(rows) for rows in adapter.trained_tokens.values()] == [2] * len(
        adapter.trained_tokens
    )
    is_tied = AutoConfig.from_pretrained(base).tie_word_embeddings
    assert len(adapter.trained_tokens) == (1 if is_tied else 2)
    assert "Trained tokens: 2 rows" in str(result.injection)
    assert result.metrics["eval_loss"] < 1.0


def test_a_new_token_is_generated(trained):
    loaded = load_for_inference(trained[0].run_dir, device="cpu")
    text = "".join(generate_text(loaded, "what colour is the sky?", max_new_tokens=4))
    assert "<call>" in text


def test_a_merged_checkpoint_has_the_vocabulary(trained, tmp_path):
    result, base = trained
    report = merge_to_checkpoint(result.run_dir, tmp_path / "merged")
    assert report.relative_deviation < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    grown = AutoConfig.from_pretrained(base).vocab_size + 2
    assert merged.config.vocab_size == grown == merged.get_input_embeddings().weight.shape[0]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == grown
    config = AutoConfig.from_pretrained(base)
    assert merged.config.tie_word_embeddings == config.tie_word_embeddings
    rows = load_file(result.adapter_path / "adapter_model.safetensors")
    delta = next(rows[key] for key in sorted(rows, reverse=True) if "trainable_tokens" in key)
    assert torch.equal(merged.get_input_embeddings().weight[-2:], delta)


def test_evaluating_gives_the_metrics_of_the_run(trained):
    result, _ = trained
    measured = evaluate(result.run_dir)
    assert measured["eval_loss"] == pytest.approx(result.metrics["eval_loss"], rel=1e-5)


def test_load_adapter_says_how_to_resize_and_changes_nothing(trained):
    result, base = trained
    model = AutoModelForCausalLM.from_pretrained(base)
    before = model.get_input_embeddings().weight.shape[0]
    sentence = rf"resize_token_embeddings\({before + 2}\)"
    with pytest.raises(AdapterMismatchError, match=sentence):
        load_adapter(model, result.adapter_path)
    assert model.get_input_embeddings().weight.shape[0] == before
    model.resize_token_embeddings(before + 2)
    load_adapter(model, result.adapter_path)


@pytest.mark.parametrize("kind", ["tiny_llama_dir", "tiny_gpt2_dir"])
def test_a_resumed_run_ends_with_the_same_bits(kind, request, calls_jsonl, tmp_path):
    base = request.getfixturevalue(kind)
    one = {"num_train_epochs": 1, "save_strategy": "epoch", "lr_scheduler_type": "constant"}
    two = {**one, "num_train_epochs": 2}
    train(recipe_for(base, calls_jsonl, tmp_path / "resumed", **one))
    resumed = train(recipe_for(base, calls_jsonl, tmp_path / "resumed", **two), resume=True)
    straight = train(recipe_for(base, calls_jsonl, tmp_path / "once", **two))
    got, expected = (
        load_file(result.adapter_path / "adapter_model.safetensors")
        for result in (resumed, straight)
    )
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in got)
