import pytest

from fixtures.preferences import CHATS, PAIRS, VOTES, by
from lorakit.data import chunks
from lorakit.data.progress import reporting_progress
from lorakit.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("rows", "objective"),
    [(PAIRS, "dpo"), (CHATS, "orpo"), (VOTES, "kto"), (PAIRS, "reward")],
)
def test_large_preferences_are_encoded_in_processes_and_kept(
    prepare_preferences, tiny_llama_dir, tmp_path, monkeypatch, rows, objective
):
    def encode():
        kept = {"cache_directory": str(tmp_path / "kept")}
        made = prepare_preferences(tiny_llama_dir, rows, {"type": objective}, **kept)
        return [made.encoded.train.to_list(), made.encoded.validation.to_list()], made.encoded.notes

    expected = encode()
    assert not (tmp_path / "kept").exists()  # small data is not kept
    monkeypatch.setattr(chunks, "_LARGE_EXAMPLES", 2)
    monkeypatch.setattr(chunks, "_CHUNK_EXAMPLES", 5)
    monkeypatch.setattr(chunks.os, "sched_getaffinity", lambda _: {0, 1})
    seen = []
    with reporting_progress(lambda progress: seen.append(progress.what)):
        assert encode() == expected
        assert {"Checking", "Tokenizing"} <= set(seen)
        seen.clear()
        assert encode() == expected
    assert not seen  # nothing is read again


def test_examples_that_are_left_out_are_known(prepare_preferences, tiny_llama_dir):
    """The weights of sources go with the others."""
    rows = [*PAIRS[:2], {**PAIRS[2], "prompt": "the cat " * 40}, *PAIRS[3:]]
    made = prepare_preferences(
        tiny_llama_dir, rows, max_length=32, validation_fraction=0, training={"eval_strategy": "no"}
    )
    assert made.encoded.kept.tolist() == [n for n in range(len(rows)) if n != 2]
    assert "1 of 12 training examples were left out" in " ".join(made.encoded.notes)


def test_an_example_that_the_template_refuses_is_named(
    prepare_preferences, tiny_llama_dir, tmp_path
):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if 'sun' in m['content'] %}{{ raise_exception('no sun') }}"
        "{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chats = [row for row in CHATS if "sun" not in str(row)]
    sunny = next(row for row in CHATS if "sun" in str(row))
    chats.insert(4, sunny)
    with pytest.raises(DataError, match=r"In example 5 \(line 5\) of .*no sun"):
        prepare_preferences(
            tiny_llama_dir,
            chats,
            validation_fraction=0,
            training={"chat_template_path": str(template), "eval_strategy": "no"},
        )


def test_long_prompts_leave_nothing_to_compare(prepare_preferences, tiny_llama_dir):
    with pytest.raises(DataError, match=r"within 4 tokens no token of an answer counts, or"):
        prepare_preferences(tiny_llama_dir, max_length=4)


def test_a_system_prompt_opens_both_answers(prepare_preferences, tiny_llama_dir):
    made = prepare_preferences(tiny_llama_dir, CHATS, system_prompt="be brief")

    whole = made.tokenizer.decode(made.encoded.train[0]["input_ids"])
    assert whole.startswith("<|system|>be brief<|end|><|user|>")
    assert whole.count("<|system|>") == 1
    assert made.encoded.settings["system_prompt"] == "be brief"
    with pytest.raises(ConfigError, match="Only conversations have turns and system prompts"):
        prepare_preferences(tiny_llama_dir, PAIRS, system_prompt="be brief")


def test_the_last_turn_may_be_all_that_counts(prepare_preferences, tiny_llama_dir):
    """Both answers begin with a turn in which they differ; it is compared only with all turns."""

    def talk(row, column):
        other = "yes" if column == "chosen" else "no"
        return [by("assistant", other), by("user", "and?"), *row[column]]

    rows = [{**row, **{c: talk(row, c) for c in ("chosen", "rejected")}} for row in CHATS]
    counted = {}
    for turns in ("all", "last"):
        made = prepare_preferences(tiny_llama_dir, rows, turns=turns)
        example = made.encoded.train[0]
        ids = zip(example["input_ids"], example["labels"], strict=True)
        counted[turns] = made.tokenizer.decode([i for i, label in ids if label != -100])
    assert "yes" in counted["all"] and "no" in counted["all"]
    assert "yes" not in counted["last"] and "green" in counted["last"]
    assert counted["last"].split("<|end|>")[0] in counted["all"]
    with pytest.raises(ConfigError, match="Only conversations have turns"):
        prepare_preferences(tiny_llama_dir, PAIRS, turns="last")


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_a_template_whose_turns_cannot_be_told_apart(
    prepare_preferences, tiny_llama_dir, tmp_path, objective
):
    template = tmp_path / "changing.jinja"
    template.write_text(
        "{{ messages[-1]['content'] }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="cannot be identified") as caught:
        prepare_preferences(
            tiny_llama_dir,
            CHATS,
            {"type": objective},
            training={"chat_template_path": str(template)},
        )
    assert str(caught.value).endswith("name the template in training.chat_template_path.")
