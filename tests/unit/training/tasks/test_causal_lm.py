import math

import pytest
from datasets import Dataset
from trl import pack_dataset

from lorakit.config import NOT_COUNTED
from lorakit.data.text_formats import alpaca_prompt
from lorakit.errors import ConfigError, DataError
from lorakit.training.tasks.causal_lm import stop_tokens
from tiny_models.tokenizers import byte_bpe

TASK = "CAUSAL_LM"


def counted_text(made, row=0):
    labels = made.encoded.train[row]["labels"]
    return made.tokenizer.decode([label for label in labels if label != NOT_COUNTED])


def test_plain_text_counts_in_full(prepare, tiny_gpt2_dir, text_jsonl):
    made = prepare(TASK, tiny_gpt2_dir, text_jsonl)

    row = made.encoded.train[0]
    assert row["labels"] == row["input_ids"]
    assert counted_text(made) == made.splits.train[0]["text"] + "</s>"
    assert made.encoded.notes[0] == (
        "The examples are read as 'text', from their columns (data.format)."
    )
    assert made.encoded.settings["stop_token_ids"] == (made.tokenizer.eos_token_id,)


def test_only_the_completion_after_a_prompt_counts(prepare, tiny_gpt2_dir, prompt_jsonl):
    made = prepare(TASK, tiny_gpt2_dir, prompt_jsonl)
    everything = prepare(
        TASK, tiny_gpt2_dir, prompt_jsonl, training={"completion_only_loss": False}
    )

    texts = made.splits.train[0]
    assert counted_text(made) == texts["completion"] + "</s>"
    assert counted_text(everything) == texts["prompt"] + texts["completion"] + "</s>"


def test_chat_counts_the_assistant_and_its_end(prepare, tiny_llama_dir, chat_jsonl):
    made = prepare(TASK, tiny_llama_dir, chat_jsonl)
    everything = prepare(TASK, tiny_llama_dir, chat_jsonl, training={"assistant_only_loss": False})

    answer = made.splits.train[0]["messages"][-1]["content"]
    assert counted_text(made) == f"{answer}<|end|>"
    assert counted_text(everything).startswith("<|")
    assert made.encoded.settings["format"] == "messages"
    end = made.tokenizer.convert_tokens_to_ids("<|end|>")
    assert made.encoded.settings["stop_token_ids"] == (end,)


