"""The playground's page: choosing, what it costs, asking, voting."""

import asyncio
import json
import shutil

import pytest
from nicegui import ui

from lorakit.runs.votes import read_votes

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(studio, adapter_folder):
    """The studio's folder, with adapters of all tasks."""
    shutil.copytree(adapter_folder, studio.root, dirs_exist_ok=True)
    for name in ("german", "french"):
        settings = {"task_type": "CAUSAL_LM", "format": "messages"}
        (studio.root / name / "lorakit.json").write_text(json.dumps(settings))
    return studio.root


@pytest.fixture
def state(studio):
    """The playground behind the page, closed after the test."""
    from lorakit.studio.pages.playground import playground_of

    made = playground_of(studio)
    yield made
    made.close()


async def ended(is_so):
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.4)  # the page looks a few times a second


async def load(user, state, address):
    await user.open(address)
    user.find("Load").click()
    await asyncio.sleep(0)
    await ended(lambda: state.loading is None)


async def test_a_folder_without_adapters_says_where_to_go(user, state):
    await user.open("/playground")
    await user.should_see("There is no adapter in this folder yet.")
    await user.should_see("New run")


async def test_what_a_base_takes_is_shown_before_it_is_loaded(user, root, state):
    await user.open("/playground?runs=german")
    await user.should_see("of memory as it is saved")
    await user.should_see("Only one base is in memory at a time.")
    assert state.base is None


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


def click(user, label):
    """Click the button that a screen reader calls so."""
    (button,) = [b for b in user.find(ui.button).elements if b.props.get("aria-label") == label]
    for listener in button._event_listeners.values():
        if listener.type == "click":
            button._handle_event({"listener_id": listener.id, "args": {}})


async def test_a_reload_shows_the_last_answers(user, root, state):
    await load(user, state, "/playground?runs=german")
    user.find("Text").type("hello")
    user.find("Ask").click()
    await ended(lambda: state.answers and not state.is_answering)
    await user.open("/playground")
    await user.should_see("with german.")
    await user.should_see("Correct")
    await user.should_see("hello")


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


async def test_an_adapter_of_another_base_is_left_out_and_said_so(user, root, state):
    config = root / "french" / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "/other/base"}
    config.write_text(json.dumps(values))
    await user.open("/playground?runs=german,french")
    await user.should_see("french is left out: its base is /other/base")


async def test_what_loading_refuses_is_shown_in_its_sentence(user, root, state):
    config = root / "french" / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "/other/base"}
    config.write_text(json.dumps(values))
    await load(user, state, "/playground?runs=french")
    await user.should_see("base_model_name_or_path of the adapters")
    assert "/other/base" in str(state.error)
    await user.should_see(str(state.error))


async def test_a_path_outside_the_folder_is_refused(user, root, state):
    await user.open("/playground?runs=../secret")
    await user.should_see("it leads out of that folder")
    await user.open("/playground?mixture=../x")
    await user.should_see("No mixture")
