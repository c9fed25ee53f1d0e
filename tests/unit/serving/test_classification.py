"""Labels from a served model, without the server around it."""

import asyncio

import pytest

from lorakit.config import TaskType
from lorakit.serving.classification import text_labels, word_labels
from lorakit.serving.refusals import RequestError
from lorakit.serving.service import Service
from lorakit.serving.sources import find_source


@pytest.fixture
def service(adapter_folder):
    made = Service(find_source([adapter_folder / name for name in ("mood", "pairs", "tags")]))
    made.start()
    yield made
    made.stop(finish_running=False)


def labelled(service, name, function, *inputs):
    """Return the labels of inputs, and how many tokens were counted."""
    counted = []

    async def run():
        found = await service.find(name, list(TaskType), "classify")
        async with found.model.using(found.adapter) as (shared, text):
            return await function(found.model, shared, text, inputs, counted.extend)

    return asyncio.run(run()), counted


def test_texts_have_one_probability_for_each_label(service):
    (first, second), columns = labelled(service, "mood", text_labels, "I am glad", "I am sad")
    assert list(first.probabilities) == list(second.probabilities)
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert first.label == max(first.probabilities, key=first.probabilities.get)
    assert len(columns) == 2 and all(each["input_ids"] for each in columns)


def test_an_adapter_for_pairs_takes_pairs_alone(service):
    (found,), _ = labelled(service, "pairs", text_labels, ("the sky", "is blue"))
    assert found.label in found.probabilities
    with pytest.raises(RequestError, match="got a text, expected pairs of texts"):
        labelled(service, "pairs", text_labels, "the sky")


def test_each_word_has_a_label(service):
    (words,), columns = labelled(service, "tags", word_labels, "Ada lives in Rome")
    assert [each.word.text for each in words] == ["Ada", "lives", "in", "Rome"]
    assert (words[3].word.start, words[3].word.end) == (13, 17)
    assert len(columns) == 1
