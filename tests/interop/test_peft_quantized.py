"""Adapters on a quantized base go both ways between lorakit and PEFT, with the same numbers."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

from lorakit import (
    LoraConfig,
    adapter_rows,
    add_adapter,
    delete_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
    unload,
)
from lorakit.adapters import merge_adapters, merge_and_unload, unmerge_adapters
from lorakit.errors import AdapterStateError, QuantizationError
from lorakit.layers.bitsandbytes_storage import bits_of
from tiny_models import gpt2, llama, logits, randomize_, tokens
from tiny_models.quantized import EIGHT, FOUR, dense_twin, quantized
from tolerances import LOGITS_TOLERANCE, largest_error

pytestmark = [pytest.mark.filterwarnings("ignore:MatMul8bitLt.*:UserWarning")]
# bitsandbytes rounds the input to int8 too where a model only runs forward.
TOLERANCES = {4: LOGITS_TOLERANCE, 8: 3e-2}


@pytest.fixture(params=[FOUR, EIGHT], ids=["4 bits", "8 bits"])
def settings(request):
    return request.param


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def build(request):
    return request.param


def targets(build):
    return ["q_proj", "down_proj"] if build is llama else ["c_attn", "c_proj"]


def test_a_file_of_lorakit_s_opens_in_peft(build, settings, tmp_path):
    model = quantized(build(), **settings).eval()
    add_adapter(model, LoraConfig(r=2, lora_alpha=8, target_modules=targets(build)))
    randomize_(model)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(quantized(build(), **settings).eval(), str(tmp_path))
    assert largest_error(logits(theirs), logits(model)) <= TOLERANCES[settings["bits"]]


def test_a_file_of_peft_s_opens_here(build, settings, tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets(build))
    theirs = randomize_(get_peft_model(quantized(build(), **settings).eval(), config)).eval()
    theirs.save_pretrained(tmp_path)
    model = quantized(build(), **settings).eval()
    load_adapter(model, tmp_path)
    assert largest_error(logits(model), logits(theirs)) <= TOLERANCES[settings["bits"]]


def test_dora_goes_both_ways(build, settings, tmp_path):
    options = {"r": 2, "target_modules": targets(build), "use_dora": True}
    theirs = get_peft_model(quantized(build(), **settings).eval(), peft.LoraConfig(**options))
    randomize_(theirs).eval().save_pretrained(tmp_path / "theirs")
    model = quantized(build(), **settings).eval()
    load_adapter(model, tmp_path / "theirs", trainable=True)
    assert largest_error(logits(model), logits(theirs)) <= TOLERANCES[settings["bits"]]
    randomize_(model, seed=5)
    save_adapter(model, tmp_path / "ours")
    again = PeftModel.from_pretrained(quantized(build(), **settings).eval(), tmp_path / "ours")
    assert largest_error(logits(again), logits(model)) <= TOLERANCES[settings["bits"]]
    expected = logits(model)
    merge_adapters(model, quantized_base="dequantize")
    assert largest_error(logits(model), expected) <= LOGITS_TOLERANCE
    unmerge_adapters(model)
    assert torch.equal(logits(model), expected)


def test_gradients_are_peft_s(settings, tmp_path):
    model = quantized(llama(), **settings).train()
    add_adapter(model, LoraConfig(r=2, target_modules=targets(llama)))
    randomize_(model)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(
        quantized(llama(), **settings), str(tmp_path), is_trainable=True
    ).train()
    for each in (model, theirs):
        each(**tokens()).logits.square().mean().backward()
    for layer in (0, 1):
        update = model.model.layers[layer].self_attn.q_proj.updates["default"]
        peer = theirs.base_model.model.model.layers[layer].self_attn.q_proj
        for name in "AB":
            expected = getattr(peer, f"lora_{name}")["default"].weight.grad
            assert largest_error(getattr(update, f"lora_{name}").grad, expected) <= 1e-4


def test_several_adapters_mixed_rows_and_switching(build, settings):
    model = quantized(build(), **settings).eval()
    twin = dense_twin(model)
    for seed, name in enumerate(("one", "two")):
        for each in (model, twin):
            add_adapter(each, LoraConfig(r=2 + seed, target_modules=targets(build)), name)
            randomize_(each, seed=seed)
    for names in ("one", "two", ("one", "two"), None):
        set_adapter(model, names)
        set_adapter(twin, names)
        assert largest_error(logits(model), logits(twin)) <= LOGITS_TOLERANCE
    with adapter_rows(model, ["two", None, "one"]), adapter_rows(twin, ["two", None, "one"]):
        got, expected = logits(model, rows=3), logits(twin, rows=3)
    assert largest_error(got, expected) <= LOGITS_TOLERANCE


def test_layers_without_updates_compute_as_those_with_do_until_the_last_adapter_goes(settings):
    model = quantized(llama(), **settings).eval()
    plain = type(model.model.layers[0].self_attn.k_proj)
    before = {name: (type(m), sorted(vars(m))) for name, m in model.named_modules()}
    twin = dense_twin(model)
    for name, target in (("one", "q_proj"), ("two", "k_proj")):
        add_adapter(model, LoraConfig(r=2, target_modules=[target]), name)
    set_adapter(model, None)
    delete_adapter(model, "two")
    assert type(model.model.layers[0].self_attn.k_proj) is not plain
    assert largest_error(logits(model), logits(twin)) <= LOGITS_TOLERANCE
    unload(model)
    assert {name: (type(m), sorted(vars(m))) for name, m in model.named_modules()} == before


def test_merging_must_be_asked_for_and_can_be_undone(build, settings):
    model = quantized(build(), **settings).eval()
    add_adapter(model, LoraConfig(r=2, target_modules=targets(build)))
    randomize_(model)
    expected = logits(model)
    with pytest.raises(QuantizationError, match='quantized_base="dequantize"'):
        merge_adapters(model)
    assert torch.equal(logits(model), expected)
    merge = merge_adapters(model, quantized_base="dequantize")
    assert merge.largest_rounding == 0 and not merge.requantized
    assert largest_error(logits(model), expected) <= LOGITS_TOLERANCE
    unmerge_adapters(model)
    assert torch.equal(logits(model), expected)
    merge_and_unload(model, quantized_base="dequantize")
    assert not hasattr(model.config, "quantization_config") and not model.is_quantized
    assert largest_error(logits(model), expected) <= LOGITS_TOLERANCE


def test_a_requantized_merge_stays_quantized(build, settings):
    model = quantized(build(), **settings).eval()
    add_adapter(model, LoraConfig(r=2, target_modules=targets(build)))
    randomize_(model)
    merge_and_unload(model, quantized_base="requantize")
    assert model.is_quantized and model.config.quantization_config is not None


def test_on_a_dense_base_there_is_nothing_to_quantize_again():
    model = llama()
    add_adapter(model, LoraConfig(r=2))
    with pytest.raises(QuantizationError, match="no adapted layer is quantized"):
        merge_adapters(model, quantized_base="requantize")


def test_a_merge_is_not_made_final_as_something_else():
    model = quantized(llama()).eval()
    add_adapter(model, LoraConfig(r=2))
    merge_adapters(model, quantized_base="dequantize")
    with pytest.raises(AdapterStateError, match="merged already, with quantized_base='dequantize'"):
        merge_and_unload(model, quantized_base="requantize")
    merge_and_unload(model)
    assert not any(bits_of(module) for module in model.modules())


def test_dense_means_every_layer_also_where_only_a_dense_one_is_adapted():
    model = quantized(llama(), skip_modules=("q_proj",)).eval()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
    merge_and_unload(model, quantized_base="dequantize")
    assert not any(bits_of(module) for module in model.modules()) and not model.is_quantized
