"""A base and adapters beside each other: their answers, and what is in memory."""

import asyncio
import gc
import json
import shutil
import weakref

import pytest

from lorakit.config import TaskType
from lorakit.errors import ConfigError, StoppedError
from lorakit.inference import generate_text, load_for_inference
from lorakit.runs.base_memory import DeviceRoom
from lorakit.serving.clients import side_by_side
from lorakit.serving.clients.side_by_side import Candidate, Question, SideBySide, Wanted, Words
from lorakit.serving.clients.talking import AnswerOptions, End
from lorakit.serving.pooled.labels import TextLabel

QUESTION = Question("what colour is the sky")


@pytest.fixture(scope="module")
def root(adapter_folder, tmp_path_factory):
    """A directory with adapters, as the studio has one."""
    place = tmp_path_factory.mktemp("studio")
    shutil.copytree(adapter_folder, place, dirs_exist_ok=True)
    for name in ("german", "french"):
        settings = {"task_type": "CAUSAL_LM", "format": "messages"}
        (place / name / "lorakit.json").write_text(json.dumps(settings))
    return place


@pytest.fixture
def models(root):
    made = SideBySide(root)
    yield made
    made.close()


def opened(models, root, *names, **options):
    notes = []
    models.open(Wanted(adapters={name: root / name for name in names}, **options), notes.append)
    return notes


def asked(models, question=QUESTION, **options):
    """Return the candidates, and what each said."""

    async def ask():
        among = await models.candidates()
        said = {}
        for each in among:
            pieces = models.ask(each, question, AnswerOptions(**options), among)
            said[each.name] = [piece async for piece in pieces]
        return {each.name: each for each in among}, said

    return asyncio.run(ask())


def test_base_and_adapters_answer_as_generate_does(models, root):
    opened(models, root, "german", "french")
    candidates, said = asked(models, max_new_tokens=6)
    base, german, french = candidates.values()
    assert base.is_base and (german.name, french.name) == ("german", "french")
    assert german.form == base.form == "conversation"
    for name in ("german", "french"):
        expected = generate_text(load_for_inference(root / name), [QUESTION.text], max_new_tokens=6)
        assert "".join(said[name][:-1]) == expected[0]
    assert isinstance(said[base.name][-1], End)


def test_the_same_seed_gives_the_same_answers(models, root):
    opened(models, root, "german")
    options = {"max_new_tokens": 8, "temperature": 1.5}
    first, again, other = (asked(models, seed=seed, **options)[1]["german"] for seed in (1, 1, 2))
    assert first == again != other


def test_a_classifier_gives_probabilities_and_its_base_is_left_out(models, root):
    opened(models, root, "mood")
    candidates, said = asked(models)
    (mood,) = candidates.values()
    assert mood.task is TaskType.SEQ_CLS and mood.labels == tuple(said["mood"][0].probabilities)
    label, end = said["mood"]
    assert isinstance(label, TextLabel) and end == End("stop")
    assert sum(label.probabilities.values()) == pytest.approx(1)


def test_pairs_and_words_are_classified_too(models, root):
    opened(models, root, "pairs", "tags")
    candidates, said = asked(models, Question("the sky is blue", "it is green"))
    assert candidates["pairs"].takes_pairs
    assert isinstance(said["pairs"][0], TextLabel)
    (words, _) = said["tags"]
    assert isinstance(words, Words)
    assert [each.word.text for each in words.words] == ["the", "sky", "is", "blue"]


def test_other_adapters_of_the_base_do_not_load_it_again(models, root):
    opened(models, root, "german")
    service = models.service
    notes = opened(models, root, "french", "mood")
    assert models.service is service
    assert notes == ["Reading what the adapters need", "Loading the adapters"]
    candidates, _ = asked(models, max_new_tokens=3)
    assert [name for name in candidates if not candidates[name].is_base] == ["french", "mood"]
    opened(models, root, "german")
    assert set(asked(models, max_new_tokens=3)[1]) == {models.service.base_name, "german"}


def test_a_name_that_stands_for_another_adapter_is_exchanged(models, root):
    opened(models, root, "french")
    said = asked(models, max_new_tokens=6)[1]["french"]
    opened(models, root, "german")
    models.open(Wanted(adapters={"german": root / "french"}), [].append)
    assert asked(models, max_new_tokens=6)[1]["german"] == said


def test_a_base_whose_weights_have_changed_is_loaded_again(models, root, monkeypatch):
    opened(models, root, "german")
    service = models.service
    monkeypatch.setattr(side_by_side, "base_digest", lambda *_: "0" * 64)
    opened(models, root, "german")
    assert models.service is not service


def test_another_base_frees_the_memory_of_the_first(models, root, tiny_gpt2_dir, freezing):
    opened(models, root, "german")
    asked(models, max_new_tokens=2)
    first = weakref.ref(models.service.models[0].base.model)
    notes = []

    def note(said):
        notes.append(said)
        if said.startswith("Loading the weights"):
            assert first() is None
            gc.freeze()  # looking for garbage among the objects of all tests takes seconds

    models.open(Wanted(base=str(tiny_gpt2_dir)), note)
    assert [said.split()[0] for said in notes] == ["Reading", "Unloading", "Loading", "Loading"]
    (only,) = asked(models, max_new_tokens=2)[0].values()
    assert only.is_base and only.form == "text"


def test_a_base_that_does_not_fit_is_refused_and_the_first_stays(
    models, root, tiny_gpt2_dir, monkeypatch
):
    opened(models, root, "german")
    service = models.service
    monkeypatch.setattr(models, "room", lambda *_: DeviceRoom("", 1000))
    with pytest.raises(ConfigError, match=r"Cannot load the base .*got 0.001 MB of free memory"):
        models.open(Wanted(base=str(tiny_gpt2_dir)), print)
    assert models.service is service


def test_a_cancelled_load_leaves_nothing_in_memory(models, root):
    with pytest.raises(StoppedError, match="Loading was cancelled"):
        models.open(Wanted(adapters={"german": root / "german"}), print, lambda: True)
    assert models.base is None
    with pytest.raises(ConfigError, match="Nobody to ask"):
        asked(models)


def test_adapters_of_two_bases_and_too_many_are_refused(models, root, tmp_path, tiny_gpt2_dir):
    other = shutil.copytree(root / "german", tmp_path / "other")
    config = other / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": str(tiny_gpt2_dir)}
    config.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="they differ in the base model"):
        models.open(Wanted(adapters={"german": root / "german", "other": other}), print)
    four = {str(n): root / "german" for n in range(4)}
    with pytest.raises(ConfigError, match="expected at most 3 beside the base"):
        models.open(Wanted(adapters=four), print)


def test_what_a_vote_says_the_model_has_read():
    def prompt(form):
        question = Question("Hi", system="Be kind.")
        return question.prompt_for(Candidate("x", False, TaskType.CAUSAL_LM, form))

    assert prompt("text") == "Hi"
    assert prompt("instruction").startswith("Here is an instruction.")
    assert prompt("conversation")[0] == {"role": "system", "content": "Be kind."}
