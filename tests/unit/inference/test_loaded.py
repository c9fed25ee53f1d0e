"""Adapters of runs and of other tools, loaded to be used."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from lorakit.adapters import load_adapter
from lorakit.errors import AdapterMismatchError, ConfigError, MissingFileError
from lorakit.inference import classify, generate_text, load_for_inference, tag
from lorakit.inference.base_weights import load_base_weights
from tiny_models import logits
from tiny_models.adapted import save_adapter_of


def test_adapter_of_another_tool(tmp_path, tiny_distilbert_dir):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_distilbert_dir, num_labels=3)
    directory = save_adapter_of(tmp_path, model.eval(), task_type="SEQ_CLS")

    loaded = load_for_inference(directory)

    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loaded.tokenizer.name_or_path == tiny_distilbert_dir
    encoded = loaded.tokenizer("good film", return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits.softmax(-1)[0].tolist()
    assert list(classify(loaded, ["good film"])[0].probabilities.values()) == pytest.approx(
        expected, rel=1e-5
    )


def changed_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_adapter_without_base_or_task(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    directory = save_adapter_of(tmp_path, model, task_type="CAUSAL_LM")

    changed_config(directory, base_model_name_or_path=None)
    with pytest.raises(ConfigError) as caught:
        load_for_inference(directory)
    assert str(caught.value) == (
        f"No base model in {directory}/adapter_config.json: got null in base_model_name_or_path, "
        "expected a hub id or a directory. Name the base yourself (--base-model on the command "
        "line)."
    )

    changed_config(directory, base_model_name_or_path=tiny_gpt2_dir, task_type=None)
    with pytest.raises(ConfigError) as caught:
        load_for_inference(directory)
    assert str(caught.value) == (
        f"No task in {directory}/adapter_config.json: got null in task_type, expected one of "
        "CAUSAL_LM, SEQ_CLS, TOKEN_CLS, SEQ_2_SEQ_LM. Write it into the file."
    )


def test_base_that_is_gone(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    directory = save_adapter_of(tmp_path, model, task_type="CAUSAL_LM")
    changed_config(directory, base_model_name_or_path="/gone/away")

    with pytest.raises(MissingFileError) as caught:
        load_for_inference(directory)

    assert str(caught.value) == (
        f"No model in base_model_name_or_path of {directory}/adapter_config.json: got "
        "'/gone/away', which does not exist. There is no folder '/gone' either. Check the path; "
        "it is relative to the current directory."
    )


def test_no_adapter_there(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        load_for_inference("some/adapter")
    message = str(caught.value)
    assert message.startswith(
        "No adapter at 'some/adapter': it is not a local directory, and "
        "fetching it from the Hugging Face hub failed ("
    )
    assert message.endswith("Check the name and the network, or name a local directory.")

    with pytest.raises(MissingFileError, match="it has no adapter_config"):
        load_for_inference(tmp_path)


def test_run_and_adapter_directory_give_the_same(classifier, classifier_run):
    assert classifier.labels == ("negative", "positive")
    texts = ["the film was great", "snow"]

    other = load_for_inference(classifier_run / "adapter")

    assert classify(other, texts) == classify(classifier, texts)


def test_other_task(tmp_path, classifier, tiny_gpt2_dir):
    with pytest.raises(ConfigError) as caught:
        generate_text(classifier, ["good"])
    assert str(caught.value) == (
        "This adapter cannot generate text: got task SEQ_CLS, expected CAUSAL_LM or "
        "SEQ_2_SEQ_LM. Use an adapter that was trained for it."
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    writer = load_for_inference(save_adapter_of(tmp_path, model, task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="cannot classify: got task CAUSAL_LM"):
        classify(writer, ["good"])
    with pytest.raises(ConfigError, match="cannot tag words: got task CAUSAL_LM"):
        tag(writer, ["good"])


def test_base_and_dtype_can_be_given(tmp_path, tiny_bert_dir, classifier, classifier_run):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_bert_dir, moved)

    loaded = load_for_inference(classifier_run, base=str(moved), dtype="bfloat16")

    assert loaded.base == str(moved)
    assert loaded.model.dtype == torch.bfloat16
    assert classifier.model.dtype == torch.float32


def test_checkpoint_is_used_with_the_tokenizer_and_labels_of_its_run(classifier_run):
    checkpoint = classifier_run / "checkpoint-1"
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(classifier_run / "adapter" / name, checkpoint)

    loaded = load_for_inference(checkpoint)

    assert loaded.labels == ("negative", "positive")
    assert loaded.max_length == 16
    assert loaded.tokenizer.name_or_path == str(classifier_run / "adapter")


def test_logits_are_those_of_the_adapter_loaded_by_hand(tmp_path, tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    loaded = load_for_inference(save_adapter_of(tmp_path, model, task_type="CAUSAL_LM"))
    by_hand = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    load_adapter(by_hand, tmp_path)

    expected = logits(by_hand)
    assert torch.equal(logits(loaded.model), expected)
    assert torch.equal(expected, logits(model))


def test_the_named_base_must_have_the_weights_of_the_training(
    tmp_path, classifier_run, tiny_bert_dir
):
    directory = tmp_path / "adapter"
    shutil.copytree(classifier_run / "adapter", directory)
    file = directory / "lorakit.json"
    settings = json.loads(file.read_text())
    settings["lineage"]["base_digest"] = "0" * 64  # as if the base had been trained on since then
    file.write_text(json.dumps(settings))
    with pytest.raises(AdapterMismatchError, match=r"other weights than in training: .* 000000"):
        load_for_inference(directory)
    with pytest.raises(AdapterMismatchError, match=r"other weights than in training"):
        load_base_weights(directory)
    named = load_for_inference(directory, base=tiny_bert_dir)
    assert named.base == tiny_bert_dir
    assert "other weights than the base of the training" in named.note
    assert load_for_inference(classifier_run / "adapter", base=tiny_bert_dir).note is None
