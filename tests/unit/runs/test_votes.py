"""Votes: kept once, the newest wins, never lost; files that data reading recognizes."""

import json
import subprocess
import sys

import pytest
from datasets import load_dataset

from fixtures.preferences import read_votes
from lorakit.config import TaskType
from lorakit.errors import DataError, DiskError
from lorakit.recipes.recipe import DataConfig
from lorakit.runs.votes import (
    add_votes,
    preference,
    right_label,
    right_tags,
    vote_file,
)


def vote(prompt="What is red?", chosen="Blood.", rejected="Grass."):
    return preference(prompt, chosen, rejected, chosen_from="german", rejected_from="base")


def test_a_vote_is_one_line_with_prompt_chosen_and_rejected(tmp_path):
    file = vote_file(tmp_path, "texts")
    added = add_votes(file, [vote()])
    assert file == tmp_path / "preferences" / "texts.jsonl"
    assert (added.added, added.known, added.replaced, added.total) == (1, 0, 0, 1)
    assert json.loads(file.read_text()) == {
        "prompt": "What is red?",
        "chosen": "Blood.",
        "rejected": "Grass.",
        "chosen_from": "german",
        "rejected_from": "base",
    }


def test_a_vote_in_a_chat_has_messages(tmp_path):
    file = vote_file(tmp_path, "chat")
    add_votes(file, [vote([{"role": "user", "content": "What is red?"}])])
    (kept,) = read_votes(file)
    assert kept["prompt"] == [{"role": "user", "content": "What is red?"}]
    assert kept["chosen"] == [{"role": "assistant", "content": "Blood."}]


def test_the_same_vote_is_kept_once(tmp_path):
    file = tmp_path / "texts.jsonl"
    add_votes(file, [vote()])
    before = file.read_bytes()
    added = add_votes(file, [vote(), vote()])
    assert (added.added, added.known, added.total) == (0, 2, 1)
    assert file.read_bytes() == before


def test_the_opposite_vote_replaces_the_earlier_one(tmp_path):
    file = tmp_path / "texts.jsonl"
    add_votes(file, [vote(), vote("And green?")])
    added = add_votes(file, [vote(chosen="Grass.", rejected="Blood.")])
    assert (added.added, added.replaced, added.total) == (1, 1, 2)
    assert [each["prompt"] for each in read_votes(file)] == ["And green?", "What is red?"]
    assert read_votes(file)[-1]["chosen"] == "Grass."


def test_a_corrected_label_replaces_the_earlier_one(tmp_path):
    file = vote_file(tmp_path, "labels", "runs/mood")
    add_votes(file, [right_label("I am glad", "sad", "sad", "mood")])
    add_votes(file, [right_label("I am glad", "glad", "sad", "mood")])
    assert file.parent == tmp_path / "preferences" / "runs" / "mood"
    assert [each["label"] for each in read_votes(file)] == ["glad"]


def test_what_others_wrote_stays_as_it_is(tmp_path):
    file = tmp_path / "texts.jsonl"
    line = '{"prompt":  "by hand",  "rejected": "b", "chosen": "a", "why": "shorter"}'
    file.write_text(f"{line}\n\n{line.replace('by hand', 'another')}")  # without a last newline
    add_votes(file, [vote()])
    assert file.read_text().splitlines()[0] == line
    assert len(read_votes(file)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "x", "chosen"', r"line 1 is not a vote, expected a JSON object"),
        (b'{"text": "no answer"}\n', "line 1 is not a vote"),
        (b"[1, 2]\n", "line 1 is not a vote"),
        (b"\xff\xfe\n", "byte 0 is not UTF-8"),
        (
            b'{"text": "x", "label": "glad"}\n',
            r"its first line has a text as 'text', a text as 'label', expected a text as 'prompt'",
        ),
        (
            b'{"prompt": [{"role": "user", "content": "x"}], "chosen": [], "rejected": []}\n',
            "its first line has a list as 'prompt'",
        ),
    ],
)
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, content, message):
    file = tmp_path / "texts.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        add_votes(file, [vote()])
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "  "}, "an empty prompt"),
        ({"chosen": "Grass."}, "the same answer as the better and the worse one"),
        ({"chosen": " "}, "an empty answer as the better one"),
    ],
)
def test_a_vote_that_says_nothing_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        vote(**given)


def test_each_word_needs_a_tag():
    with pytest.raises(DataError, match="got 1 tags for 2 words"):
        right_tags(["in", "Rome"], ["O"], ["O", "O"], "places")


def test_any_text_survives(tmp_path):
    file = tmp_path / "texts.jsonl"
    hostile = "<script>alert(1)</script>\n\x1b[31m \u202e 你好 🎈\u2028 half \ud83d"
    add_votes(file, [vote(hostile)])
    add_votes(file, [vote("next")])
    assert len(file.read_text(encoding="utf-8").split("\n")) == 3
    assert read_votes(file)[0]["prompt"] == hostile.replace("\ud83d", "?")


