import pytest
from tokenizers.processors import TemplateProcessing
from transformers import BartConfig, BartForConditionalGeneration

from lorakit.errors import ConfigError, DataError

TASK = "SEQ_2_SEQ_LM"


def test_source_has_its_prefix_and_target_its_end(prepare, tiny_t5_dir, summary_parquet):
    beams = {"generation_num_beams": 2}
    made = prepare(TASK, tiny_t5_dir, summary_parquet, source_prefix="tell me ", training=beams)

    row, text = made.encoded.train[0], made.splits.train[0]
    decode = made.tokenizer.decode
    assert decode(row["input_ids"]) == f"tell me {text['source']}</s>"
    assert decode(row["labels"]) == f"{text['target']}</s>"
    assert row["labels"][-1] == made.tokenizer.eos_token_id
    settings = made.encoded.settings
    names = ("source_prefix", "max_target_length", "num_beams")
    assert [settings[name] for name in names] == ["tell me ", 128, 2]


def test_end_is_added_where_the_tokenizer_does_not(prepare, tiny_t5_dir, summary_parquet):
    made = prepare(TASK, tiny_t5_dir, summary_parquet)
    made.tokenizer.backend_tokenizer.post_processor = None

    encoded = made.task.encode(made.splits, made.loaded)

    assert encoded.train["labels"][:] == made.encoded.train["labels"][:]


@pytest.mark.parametrize("most", [128, 2])
def test_a_language_after_the_end_stays_last(prepare, tiny_t5_dir, summary_parquet, most):
    made = prepare(TASK, tiny_t5_dir, summary_parquet, max_target_length=most)
    end, language = made.tokenizer.eos_token_id, made.tokenizer.unk_token_id
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # as mBART has it
        single="$A </s> <unk>", special_tokens=[("</s>", end), ("<unk>", language)]
    )

    encoded = made.task.encode(made.splits, made.loaded)

    before, after = made.encoded.train["labels"][:], encoded.train["labels"][:]
    assert after == [[*ids[: most - 1], language] for ids in before]


def test_cut_rows_and_targets_are_counted(prepare, tiny_t5_dir, summary_parquet):
    made = prepare(TASK, tiny_t5_dir, summary_parquet, max_length=4, max_target_length=2)

    assert made.encoded.notes == (
        "24 of 24 training examples were cut to 4 tokens (data.max_length).",
        "24 of 24 training targets were cut to 2 tokens (data.max_target_length).",
        "8 of 8 validation examples were cut to 4 tokens (data.max_length).",
        "8 of 8 validation targets were cut to 2 tokens (data.max_target_length).",
    )
    assert {len(ids) for ids in made.encoded.train["labels"]} == {2}


def test_sample_rows_show_source_and_counted_target(prepare, tiny_t5_dir, summary_parquet):
    made = prepare(TASK, tiny_t5_dir, summary_parquet)

    row, texts = made.preview_examples(2)[0], made.splits.train[0]

    assert row.tokens == [*texts["source"].split(), "</s>", *texts["target"].split(), "</s>"]
    assert row.counted == [False] * 7 + [True] * 3
    assert row.note == "source: 7 tokens, target: 3 tokens, all counted"


def test_trainer_learns_and_measures_rouge_on_generated_text(
    prepare, tiny_t5_dir, summary_parquet, tmp_path
):
    made = prepare(TASK, tiny_t5_dir, summary_parquet, max_target_length=4)
    trainer = made.trainer(tmp_path, num_train_epochs=8, learning_rate=2e-2)

    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_rougeL"] >= 0.6 > before["eval_rougeL"]
    assert {"eval_rouge1", "eval_rouge2", "eval_rougeLsum"} <= set(after)


def test_target_longer_than_the_positions(prepare, tiny_t5_dir, summary_parquet, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_t5_dir)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")

    with pytest.raises(ConfigError) as caught:
        prepare(TASK, str(tmp_path / "bart"), summary_parquet, max_target_length=40)

    assert str(caught.value) == (
        "Targets would be too long in data.max_target_length: got 40 tokens, expected at most 32, "
        "the positions of this BartForConditionalGeneration. Set data.max_target_length=32."
    )


def test_missing_column_and_empty_target(prepare, tiny_t5_dir, summary_parquet, jsonl):
    with pytest.raises(DataError) as caught:
        prepare(TASK, tiny_t5_dir, summary_parquet, source="article", target="summary")
    said = str(caught.value)
    assert "data.source: got 'article'" in said and "data.target: got 'summary'" in said
    assert "Columns of the data: source, target." in said

    path = jsonl([{"source": "a", "target": "b"}, {"source": "a", "target": ""}])
    with pytest.raises(DataError) as caught:
        prepare(TASK, tiny_t5_dir, path, validation_fraction=0)
    assert "'target' (data.target) is empty in example 2 (line 2);" in str(caught.value)
