"""The playground's state: it outlives pages; loading, asking, stopping, voting."""

import asyncio
import json
import shutil

import pytest

from fixtures.preferences import read_votes
from lorakit.config import TaskType
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.runs.mixtures import write_mixture
from lorakit.serving.clients.candidates import Candidate, Question, Wanted
from lorakit.serving.clients.playground import Answer, Playground
from lorakit.serving.clients.talking import AnswerOptions

OPTIONS = AnswerOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def root(adapter_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("studio")
    shutil.copytree(adapter_folder, place, dirs_exist_ok=True)
    return place


@pytest.fixture
def playing(root):
    """Run a coroutine function with a playground, which is closed afterwards."""

    def run(steps):
        async def play():
            playground = Playground(root)
            try:
                await steps(playground)
            finally:
                playground.close()

        asyncio.run(play())

    yield run
    shutil.rmtree(root / "preferences", ignore_errors=True)


async def load(playground, *names):
    playground.load(Wanted(adapters={name: playground.root / name for name in names}))
    await ended(lambda: playground.loading is None)


async def ask(playground):
    playground.ask(Question("what colour is the sky"), OPTIONS)
    await ended(lambda: not playground.is_answering)
    return {each.candidate.name: each for each in playground.answers}


async def ended(is_so):
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


def test_a_vote_for_an_answer_is_a_preference_against_each_other_one(playing, root):
    async def steps(playground):
        await load(playground, "german", "french")
        assert playground.error is None and playground.base is not None
        said = await ask(playground)
        assert len(said) == 3 and all(each.is_written for each in said.values())
        added = await playground.save(playground.prefer(said["german"]))
        assert added.file == root / "preferences" / "chat.jsonl"
        texts = {each.text for each in said.values()}
        assert added.total == len(texts) - 1 > 0
        for vote in read_votes(added.file):
            assert vote["prompt"] == [{"role": "user", "content": "what colour is the sky"}]
            assert vote["chosen"][0]["content"] == said["german"].text
            assert vote["chosen_from"] == "german" != vote["rejected_from"]

    playing(steps)


def test_a_correction_is_chosen_over_the_answer(playing):
    async def steps(playground):
        await load(playground, "german")
        said = await ask(playground)
        german = said["german"]
        added = await playground.save(playground.correct(german, "blue"))
        (vote,) = read_votes(added.file)
        assert vote["chosen"][0]["content"] == "blue" and vote["chosen_from"] == "user"
        assert vote["rejected_from"] == "german"
        with pytest.raises(DataError, match="the same answer"):
            playground.correct(german, german.text)

    playing(steps)


def test_a_vote_is_about_the_question_that_was_answered(tmp_path):
    playground = Playground(tmp_path)
    who = Candidate("german", False, TaskType.CAUSAL_LM, "text")
    said = [Answer(who, Question(text), text=text.upper(), end="stop") for text in ("a", "b", "b")]
    playground.question, playground.answers = said[1].question, said[1:]
    _, (vote,) = playground.correct(said[0], "right")  # a page showed it a moment ago
    assert (vote["prompt"], vote["rejected"]) == ("a", "A")
    with pytest.raises(ConfigError, match="Nothing to compare with"):
        playground.prefer(said[0])


def test_labels_and_tags_are_corrected_in_a_file_of_their_adapter(playing, root):
    async def steps(playground):
        await load(playground, "mood", "tags")
        said = await ask(playground)
        label = next(iter(said["mood"].label.probabilities))
        added = await playground.save(playground.label(said["mood"], label))
        assert added.file == root / "preferences" / "mood" / "labels.jsonl"
        assert read_votes(added.file)[0]["label"] == label
        words = said["tags"].words.words
        added = await playground.save(playground.tag(said["tags"], ["O"] * len(words)))
        assert read_votes(added.file)[0]["tokens"] == ["what", "colour", "is", "the", "sky"]

    playing(steps)


def test_labels_of_a_mixture_go_to_the_adapter_that_has_them(playing, root):
    async def steps(playground):
        weights = {"mood": 0.7}
        place = write_mixture(root, {"mood": root / "mood"}, weights, heads_from="mood") / "adapter"
        playground.load(Wanted(adapters={"0.7 mood": place}))
        await ended(lambda: playground.loading is None)
        said = await ask(playground)
        added = await playground.save(playground.label(said["0.7 mood"], "good"))
        assert added.file == root / "preferences" / "mood" / "labels.jsonl"
        assert read_votes(added.file)[0]["predicted_by"] == "0.7 mood"

    playing(steps)


def test_an_answer_is_stopped_and_keeps_what_it_has(playing):
    async def steps(playground):
        await load(playground, "german")
        playground.ask(Question("hello"), AnswerOptions(max_new_tokens=400, temperature=1.0))
        await ended(lambda: any(each.text for each in playground.answers))
        playground.stop()
        assert {each.end for each in playground.answers} <= {"stopped", "stop", "length"}
        assert not playground.is_answering
        await ask(playground)  # the engine has its place again

    playing(steps)


def test_a_failed_load_says_why_and_the_next_one_works(playing, root):
    async def steps(playground):
        playground.load(Wanted(adapters={"gone": root / "gone"}))
        with pytest.raises(ConfigError, match="another base is being loaded"):
            playground.load(Wanted())
        await ended(lambda: playground.loading is None)
        assert isinstance(playground.error, MissingFileError)
        with pytest.raises(ConfigError, match="Nobody to ask"):
            playground.ask(Question("x"), OPTIONS)
        await load(playground, "german")
        assert playground.error is None
        with pytest.raises(ConfigError, match="Nothing to ask: got an empty text"):
            playground.ask(Question("  "), OPTIONS)

    playing(steps)


def test_an_adapter_that_breaks_while_it_is_in_use_is_told_in_its_answer(playing, root):
    async def steps(playground):
        place = shutil.copytree(root / "german", root / "broken")
        await load(playground, "broken")
        (place / "adapter_config.json").write_text(json.dumps({"r": "x"}))
        said = await ask(playground)
        shutil.rmtree(place)
        assert said["broken"].error is None or "broken" in str(said["broken"].error)
        assert all(each.is_over for each in said.values())

    playing(steps)


def test_loading_is_cancelled_and_unloading_frees(playing):
    async def steps(playground):
        playground.load(Wanted(adapters={"german": playground.root / "german"}))
        playground.loading.cancel()
        assert playground.loading.is_cancelled and playground.loading.seconds >= 0
        await ended(lambda: playground.loading is None)
        assert "cancelled" in str(playground.error) and playground.base is None
        await load(playground, "german")
        await playground.unload()
        assert playground.base is None and playground.candidates == []

    playing(steps)
