import shutil
from functools import partial

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lorakit.config import QuantizationConfig, TaskType
from lorakit.errors import ConfigError
from lorakit.models.pretrained import (
    auto_model,
    fresh_modules,
    fresh_outside_head,
    initialize_fresh_weights,
    label_options,
    load_model,
    load_tokenizer,
    model_limit,
    resolve_max_length,
    set_padding,
)
from tiny_models import bert, gpt2, gpt_oss, qwen3_moe, t5, tokens
from tiny_models.tokenizers import byte_bpe

causal = partial(load_model, AutoModelForCausalLM, seed=1, has_head=False)


def classifier(name, labels=("a", "b"), seed=1, **options):
    return load_model(
        AutoModelForSequenceClassification,
        name,
        seed=seed,
        has_head=True,
        **label_options(labels),
        **options,
    )


def test_dtype_is_the_checkpoints_or_the_one_asked_for(tiny_llama_dir, tmp_path):
    causal(tiny_llama_dir, dtype="bfloat16").save_pretrained(tmp_path)

    assert causal(tiny_llama_dir, dtype="auto").dtype == torch.float32
    assert causal(str(tmp_path), dtype="auto").dtype == torch.bfloat16
    assert causal(str(tmp_path), dtype="float32").dtype == torch.float32


def test_a_head_for_other_labels_is_initialized_again(tiny_distilbert_dir, tmp_path):
    classifier(tiny_distilbert_dir).save_pretrained(tmp_path)

    same, other = classifier(str(tmp_path)), classifier(str(tmp_path), ("x", "y", "z"))

    assert fresh_modules(same) == ()
    assert fresh_modules(other) == ("classifier",)
    assert other.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_modules_outside_the_head(tiny_bert_dir, tiny_distilbert_dir):
    bert = classifier(tiny_bert_dir)

    assert set(fresh_modules(bert)) == {"bert.pooler.dense", "classifier"}
    assert fresh_outside_head(bert) == ("bert.pooler.dense",)
    assert fresh_outside_head(classifier(tiny_distilbert_dir)) == ()


@pytest.mark.parametrize("quantization", [None, QuantizationConfig(compute_dtype="float32")])
def test_weights_that_are_initialized_again_are_those_of_loading(tiny_bert_dir, quantization):
    # The quantized pooler shows only after a first load that it was not in the checkpoint.
    loaded, other = (
        classifier(tiny_bert_dir, seed=seed, quantization=quantization) for seed in (1, 2)
    )
    weight = loaded.bert.pooler.dense.weight
    assert not torch.equal(other.bert.pooler.dense.weight, weight)
    initialize_fresh_weights(other, 1)
    assert torch.equal(other.bert.pooler.dense.weight, weight)
    assert torch.equal(other.classifier.weight, loaded.classifier.weight)


def test_loading_is_silent(tiny_distilbert_dir, capfd, caplog):
    classifier(tiny_distilbert_dir)

    assert "LOAD REPORT" not in capfd.readouterr().err
    assert not caplog.records


def test_limits(tiny_llama_dir, tiny_gpt2_dir, tiny_distilbert_dir, tiny_bloom_dir):
    assert model_limit(causal(tiny_llama_dir)) == 128
    assert model_limit(causal(tiny_gpt2_dir)) == 64
    assert model_limit(classifier(tiny_distilbert_dir)) == 64
    assert model_limit(causal(tiny_bloom_dir)) is None  # ALiBi


def test_limit_of_positions_with_a_padding_row():
    config = RobertaConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = RobertaForMaskedLM(config)

    assert model_limit(model) == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


def test_default_length_is_what_model_and_tokenizer_can_do(
    tiny_llama_dir, tiny_bloom_dir, tiny_distilbert_dir
):
    bert_tokenizer = load_tokenizer(tiny_distilbert_dir)  # 64 tokens
    tokenizer = load_tokenizer(tiny_llama_dir)  # without a limit

    assert resolve_max_length(None, causal(tiny_llama_dir), tokenizer) == 128
    assert resolve_max_length(None, causal(tiny_llama_dir), bert_tokenizer) == 64
    assert resolve_max_length(None, causal(tiny_bloom_dir), tokenizer) == 1024
    assert resolve_max_length(2000, causal(tiny_bloom_dir), tokenizer) == 2000


def test_end_token_pads_where_there_is_no_other(tiny_gpt2_dir, tiny_llama_dir):
    assert load_tokenizer(tiny_gpt2_dir).pad_token == "</s>"
    assert load_tokenizer(tiny_llama_dir).pad_token == "<pad>"


def test_tokenizer_that_cannot_pad(tiny_gpt2_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(f"{tiny_gpt2_dir}/config.json", tmp_path)

    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(tmp_path))
    assert str(caught.value) == (
        f"The tokenizer of '{tmp_path}' in model cannot pad: it has no pad_token, and no eos_token "
        "to use instead. Save it with a pad_token and name that directory."
    )


@pytest.mark.parametrize(
    ("build", "width", "implementation"),
    [(qwen3_moe, 20, "eager"), (qwen3_moe, 24, "grouped_mm"), (gpt_oss, 20, "eager")],
    ids=["qwen3_moe, odd", "qwen3_moe, even", "gpt_oss, odd"],
)
def test_rows_that_are_no_multiple_of_16_bytes_are_computed_one_by_one(
    build, width, implementation, tmp_path
):
    key = "moe_intermediate_size" if build is qwen3_moe else "intermediate_size"
    build(**{key: width}, max_position_embeddings=32).save_pretrained(tmp_path)
    model = load_model(
        auto_model(TaskType.CAUSAL_LM), str(tmp_path), seed=0, has_head=False, dtype="bfloat16"
    )
    assert model.config._experts_implementation == implementation
    ids = tokens(length=18)["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_float32_has_the_grouped_product_in_these_widths(tmp_path):
    qwen3_moe().save_pretrained(tmp_path)
    model = load_model(auto_model(TaskType.CAUSAL_LM), str(tmp_path), seed=0, has_head=False)
    assert model.config._experts_implementation == "grouped_mm"


def test_a_length_that_special_tokens_fill_is_refused(tiny_bert_dir):
    tokenizer = load_tokenizer(tiny_bert_dir)
    with pytest.raises(ConfigError, match="got 2, expected more than the 2 special tokens"):
        resolve_max_length(2, bert(), tokenizer)
    assert resolve_max_length(3, bert(), tokenizer) == 3


@pytest.mark.parametrize(
    ("build", "side"),
    [
        (lambda: gpt2("GPT2ForSequenceClassification"), "right"),
        (t5, "right"),
        (gpt2, "left"),  # its prompts are continued
    ],
)
def test_whole_texts_are_padded_where_no_position_moves(build, side):
    model, tokenizer = build(), byte_bpe()
    tokenizer.padding_side = "left"

    set_padding(model, tokenizer)

    assert tokenizer.padding_side == side
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_model_that_reads_the_last_token_gets_it_last():
    model, tokenizer = gpt2("GPT2ForSequenceClassification"), byte_bpe()
    model.config.summary_type = "last"  # XLNet's

    set_padding(model, tokenizer)

    assert tokenizer.padding_side == "left"
