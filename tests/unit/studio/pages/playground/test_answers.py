"""Answers beside each other, votes and corrections."""

import json

import pytest
from nicegui import ui

from fixtures.preferences import read_votes
from fixtures.studio_pages import click, ended, load

pytestmark = pytest.mark.anyio


async def test_answers_stand_beside_each_other_and_a_vote_is_saved(user, root, state):
    await load(user, state, "/playground?runs=german,french")
    await user.should_see("with german, french.")
    user.find("Text").type("what colour is the sky")
    user.find("New tokens at most").elements.pop().set_value(5)
    user.find("Ask").click()
    await ended(lambda: state.answers and not state.is_answering)
    for answer in state.answers:
        await user.should_see(answer.candidate.name)
    assert len(state.answers) == 3
    german = next(each for each in state.answers if each.candidate.name == "german")
    click(user, "Better: german")
    await ended(lambda: (root / "preferences" / "chat.jsonl").is_file())
    await user.should_see("Saved. preferences/chat.jsonl has")
    votes = read_votes(root / "preferences" / "chat.jsonl")
    assert {vote["chosen"][0]["content"] for vote in votes} == {german.text}
    (link,) = user.find("Train on these votes").elements
    assert "data=preferences%2Fchat.jsonl" in link.props["href"]
    assert "adapter=german" in link.props["href"]


async def test_labels_are_bars_with_numbers_and_can_be_corrected(user, root, state):
    await load(user, state, "/playground?runs=mood,tags")
    user.find("Text").type("a fine day in Rome")
    user.find("Ask").click()
    await ended(lambda: state.answers and not state.is_answering)
    mood = next(each for each in state.answers if each.candidate.name == "mood")
    for label, probability in mood.label.probabilities.items():
        await user.should_see(label)
        await user.should_see(f"{100 * probability:.1f}%")
    user.find("Save as an example").click()
    await ended(lambda: (root / "preferences" / "mood" / "labels.jsonl").is_file())
    (vote,) = read_votes(root / "preferences" / "mood" / "labels.jsonl")
    assert vote["text"] == "a fine day in Rome" and vote["label"] == mood.label.label
    user.find("Correct the tags").click()
    await user.should_see("Rome")
    user.find("Save the tags").click()
    await ended(lambda: (root / "preferences" / "tags" / "tags.jsonl").is_file())


async def test_labels_above_their_thresholds_are_corrected_together(user, root, state):
    settings = json.loads((root / "mood" / "lorakit.json").read_text())
    several = {"problem_type": "multi_label_classification"}
    count = len(settings["labels"])
    several["thresholds"] = [0.0, *([0.99] * (count - 1))]
    (root / "mood" / "lorakit.json").write_text(json.dumps(settings | several))
    await load(user, state, "/playground?runs=mood")
    user.find("Text").type("a fine day in Rome")
    user.find("Ask").click()
    await ended(lambda: state.answers and not state.is_answering)
    (mood,) = (each for each in state.answers if each.candidate.name == "mood")
    first, second = settings["labels"][:2]
    assert mood.label.chosen == (first,)
    (right,) = (each for each in user.find(ui.select).elements if each.label == "The right labels")
    right.set_value([first, second])
    user.find("Save as an example").click()
    await ended(lambda: (root / "preferences" / "mood" / "labels.jsonl").is_file())
    (vote,) = read_votes(root / "preferences" / "mood" / "labels.jsonl")
    assert (vote["label"], vote["predicted"]) == ([first, second], [first])
    (link,) = user.find("Train on these votes").elements
    assert "adapter=mood" in link.props["href"]
