"""Adapters that no run of lorakit made, loaded to be used."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lorakit.adapters import save_adapter
from lorakit.config import LoraConfig
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.inference import classify, generate_text, load_for_inference
from lorakit.injection import add_adapter


def plain_adapter(directory, model, **config):
    """Save an adapter as another tool would: without lorakit.json and without a tokenizer."""
    add_adapter(model, LoraConfig(r=2, init_lora_weights=False, **config))
    save_adapter(model, directory)
    return directory


def test_adapter_of_another_tool(tmp_path, tiny_distilbert_dir):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_distilbert_dir, num_labels=3)
    directory = plain_adapter(tmp_path, model.eval(), task_type="SEQ_CLS")

    loaded = load_for_inference(directory)

    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loaded.tokenizer.name_or_path == tiny_distilbert_dir
    encoded = loaded.tokenizer("good film", return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits.softmax(-1)[0].tolist()
    assert list(classify(loaded, ["good film"])[0].probabilities.values()) == pytest.approx(
        expected, rel=1e-5
    )


def test_plain_prompts_of_a_plain_adapter(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    loaded = load_for_inference(plain_adapter(tmp_path, model, task_type="CAUSAL_LM"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)

    written = generate_text(loaded, ["the grass is", ""], max_new_tokens=5)

    ids = tokenizer("the grass is", return_tensors="pt")["input_ids"]
    made = model.eval().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=3
    )
    assert written[0] == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    with pytest.raises(DataError) as caught:
        generate_text(loaded, [[{"role": "user", "content": "hi"}]])
    assert str(caught.value) == (
        "A conversation cannot be rendered: the tokenizer used with the adapter (base "
        f"'{tiny_gpt2_dir}') has no chat template. Give the prompt as one text."
    )


def changed_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_adapter_without_base_or_task(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    directory = plain_adapter(tmp_path, model, task_type="CAUSAL_LM")

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
    directory = plain_adapter(tmp_path, model, task_type="CAUSAL_LM")
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
