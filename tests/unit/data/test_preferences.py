"""Preferences: their columns are found, and examples that cannot be compared are refused."""

import pytest
from datasets import Dataset

from fixtures.preferences import CHATS, PAIRS, VOTES, by
from lorakit.data import preferences
from lorakit.data.preferences import (
    check_preferences,
    find_preferences,
    preference_layout_of,
    preference_reader,
)
from lorakit.data.text_formats import find_layout
from lorakit.errors import DataError
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.recipes.recipe import DataConfig

DATA = DataConfig(train="x.jsonl")
DPO, KTO = ObjectiveConfig(type="dpo"), ObjectiveConfig(type="kto")


def read(rows, objective=DPO, data=DATA):
    examples = Dataset.from_list(rows)
    layout = find_preferences(examples, data, objective, "x")
    check_preferences(examples, layout, "x")
    selected, read_chunk = preference_reader(examples, layout)
    return layout, read_chunk(selected[:], range(len(selected)))


def refusal(rows, objective=DPO):
    with pytest.raises(DataError) as caught:
        read(rows, objective)
    return str(caught.value)


def test_pairs_of_texts_and_of_messages():
    layout, (first, *_) = read(PAIRS)
    assert (layout.prompt, layout.is_conversation) == ("prompt", False)
    assert (first.prompt, first.first) == (PAIRS[0]["prompt"], PAIRS[0]["chosen"])
    layout, (first, *_) = read(CHATS)
    assert layout.is_conversation and first.first == CHATS[0]["chosen"]


def test_a_prompt_may_be_implicit():
    rows = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in PAIRS]
    layout, (first, *_) = read(rows)
    assert layout.prompt is None and "begin with alike is its prompt" in layout.notes[1]
    # The space between belongs to the answers.
    assert (first.prompt, first.first) == ("what colour is the grass", " green")
    chats = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in CHATS]
    _, (first, *_) = read(chats)
    assert (first.prompt, first.first) == (CHATS[0]["prompt"], CHATS[0]["chosen"])


SYSTEM = by("system", "Be brief.")


@pytest.mark.parametrize("system", [[], [SYSTEM]])
@pytest.mark.parametrize("in_answers", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_prompt_that_its_answers_repeat_is_there_once(system, in_answers, as_text):
    rows = [
        {
            "prompt": row["prompt"][0]["content"] if as_text else [*system, *row["prompt"]],
            **{
                key: [*(system if in_answers else []), *row["prompt"], *row[key]]
                for key in ("chosen", "rejected")
            },
        }
        for row in CHATS
    ]
    _, (pair, *_) = read(rows)
    is_lost = as_text and not in_answers  # it is nowhere
    assert pair.prompt == [*([] if is_lost else system), *CHATS[0]["prompt"]]
    assert (pair.first, pair.second) == (CHATS[0]["chosen"], CHATS[0]["rejected"])
    votes = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 2}
        for number, row in enumerate(rows)
    ]
    _, (vote, *_) = read(votes, KTO)
    assert (vote.prompt, vote.first) == (pair.prompt, pair.first)


def test_an_answer_of_several_messages_may_repeat_the_prompts_words():
    again = [*CHATS[0]["chosen"], *CHATS[0]["prompt"], by("assistant", "red")]
    _, (pair,) = read([{**CHATS[0], "chosen": again}])
    assert (pair.prompt, pair.first) == (CHATS[0]["prompt"], again)


def test_a_vote_gets_an_answer_to_another_prompt():
    _, answers = read(VOTES, KTO)
    prompts = {row["completion"]: row["prompt"] for row in VOTES}
    assert all(one.second != one.first for one in answers)
    assert all(prompts[one.second] != one.prompt for one in answers)
    assert [one.vote for one in answers] == [1, 0] * len(PAIRS)


@pytest.mark.parametrize("values", [("true", "false"), (1, 0), ("1", "0")])
def test_votes_may_be_words_or_numbers(values):
    rows = [{**row, "label": values[not row["label"]]} for row in VOTES]
    _, answers = read(rows, KTO)
    assert [one.vote for one in answers] == [1, 0] * len(PAIRS)