def test_a_token_inside_answers_is_not_their_end():
    tokenizer = byte_bpe(chat=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    ends = tokenizer("<think>the sky</think>blue<|end|>\n")["input_ids"]
    cut = tokenizer("<think>the sky</think>the grass")["input_ids"]
    masked = [NOT_COUNTED]
    ending = (tokenizer.convert_tokens_to_ids("<|end|>"),)

    def stops_of(*labels):
        return stop_tokens(Dataset.from_dict({"labels": labels}), tokenizer)

    assert stops_of(masked + cut, masked + ends, cut[:4]) == ending
    assert stops_of(ends + masked + cut) == ending  # the end of an earlier turn
    assert stops_of(cut) == ()


ASKED = [
    {"role": "user", "content": "the sky?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "the grass?"},
]
ANSWERED = [{"role": "assistant", "content": "green"}]


def test_prompts_and_completions_of_messages_are_conversations(prepare, tiny_llama_dir, jsonl):
    path = jsonl([{"prompt": ASKED, "completion": ANSWERED}] * 8)
    texts = {}
    for name, training in {
        "alone": {},
        "whole completion": {"assistant_only_loss": False},
        "with prompts": {"completion_only_loss": False},
        "everything": {"assistant_only_loss": False, "completion_only_loss": False},
    }.items():
        made = prepare(TASK, tiny_llama_dir, path, training=training)
        texts[name] = counted_text(made)

    assert texts == {
        "alone": "green<|end|>",
        "whole completion": "green<|end|>",
        "with prompts": "blue<|end|>green<|end|>",
        "everything": (
            "<|user|>the sky?<|end|><|assistant|>blue<|end|>"
            "<|user|>the grass?<|end|><|assistant|>green<|end|>"
        ),
    }
    assert made.encoded.notes[:2] == (
        "The examples are read as 'prompt_completion', from their columns (data.format).",
        "The messages in 'prompt' and 'completion' are rendered as one conversation with the "
        "model's chat template.",
    )
    assert made.encoded.settings["format"] == "messages"


def test_masks_of_prompts_of_messages_are_those_of_trl(prepare, tiny_llama_dir, jsonl, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": ASKED, "completion": ANSWERED}] * 4
    made = prepare(TASK, tiny_llama_dir, jsonl(rows), validation_fraction=0)

    arguments = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        made.model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=made.tokenizer,
    )

    theirs = trainer.train_dataset[0]
    assert made.encoded.train[0]["input_ids"] == theirs["input_ids"]
    assert made.encoded.train[0]["labels"] == theirs["labels"]


def test_a_text_beside_a_list_of_messages(prepare, tiny_llama_dir, jsonl):
    path = jsonl([{"prompt": "the grass?", "completion": ANSWERED}] * 4)

    said = message(prepare, tiny_llama_dir, path, DataError, validation_fraction=0)

    assert "columns 'prompt' and 'completion'" in said
    assert "messages is a string that is not JSON in 'prompt'" in said


def test_alpaca_rows_become_prompt_and_completion(prepare, tiny_bloom_dir, alpaca_jsonl):
    made = prepare(TASK, tiny_bloom_dir, alpaca_jsonl)

    for row in range(2):
        given = made.splits.train[row]
        prompt = alpaca_prompt(given["instruction"], given["input"])
        assert counted_text(made, row) == given["output"] + "</s>"
        text = made.tokenizer.decode(made.encoded.train[row]["input_ids"])
        assert text == prompt + given["output"] + "</s>"


def test_own_end_token_and_template(prepare, tiny_llama_dir, chat_jsonl, text_jsonl, tmp_path):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template, encoding="utf-8")

    ended = prepare(TASK, tiny_llama_dir, text_jsonl, training={"eos_token": "</s>"})
    chat = prepare(
        TASK,
        tiny_llama_dir,
        chat_jsonl,
        training={
            "chat_template_path": str(tmp_path / "chat.jinja"),
            "assistant_only_loss": False,
        },
    )

    assert counted_text(ended).endswith("</s>")
    assert "user: what colour" in counted_text(chat)


def test_sample_rows_mark_the_counted_tokens(prepare, tiny_llama_dir, chat_jsonl):
    made = prepare(TASK, tiny_llama_dir, chat_jsonl)

    row = made.preview_examples(1)[0]

    answer = made.splits.train[0]["messages"][-1]["content"]
    counted = [token for token, counts in zip(row.tokens, row.counted, strict=True) if counts]
    assert "".join(counted) == f"{answer}<|end|>"
    assert "what" in "".join(row.tokens)
    assert row.note == f"{len(counted)} of {len(row.tokens)} tokens count"


def test_first_token_is_never_counted(prepare, tiny_gpt2_dir, text_jsonl):
    row = prepare(TASK, tiny_gpt2_dir, text_jsonl).preview_examples(1)[0]

    assert row.counted == [False] + [True] * (len(row.tokens) - 1)


def test_cut_rows_are_counted_and_those_without_an_answer_left_out(prepare, tiny_gpt2_dir, jsonl):
    rows = [{"prompt": "the grass is", "completion": " green"}] * 6
    rows += [{"prompt": "the " * 20, "completion": " green"}] * 2
    made = prepare(TASK, tiny_gpt2_dir, jsonl(rows), max_length=12, validation_fraction=0)

    assert len(made.encoded.train) == 6
    assert made.encoded.notes[1:] == (
        "2 of 8 training examples were cut to 12 tokens (data.max_length).",
        "2 of 8 training examples were left out: none of their tokens counts within 12 tokens.",
    )


def test_packed_rows_hold_several_texts(prepare, tiny_llama_dir, text_jsonl):
    plain = prepare(TASK, tiny_llama_dir, text_jsonl)
    packed = prepare(TASK, tiny_llama_dir, text_jsonl, training={"packing": True}, max_length=64)

    tokens = [sum(len(ids) for ids in m.encoded.train["input_ids"]) for m in (plain, packed)]
    assert tokens[0] == tokens[1]
    assert len(packed.encoded.train) < len(plain.encoded.train)
    assert sum(len(lengths) for lengths in packed.encoded.train["seq_lengths"]) == 18
    row = packed.preview_examples(1)[0]
    texts = len(packed.encoded.train[0]["seq_lengths"])
    assert row.note.endswith(f"{texts} texts packed")
    assert row.counted.count(False) == texts  # nothing predicts the first token of a text


def test_validation_can_stay_unpacked(prepare, tiny_llama_dir, text_jsonl):
    made = prepare(
        TASK, tiny_llama_dir, text_jsonl, training={"packing": True, "eval_packing": False}
    )

    assert "seq_lengths" in made.encoded.train.column_names
    assert "seq_lengths" not in made.encoded.validation.column_names


def test_packed_texts_do_not_see_each_other(prepare, tiny_llama_dir, text_jsonl, tmp_path):
    made = prepare(TASK, tiny_llama_dir, text_jsonl, max_length=64)
    packed = pack_dataset(made.encoded.validation, 64)

    apart = made.trainer(tmp_path).evaluate()["eval_loss"]
    trainer = made.trainer(tmp_path, packing=True)
    together = trainer.evaluate(packed)["eval_loss"]

    assert len(packed) < len(made.encoded.validation)
    assert together == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "data", "training"),
    [
        ("tiny_llama_dir", "chat_jsonl", {}),
        ("tiny_gpt2_dir", "prompt_jsonl", {"activation_checkpointing": True}),
        ("tiny_bloom_dir", "alpaca_jsonl", {"bf16": True}),
        ("tiny_llama_dir", "text_jsonl", {"packing": True, "num_train_epochs": 8}),
        ("tiny_llama_dir", "text_jsonl", {"label_smoothing_factor": 0.1}),
    ],
)
def test_trainer_learns(prepare, request, tmp_path, model, data, training):
    packing = {key: value for key, value in training.items() if key == "packing"}
    made = prepare(
        TASK, request.getfixturevalue(model), request.getfixturevalue(data), training=packing
    )
    trainer = made.trainer(tmp_path, **{"num_train_epochs": 4, **training})

    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert after["eval_loss"] < 0.75 * before["eval_loss"]
    assert after["eval_perplexity"] == pytest.approx(math.exp(after["eval_loss"]))
    assert not list(tmp_path.rglob("README.md"))


