"""W0 as an adapter saw it in training, oriented as its updates."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit import (
    Adapter,
    LoraConfig,
    QuantizationConfig,
    add_adapter,
    quantize_model,
    save_adapter,
)
from lorakit.adapters.inference_settings import SETTINGS_FILE
from lorakit.analysis import analyze_adapter
from lorakit.errors import AdapterMismatchError, ConfigError, MissingFileError
from lorakit.inference.base_weights import load_base_weights
from lorakit.layers.bitsandbytes_storage import quantized_weight
from lorakit.ops.quantized import dense_copy
from tiny_models import randomize_


def saved_adapter(directory, base, auto_class=AutoModelForCausalLM, **config):
    model = auto_class.from_pretrained(base)
    add_adapter(model, LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM"} | config))
    save_adapter(model, directory)
    return directory


def change_config(directory, **values):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_linear_weights_are_those_of_the_checkpoint(tmp_path, tiny_llama_dir):
    adapter = saved_adapter(tmp_path / "a", tiny_llama_dir, target_modules=["q_proj", "down_proj"])
    weights = load_base_weights(adapter)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    assert len(weights) == 4 and weights.how == "float32"
    for path in weights:
        assert torch.equal(weights[path], model.get_submodule(path).weight)


def test_weights_of_gpt2_and_of_embeddings_are_transposed(tmp_path, tiny_gpt2_dir):
    adapter = saved_adapter(tmp_path / "a", tiny_gpt2_dir, target_modules=["c_attn", "wte"], r=3)
    weights = load_base_weights(adapter)
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    attention = weights["transformer.h.1.attn.c_attn"]
    assert attention.shape == (96, 32)
    assert torch.equal(attention, model.transformer.h[1].attn.c_attn.weight.t())
    assert torch.equal(weights["transformer.wte"], model.transformer.wte.weight.t())


def test_trained_heads_need_not_fit(tmp_path, tiny_distilbert_dir):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_distilbert_dir, num_labels=5)
    config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_lin"], bias="lora_only")
    add_adapter(model, config)
    save_adapter(model, tmp_path / "a")
    weights = load_base_weights(tmp_path / "a")
    assert len(weights) == 2
    for path in weights:
        assert torch.equal(weights[path], model.get_submodule(path).weight)


def test_a_base_that_was_quantized_in_training_is_quantized_again(tmp_path, tiny_llama_dir):
    adapter = saved_adapter(tmp_path / "a", tiny_llama_dir, target_modules=["q_proj"])
    quantization = {"bits": 4, "compute_dtype": "float32"}
    (adapter / SETTINGS_FILE).write_text(json.dumps({"quantization": quantization}))
    weights = load_base_weights(adapter)
    assert weights.how == "nf4 (float32)"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    dense = {path: model.get_submodule(path).weight.clone() for path in weights}
    quantize_model(model, QuantizationConfig(**quantization))
    for path in weights:
        expected = dense_copy(quantized_weight(model.get_submodule(path)), torch.float32)
        torch.testing.assert_close(weights[path], expected)
        assert not torch.equal(weights[path], dense[path])


def test_another_base_can_be_named_and_must_fit(tmp_path, tiny_llama_dir, tiny_gpt2_dir):
    adapter = saved_adapter(tmp_path / "a", tiny_llama_dir, target_modules=["q_proj"])
    change_config(adapter, base_model_name_or_path="somewhere/else/entirely")
    assert len(load_base_weights(adapter, tiny_llama_dir)) == 2
    with pytest.raises(AdapterMismatchError, match="made for another base"):
        load_base_weights(adapter, tiny_gpt2_dir)
    with pytest.raises(
        MissingFileError, match=r"base_model_name_or_path of .*adapter_config\.json"
    ):
        load_base_weights(adapter)


@pytest.mark.parametrize(
    ("field", "message"),
    [("task_type", "No task in"), ("base_model_name_or_path", "No base model in")],
)
def test_what_the_adapter_does_not_say_is_asked_for(tmp_path, tiny_llama_dir, field, message):
    adapter = saved_adapter(tmp_path / "a", tiny_llama_dir, target_modules=["q_proj"])
    change_config(adapter, **{field: None})
    with pytest.raises(ConfigError, match=message):
        load_base_weights(adapter)


def test_convolutions_are_matrices_and_those_in_groups_are_left_out(tmp_path):
    from transformers import SqueezeBertConfig, SqueezeBertForSequenceClassification

    sizes = {"vocab_size": 32, "hidden_size": 16, "embedding_size": 16, "intermediate_size": 32}
    config = SqueezeBertConfig(num_hidden_layers=1, num_attention_heads=2, q_groups=2, **sizes)
    config.k_groups = config.post_attention_groups = 1
    torch.manual_seed(0)
    model = SqueezeBertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    targets = ["query", "key"]
    add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=targets))
    randomize_(model)
    save_adapter(model, tmp_path / "a")
    weights = load_base_weights(tmp_path / "a", str(tmp_path / "base"))
    assert [path.rpartition(".")[2] for path in weights] == ["key"]
    path = next(iter(weights))
    assert torch.equal(weights[path], model.get_submodule(path).weight.flatten(1))
    analysis = analyze_adapter(Adapter.load(tmp_path / "a"), weights)
    assert len(analysis.updates) == 2
    assert [found.path for found in analysis.amplifications] == [path]