def test_what_cannot_be_compared_is_listed():
    rows = [dict(row) for row in PAIRS]
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["prompt"] = "  "
    rows[3]["chosen"] = ""
    text = refusal(rows)
    assert "example 2: the chosen answer is the rejected one" in text
    assert "example 3: an empty prompt" in text
    assert "example 4: an empty text in 'chosen'" in text
    assert "two different answers in each example. Repair or remove these examples" in text


@pytest.mark.parametrize(
    ("chosen", "rejected"), [(" green", "green \n"), ("it is green", "it  is green")]
)
def test_answers_that_differ_in_spaces_alone_are_refused(chosen, rejected):
    alike = {**PAIRS[0], "chosen": chosen, "rejected": rejected}
    expected = "example 2: the chosen answer differs from the rejected one in spaces alone"
    assert expected in refusal([PAIRS[0], alike])
    talks = {
        column: [{"role": "assistant", "content": alike[column]}]
        for column in ("chosen", "rejected")
    }
    assert expected in refusal([CHATS[0], {**CHATS[0], **talks}])
    lines = {"chosen": "it\nis green", "rejected": "it is green"}
    assert read([{**PAIRS[0], **lines}])


@pytest.mark.parametrize("rows", [PAIRS, VOTES])
def test_chunks_are_read_as_all_at_once(rows):
    many = [{**row, "prompt": f"{row['prompt']} {n % 7}"} for n in range(6) for row in rows]
    examples, objective = Dataset.from_list(many), KTO if rows is VOTES else DPO
    layout = find_preferences(examples, DATA, objective, "x")
    selected, read_chunk = preference_reader(examples, layout)
    whole = read_chunk(selected[:], range(len(many)))
    chunks = [range(at, min(at + 5, len(many))) for at in range(0, len(many), 5)]
    assert [one for at in chunks for one in read_chunk(selected[at], at)] == whole


def test_answers_without_a_common_beginning_have_no_prompt():
    assert "example 1: no beginning in common" in refusal([{"chosen": "a", "rejected": "b"}])


def test_votes_that_are_all_good_compare_nothing():
    text = refusal([{**row, "label": True} for row in VOTES], KTO)
    assert "all votes in 'label' (data.label) are good, expected good and bad ones" in text
    assert "'so-so' in 'label' is not true or false" in refusal(
        [{**VOTES[0], "label": "so-so"}], KTO
    )


def test_another_layout_says_which_line_to_change():
    assert "change the line to `objective: {type: kto}`" in refusal(VOTES)
    assert "change the line to `objective: {type: dpo}`" in refusal(PAIRS, KTO)
    supervised = [{"prompt": "a", "completion": "b"}]
    text = refusal(supervised)
    assert "got the columns prompt, completion, expected 'chosen' and 'rejected'" in text
    assert "If they are examples of right answers, leave `objective` out" in text


@pytest.mark.parametrize(
    ("rows", "line"),
    [(PAIRS, "objective: {type: dpo}"), (VOTES, "objective: {type: kto}")],
)
def test_supervised_training_says_which_line_to_add(rows, line):
    with pytest.raises(DataError, match="Preference data in x: got ") as caught:
        find_layout(Dataset.from_list(rows), DATA, "x")
    assert f"Add the line `{line}` to the recipe" in str(caught.value)


def test_layouts_by_columns():
    assert preference_layout_of(["chosen", "rejected"], DATA) == "preference"
    assert preference_layout_of(["prompt", "completion", "label"], DATA) == "votes"
    assert preference_layout_of(["prompt", "completion"], DATA) is None


def test_names_of_columns_and_parts_are_distinct():
    keys = {preferences.PARTS, preferences.SEGMENTS, preferences.VOTES_KEY}
    assert len(keys | {preferences.REFERENCE_KEY}) == 4
    parts = {preferences.PROMPT, preferences.FIRST, preferences.SECOND}
    assert len(parts | {preferences.PADDING}) == 4