def test_a_directory_that_cannot_be_written_is_the_disks_error(tmp_path):
    (tmp_path / "preferences").write_text("a file is in the way")
    with pytest.raises((DataError, DiskError), match="preferences"):
        add_votes(vote_file(tmp_path, "texts"), [vote()])


def test_votes_of_several_processes_are_all_kept(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lorakit.runs.votes import *\n"
        "for n in range(15):\n"
        "    one = preference(f'{sys.argv[2]} {n}', 'a', 'b', chosen_from='x', rejected_from='y')\n"
        "    add_votes(Path(sys.argv[1]), [one])\n"
        "assert 'torch' not in sys.modules\n"
    )
    file = tmp_path / "texts.jsonl"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in ("one", "two")
    ]
    assert [each.wait() for each in started] == [0, 0]
    assert len({each["prompt"] for each in read_votes(file)}) == 30


# ---- what training says about the files ----


def columns_of(file):
    return load_dataset("json", data_files=str(file), split="train")


@pytest.mark.parametrize("prompt", ["What is red?", [{"role": "user", "content": "What?"}]])
def test_answers_are_recognized_as_preference_data(tmp_path, prompt):
    from lorakit.data.text_formats import find_layout

    file = tmp_path / "votes.jsonl"
    add_votes(file, [vote(prompt)])
    with pytest.raises(DataError, match="Preference data in votes: got 'chosen' and 'rejected'"):
        find_layout(columns_of(file), DataConfig(train=str(file)), "votes")


@pytest.mark.parametrize("prompt", ["What is red?", [{"role": "user", "content": "What?"}]])
def test_the_better_answers_alone_can_be_trained_on(tmp_path, prompt):
    from lorakit.data.text_formats import find_layout

    file = tmp_path / "votes.jsonl"
    add_votes(file, [vote(prompt)])
    data = DataConfig(train=str(file), completion="chosen")
    layout = find_layout(columns_of(file), data, "votes")
    assert layout.name == "prompt_completion"
    assert bool(layout.conversation) == isinstance(prompt, list)


def test_corrected_classes_are_examples_of_a_classifier(tmp_path):
    from lorakit.training.recognition import recognize

    file = tmp_path / "labels.jsonl"
    names = ("glad", "sad")
    add_votes(file, [right_label(f"text {n}", names[n % 2], "sad", "mood") for n in range(6)])
    found = recognize(str(file), None, None)
    assert found.task is TaskType.SEQ_CLS
    assert found.columns == {"text": "text", "label": "label"}


def test_corrected_pairs_and_tags_are_examples_too(tmp_path):
    from lorakit.training.recognition import recognize

    pairs, tags = tmp_path / "pairs.jsonl", tmp_path / "tags.jsonl"
    add_votes(
        pairs,
        [right_label((f"one {n}", "two"), "yes" if n % 2 else "no", "yes", "m") for n in range(6)],
    )
    add_votes(
        tags,
        [right_tags(["in", f"Rome{n}"], ["O", "B-PLACE"], ["O", "O"], "m") for n in range(4)],
    )
    found = recognize(str(pairs), None, None)
    assert found.columns == {"text": "text1", "text_pair": "text2", "label": "label"}
    assert recognize(str(tags), None, None).columns == {"tokens": "tokens", "tags": "tags"}


def test_corrected_sets_of_labels_are_examples_of_several_labels(tmp_path):
    from lorakit.training.recognition import recognize

    file = tmp_path / "labels.jsonl"
    sets = (("post", "bill"), ("bill",), ())
    add_votes(file, [right_label(f"text {n}", sets[n % 3], sets[n % 3], "m") for n in range(9)])
    (first, *_) = read_votes(file)
    assert (first["label"], first["predicted"]) == (["post", "bill"], ["post", "bill"])
    found = recognize(str(file), None, None)
    assert found.columns == {"text": "text", "label": "label"}


@pytest.mark.parametrize("prompt", ["Say it {n}.", [{"role": "user", "content": "Say {n}."}]])
def test_votes_on_answers_are_trained_on_as_preferences(tmp_path, prompt):
    from lorakit.training.recognition import recognize

    file = tmp_path / "votes.jsonl"
    prompts = [json.loads(json.dumps(prompt).replace("{n}", str(n))) for n in range(9)]
    add_votes(
        file, [preference(p, " Yes.", " No.", chosen_from="a", rejected_from="b") for p in prompts]
    )
    found = recognize(str(file), None, None)
    assert (found.objective, found.columns) == ("dpo", {"format": "preference"})
