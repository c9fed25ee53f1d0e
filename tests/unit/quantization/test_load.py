"""Quantizing a checkpoint while it is read, a model in memory, and reading what is quantized."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lorakit import LoraConfig, QuantizationConfig, add_adapter, count_parameters
from lorakit.config import TaskType
from lorakit.errors import ConfigError, QuantizationError, TargetError
from lorakit.layers.bitsandbytes_storage import bits_of, quantized_weight
from lorakit.models.pretrained import load_model
from lorakit.quantization import quantize_model
from tiny_models import TinyNet, gpt2, llama, logits, t5
from tiny_models.quantized import SETTINGS, dense_twin, quantized
from tolerances import LOGITS_TOLERANCE, largest_error

OPTIONS = {"seed": 0, "has_head": False}


def load(auto_class, path, settings, **options):
    given = OPTIONS | options
    return load_model(auto_class, path, quantization=QuantizationConfig(**settings), **given)


def linears(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


def test_linear_layers_are_quantized_and_the_rest_is_not(tiny_llama_dir, settings):
    model = load(AutoModelForCausalLM, tiny_llama_dir, settings)
    kinds = {name: bits_of(layer) for name, layer in linears(model).items()}
    assert kinds.pop("lm_head") is None
    assert set(kinds.values()) == {settings["bits"]} and len(kinds) == 14
    assert model.model.embed_tokens.weight.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.float32
    assert {quantized_weight(linears(model)[name]).layout.quant_type for name in kinds} == {
        settings.get("quant_type", "nf4") if settings["bits"] == 4 else "int8"
    }


def test_loading_gives_the_very_weights_that_quantizing_in_memory_gives(tiny_llama_dir, settings):
    loaded = load(AutoModelForCausalLM, tiny_llama_dir, settings)
    dense = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    made = quantize_model(dense, QuantizationConfig(**settings))
    for name, layer in linears(made).items():
        one, two = quantized_weight(layer), quantized_weight(linears(loaded)[name])
        if one is not None:
            assert torch.equal(one.codes, two.codes) and torch.equal(one.absmax, two.absmax), name
    assert torch.equal(logits(made), logits(loaded))


@pytest.mark.parametrize("build", [llama, gpt2, t5], ids=lambda build: build.__name__)
def test_a_quantized_model_computes_as_its_dense_twin(build, settings):
    model = quantized(build(), **settings)
    twin = dense_twin(model)
    add_adapter(model, LoraConfig(r=2))
    assert largest_error(logits(model), logits(twin)) <= LOGITS_TOLERANCE


def test_a_quantized_base_is_saved_and_read_again_as_it_is(tmp_path, settings):
    model = quantized(llama(), **settings).eval()
    model.save_pretrained(tmp_path)
    again = load_model(AutoModelForCausalLM, str(tmp_path), **OPTIONS)
    assert {bits_of(layer) for layer in linears(again).values()} == {None, settings["bits"]}
    add_adapter(model, LoraConfig(r=2))
    add_adapter(again, LoraConfig(r=2))
    assert torch.equal(logits(again), logits(model))


def test_a_loaded_checkpoint_can_be_saved_too(tiny_llama_dir, tmp_path, settings):
    load(AutoModelForCausalLM, tiny_llama_dir, settings).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert values[f"load_in_{settings['bits']}bit"] is True
    assert load_model(AutoModelForCausalLM, str(tmp_path), **OPTIONS).is_quantized


def test_heads_that_are_trained_in_full_stay_dense(tiny_distilbert_dir, settings):
    options = {"has_head": True, "num_labels": 3}
    model = load(AutoModelForSequenceClassification, tiny_distilbert_dir, settings, **options)
    assert bits_of(model.classifier) is None and bits_of(model.pre_classifier) is None
    assert bits_of(model.distilbert.transformer.layer[0].attention.q_lin) == settings["bits"]
    injection = add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"))
    assert injection.heads == ("pre_classifier", "classifier")


def test_modules_the_checkpoint_does_not_have_stay_dense(tiny_bert_dir, settings):
    options = {"has_head": True, "num_labels": 2}
    model = load(AutoModelForSequenceClassification, tiny_bert_dir, settings, **options)
    assert bits_of(model.bert.pooler.dense) is None
    assert bits_of(model.bert.encoder.layer[0].output.dense) == settings["bits"]


def test_modules_named_to_be_trained_in_full_stay_dense(tiny_llama_dir):
    model = load(
        AutoModelForCausalLM, tiny_llama_dir, SETTINGS["nf4"], trained_in_full=("down_proj",)
    )
    assert bits_of(model.model.layers[0].mlp.down_proj) is None
    assert bits_of(model.model.layers[0].mlp.up_proj) == 4


def test_a_head_can_be_put_on_a_checkpoint_that_is_quantized_already(tmp_path, tiny_llama_dir):
    load(AutoModelForCausalLM, tiny_llama_dir, SETTINGS["nf4"]).save_pretrained(tmp_path)
    model = load_model(
        AutoModelForTokenClassification, str(tmp_path), seed=0, has_head=True, num_labels=3
    )
    assert bits_of(model.score) is None and model.score.out_features == 3
    assert bits_of(model.model.layers[0].mlp.up_proj) == 4
    add_adapter(model, LoraConfig(r=2, task_type=TaskType.TOKEN_CLS))


def test_which_layers_stay_as_they_are_is_a_field():
    settings = {"skip_modules": ("q_proj",)}
    model = quantized(llama(), **settings)
    assert bits_of(model.model.layers[0].self_attn.q_proj) is None
    assert bits_of(model.lm_head) is None  # beside the backbone, where heads are
    assert bits_of(model.model.layers[1].self_attn.k_proj) == 4


def test_everything_but_the_base_s_linears_counts_the_same(settings):
    dense = count_parameters(llama())
    assert count_parameters(quantized(llama(), **settings)).base == dense.base


def test_what_is_not_quantized_takes_the_compute_dtype_or_the_one_asked_for(tiny_llama_dir):
    settings = SETTINGS["nf4"]
    assert load(AutoModelForCausalLM, tiny_llama_dir, settings, dtype="auto").dtype == torch.float32
    model = load(AutoModelForCausalLM, tiny_llama_dir, settings, dtype="bfloat16")
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16


def test_models_that_are_no_transformers_are_quantized_too():
    model = quantized(TinyNet(width=16))
    assert bits_of(model.layers[0]["up"]) == 4 and bits_of(model.classifier) is None
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 3)


# ---- bad input ----


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    quantized(llama()).save_pretrained(tmp_path)
    with pytest.raises(QuantizationError, match=r"already \(bitsandbytes, 4 bits, nf4\)"):
        load(AutoModelForCausalLM, str(tmp_path), SETTINGS["nf4"])
    with pytest.raises(QuantizationError, match="quantized already, expected dense weights"):
        quantized(quantized(llama()))


def test_a_checkpoint_of_another_method_is_refused_by_its_name(tmp_path, tiny_llama_dir):
    values = json.loads((Path(tiny_llama_dir) / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(QuantizationError, match="is quantized by gptq, expected bitsandbytes"):
        load_model(AutoModelForCausalLM, str(tmp_path), **OPTIONS)


def test_a_layer_that_is_no_multiple_of_a_block_is_named(tiny_llama_dir):
    model = nn.Sequential(nn.Linear(10, 30), nn.Linear(64, 64))
    with pytest.raises(QuantizationError, match=r"0 \(30, 10\) to 4 bits: .*multiple of the 64"):
        quantized(model)
    assert bits_of(quantized(model, skip_modules=("0",))[1]) == 4
    assert bits_of(quantized(nn.Sequential(nn.Linear(10, 30)), bits=8)[0]) == 8


@pytest.mark.parametrize("part", ["", "model", "model.layers.0"])
def test_a_model_with_adapters_is_not_quantized(part):
    model = llama()
    add_adapter(model.get_submodule(part), LoraConfig(r=2))
    with pytest.raises(QuantizationError, match=r"layers\.0\.\S+ carries adapters"):
        quantized(model)
    if not part:
        with pytest.raises(QuantizationError, match="q_proj carries adapters"):
            quantized(model.model)


@pytest.mark.parametrize(
    ("model", "skipped"),
    [(nn.Linear(64, 64), ()), (nn.Sequential(nn.Linear(64, 64)), ("0",)), (nn.ReLU(), ())],
    ids=["a single layer", "all skipped", "no layer"],
)
def test_nothing_to_quantize_is_an_error(model, skipped):
    with pytest.raises(QuantizationError, match="has no linear layer to quantize"):
        quantized(model, skip_modules=skipped)


def test_a_name_that_fits_no_module_is_an_error(tiny_llama_dir):
    with pytest.raises(TargetError, match=r"quantization\.skip_modules=\['q_porj'\].*'q_proj'\?"):
        quantized(llama(), skip_modules=("q_porj",))
    with pytest.raises(TargetError, match="q_porj"):
        load(AutoModelForCausalLM, tiny_llama_dir, {**SETTINGS["nf4"], "skip_modules": ["q_porj"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 3}, r"bits: got 3; input should be 4 or 8"),
        ({"bits": True}, "bits: got True; expected a number"),
        ({"quant_type": "nf5"}, "'nf4' or 'fp4'"),
        ({"compute_dtype": "float64"}, "compute_dtype: got 'float64'"),
        ({"bits": 8, "quant_type": "fp4"}, "with bits: 8 leave them out"),
        ({"bits": 8, "double_quant": False}, "with bits: 8 leave them out"),
        ({"block_size": 32}, "unknown key 'block_size'"),
    ],
)
def test_wrong_settings_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        QuantizationConfig(**values)


def test_an_adapter_of_another_dtype_is_refused():
    from lorakit.errors import DtypeError

    model = quantized(llama())
    with pytest.raises(DtypeError, match=r"float16 to model.layers.0.*expected float32"):
        add_adapter(model, LoraConfig(r=2), dtype=torch.float16)
    add_adapter(model, LoraConfig(r=2), dtype=torch.float32)
