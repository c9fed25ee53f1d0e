import pytest

from fixtures.preferences import CHATS, PAIRS, by
from lorakit.errors import ConfigError, DataError


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
