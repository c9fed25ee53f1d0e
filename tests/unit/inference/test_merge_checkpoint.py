"""Adapters merged into checkpoints that plain from_pretrained loads."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.errors import AdapterStateError, ConfigError, OutputExistsError, QuantizationError
from lorakit.inference import load_for_inference, merge_checkpoint
from lorakit.inference.generation import stop_ids
from lorakit.inference.merge_checkpoint import merge_to_checkpoint
from lorakit.layers.bitsandbytes_storage import bits_of
from tiny_models import bert, logits
from tiny_models.adapted import save_adapter_of
from tiny_models.quantized import EIGHT, FOUR, quantized
from tiny_models.tokenizers import byte_bpe
from tolerances import LOGITS_TOLERANCE, largest_error


@pytest.fixture
def saved(tmp_path):
    """Save a random adapter of a base, which may have been quantized in training."""

    def save(base, quantization=None, targets=("q_proj", "v_proj"), kind=AutoModelForCausalLM):
        model = kind.from_pretrained(base)
        task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        directory = save_adapter_of(
            tmp_path / "adapter", model, task_type=task, target_modules=targets
        )
        if quantization:
            settings = json.dumps({"quantization": quantization})
            (directory / SETTINGS_FILE).write_text(settings, encoding="utf-8")
        return directory

    return save


def test_a_merge_writes_the_adapted_model_and_its_tokenizer(saved, tiny_llama_dir, tmp_path):
    adapter = saved(tiny_llama_dir)
    expected = logits(load_for_inference(adapter).model)
    report = merge_to_checkpoint(adapter, tmp_path / "merged")
    assert (report.layers, report.dtype, report.was_quantized) == (4, "float32", False)
    assert report.relative_deviation <= 1e-3 and report.largest_deviation <= LOGITS_TOLERANCE
    assert report.files == tuple(sorted((tmp_path / "merged").iterdir()))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert largest_error(logits(plain), expected) <= LOGITS_TOLERANCE
    assert (
        largest_error(expected, logits(AutoModelForCausalLM.from_pretrained(tiny_llama_dir))) > 0.1
    )
    tokenizers = [
        AutoTokenizer.from_pretrained(one) for one in (tmp_path / "merged", tiny_llama_dir)
    ]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def test_a_checkpoint_stops_where_the_adapter_does(saved, tiny_llama_dir, tmp_path):
    adapter = saved(tiny_llama_dir)
    settings = InferenceSettings(task_type="CAUSAL_LM", stop_token_ids=(5,), system_prompt="answer")
    settings.save(adapter)
    stops = stop_ids(load_for_inference(adapter))
    report = merge_to_checkpoint(adapter, tmp_path / "merged")
    assert "does not have the system prompt" in str(report.not_written)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert 5 in stops and plain.generation_config.eos_token_id == stops


def test_what_a_checkpoint_cannot_have_is_said():
    settings = InferenceSettings(thresholds=(0.25, 0.5), source_prefix="tell: ")
    assert merge_checkpoint._not_written(settings) == (
        "The checkpoint does not have the prefix of sources (data.source_prefix) and the "
        "thresholds of labels (0.25, 0.5): apply them where it is used."
    )
    assert merge_checkpoint._not_written(InferenceSettings()) is None
    scores = InferenceSettings(task_type="SEQ_CLS", format="prompt_completion")
    assert "the end token after" in str(merge_checkpoint._not_written(scores))


def test_a_base_in_16_bits_is_merged_into_float32_without_rounding(saved, tiny_llama_dir, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path / "base")
    adapter = saved(tmp_path / "base")
    report = merge_to_checkpoint(adapter, tmp_path / "merged", dtype="float32")
    assert report.largest_rounding == 0 and 1e-3 < report.relative_deviation <= 0.1
    wide = load_for_inference(adapter, dtype="float32").model
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert largest_error(logits(plain), logits(wide)) <= LOGITS_TOLERANCE


def test_an_encoder_and_decoder_are_probed_together(saved, tiny_t5_dir, tmp_path):
    adapter = saved(tiny_t5_dir, targets=("q", "v"), kind=AutoModelForSeq2SeqLM)
    InferenceSettings(task_type="SEQ_2_SEQ_LM", num_beams=2).save(adapter)
    report = merge_to_checkpoint(adapter, tmp_path / "merged")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert plain.generation_config.num_beams == 2
    assert report.layers == 12 and report.relative_deviation <= 1e-3


def test_another_dtype_rounds_and_that_is_reported(saved, tiny_llama_dir, tmp_path):
    report = merge_to_checkpoint(saved(tiny_llama_dir), tmp_path / "merged", dtype="bfloat16")
    assert report.dtype == "bfloat16" and 0 < report.relative_deviation <= 0.1
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert plain.dtype == torch.bfloat16
    exact = merge_to_checkpoint(tmp_path / "adapter", tmp_path / "exact")
    unrounded = AutoModelForCausalLM.from_pretrained(tmp_path / "exact").parameters()
    pairs = zip(plain.parameters(), unrounded, strict=True)
    largest = max((rounded.float() - weight).abs().max().item() for rounded, weight in pairs)
    assert report.largest_rounding == largest > 0 and exact.largest_rounding == 0


@pytest.mark.parametrize("build", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
def test_a_quantized_base_is_merged_dense(saved, build, quantization, tmp_path, request):
    base = request.getfixturevalue(f"tiny_{build}_dir")
    targets = ("c_attn",) if build == "gpt2" else ("q_proj", "v_proj")
    adapter = saved(base, quantization, targets)
    expected = logits(load_for_inference(adapter).model)
    report = merge_to_checkpoint(adapter, tmp_path / "merged")
    assert report.was_quantized and not report.requantized
    assert report.layers == (2 if build == "gpt2" else 4)
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any(bits_of(module) for module in plain.modules())
    assert largest_error(logits(plain), expected) <= LOGITS_TOLERANCE


@pytest.mark.parametrize("quantization", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
def test_merging_can_quantize_again_and_reports_the_error(
    saved, tiny_llama_dir, tmp_path, quantization
):
    adapter = saved(tiny_llama_dir, quantization)
    report = merge_to_checkpoint(adapter, tmp_path / "small", requantize=True)
    assert report.requantized and report.largest_rounding > 0 and report.relative_deviation > 1e-4
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config["quantization_config"][f"load_in_{quantization['bits']}bit"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert bits_of(again.model.layers[0].self_attn.q_proj) == quantization["bits"]


@pytest.mark.parametrize("requantize", [False, True], ids=["dense", "requantized"])
@pytest.mark.parametrize("quantization", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
def test_a_base_that_was_saved_quantized(saved, tiny_llama_dir, tmp_path, quantization, requantize):
    base = quantized(AutoModelForCausalLM.from_pretrained(tiny_llama_dir), **quantization)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path / "base")
    adapter = saved(tmp_path / "base")
    expected = logits(load_for_inference(adapter).model)
    report = merge_to_checkpoint(adapter, tmp_path / "merged", requantize=requantize)
    assert report.was_quantized and report.requantized is requantize
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert bool(bits_of(written.model.layers[0].self_attn.q_proj)) is requantize
    if not requantize:
        assert largest_error(logits(written), expected) <= LOGITS_TOLERANCE


def test_merging_into_the_base_as_it_is_saved(saved, tiny_llama_dir, tmp_path):
    adapter = saved(tiny_llama_dir, FOUR)
    report = merge_to_checkpoint(adapter, tmp_path / "merged", unquantized=True)
    assert not report.was_quantized


def test_what_excludes_itself_is_an_error_and_writes_nothing(saved, tiny_llama_dir, tmp_path):
    adapter = saved(tiny_llama_dir)
    for options in ({"dtype": "float32"}, {"unquantized": True}):
        with pytest.raises(ConfigError, match="both requantize and"):
            merge_to_checkpoint(adapter, tmp_path / "out", requantize=True, **options)
    with pytest.raises(QuantizationError, match="no adapted layer is quantized"):
        merge_to_checkpoint(adapter, tmp_path / "out", requantize=True)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_other_logits_never_appears(saved, tiny_llama_dir, tmp_path, monkeypatch):
    whole = merge_checkpoint.merge_and_unload

    def damaging(model):
        whole(model)
        model.lm_head.weight.data[0] += 1

    monkeypatch.setattr(merge_checkpoint, "merge_and_unload", damaging)
    with pytest.raises(AdapterStateError, match=r"deviate by .* at most 0\.001 in torch\.float32"):
        merge_to_checkpoint(saved(tiny_llama_dir), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_files_that_are_there_stay(tmp_path):
    (tmp_path / "mine").touch()
    for output in (tmp_path, tmp_path / "mine"):
        with pytest.raises(OutputExistsError, match="expected a new or empty directory"):
            merge_to_checkpoint("no/adapter", output)


def _bart(tokenizer):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=16, max_position_embeddings=32, **sizes, **heads, **ids
    )
    return transformers.BartForSequenceClassification(config)


def _short_bert(tokenizer):
    sizes = {"max_position_embeddings": 16, "vocab_size": len(tokenizer)}
    return bert("BertForSequenceClassification", **sizes)


def _canine(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CanineConfig(**sizes, intermediate_size=16, max_position_embeddings=32)
    return transformers.CanineForSequenceClassification(config)


@pytest.mark.parametrize("build", [_bart, _short_bert, _canine])
def test_the_probe_is_a_text_that_the_base_takes(build, tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_bpe()
    build(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapter = save_adapter_of(tmp_path / "adapter", model, task_type="SEQ_CLS")
    report = merge_to_checkpoint(adapter, tmp_path / "merged")
    assert report.relative_deviation <= 1e-3