def message(prepare, model, path, kind, **options):
    with pytest.raises(kind) as caught:
        prepare(TASK, model, path, **options)
    return str(caught.value)


def test_longer_than_the_models_limit(prepare, tiny_gpt2_dir, text_jsonl):
    assert message(prepare, tiny_gpt2_dir, text_jsonl, ConfigError, max_length=65) == (
        "Examples would be too long in data.max_length: got 65 tokens, expected at most 64, the "
        "positions of this GPT2LMHeadModel. Set data.max_length=64."
    )


def test_all_answers_cut_away(prepare, tiny_gpt2_dir, prompt_jsonl):
    assert message(
        prepare, tiny_gpt2_dir, prompt_jsonl, DataError, max_length=3, validation_fraction=0
    ) == (
        f"Nothing can be learnt from the training examples of '{prompt_jsonl}': no token of any "
        "example counts in the loss. 24 examples are longer than 3 tokens, and the tokens that "
        "count come after the cut. Raise data.max_length, or shorten the text before them."
    )


def test_first_token_alone_teaches_nothing(prepare, tiny_gpt2_dir, text_jsonl):
    said = message(prepare, tiny_gpt2_dir, text_jsonl, DataError, max_length=1)

    assert (
        "no token of any example counts in the loss. 18 examples are longer than 1 tokens" in said
    )


def test_template_that_marks_nothing(prepare, tiny_llama_dir, chat_jsonl, tmp_path):
    # The end token stands inside the markers, the words of the assistant are never rendered.
    silent = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    (tmp_path / "silent.jinja").write_text(silent + "{% endfor %}", encoding="utf-8")

    said = message(
        prepare,
        tiny_llama_dir,
        chat_jsonl,
        DataError,
        training={"chat_template_path": str(tmp_path / "silent.jinja")},
    )

    assert said == (
        f"Nothing can be learnt from the training examples of '{chat_jsonl}': no token of any "
        "example counts in the loss. The chat template marks nothing as the assistant's. Check "
        "the roles, or set training.assistant_only_loss=false."
    )


def test_packing_needs_positions(prepare, tiny_bloom_dir, text_jsonl):
    said = message(prepare, tiny_bloom_dir, text_jsonl, ConfigError, training={"packing": True})

    assert said == (
        "Examples cannot be packed for this model: got training.packing=true, but BloomForCausalLM "
        "takes no position ids, so packed texts would see each other. Leave packing out."
    )


def test_assistant_only_loss_needs_an_assistant(prepare, tiny_gpt2_dir, text_jsonl):
    said = message(
        prepare, tiny_gpt2_dir, text_jsonl, ConfigError, training={"assistant_only_loss": True}
    )

    assert said.startswith(
        "Only conversations have an assistant: got training.assistant_only_loss=true for "
        "examples read as 'text', expected 'messages'."
    )


def test_unknown_end_token(prepare, tiny_llama_dir, text_jsonl):
    said = message(
        prepare, tiny_llama_dir, text_jsonl, ConfigError, training={"eos_token": "<|ende|>"}
    )

    assert said == (
        "No such token in training.eos_token: got '<|ende|>', expected one of the vocabulary of "
        f"'{tiny_llama_dir}'. Did you mean '<|end|>'? Its special tokens: <unk>, <s>, </s>, "
        "<pad>, <|system|>, <|user|>, <|assistant|>, <|end|>."
    )


def test_missing_columns_of_a_named_layout(prepare, tiny_gpt2_dir, text_jsonl):
    said = message(prepare, tiny_gpt2_dir, text_jsonl, DataError, format="alpaca")

    assert "the alpaca column instruction: got 'instruction', expected a column" in said
    assert "Columns of the data: text." in said
