"""Answers of an engine in this process: those of the server, and of `generate_text`."""

import json
from contextlib import closing

import pytest

from lorakit.errors import ConfigError, DataError
from lorakit.inference import generate_text, load_for_inference
from lorakit.serving.clients.event_loop import LoopThread
from lorakit.serving.clients.in_process import InProcessModels
from lorakit.serving.clients.talking import AnswerOptions, End, Listed

QUESTION = "what colour is the sky"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def opened():
    """Open models; they are closed after the test."""
    with closing(LoopThread()) as loop:
        made = []

        def start(place):
            made.append(InProcessModels(place))
            return made[-1], loop

        yield start
        for models in made:
            loop.run(models.close())


def answer_of(models, loop, name, messages=MESSAGES, *, like=None, **options):
    stream = models.answer(name, messages, AnswerOptions(**options), form_like=like or name)
    items = [item for _, item in loop.merge([stream]) if item is not None]
    for item in items:
        if isinstance(item, Exception):
            raise item
    assert isinstance(items[-1], End)
    return "".join(items[:-1]), items[-1].reason


def adapter_with(adapter_folder, tmp_path, **settings):
    """Return a copy of an adapter with other settings of its training."""
    import shutil

    place = shutil.copytree(adapter_folder / "german", tmp_path / "german")
    (place / "lorakit.json").write_text(json.dumps({"task_type": "CAUSAL_LM", **settings}))
    return place


@pytest.mark.parametrize("layout", ["messages", "alpaca", "text"])
def test_an_answer_is_that_of_generate_for_each_layout(adapter_folder, tmp_path, opened, layout):
    place = adapter_with(adapter_folder, tmp_path, format=layout)
    expected = generate_text(load_for_inference(place), [QUESTION], max_new_tokens=8)
    models, loop = opened(place)
    text, _ = answer_of(models, loop, "german", max_new_tokens=8)
    assert text == expected[0]


def test_the_base_is_beside_the_adapter_in_the_adapters_form(adapter_folder, tmp_path, opened):
    place = adapter_with(adapter_folder, tmp_path, format="text")
    loaded = load_for_inference(place)
    expected = generate_text(loaded, [QUESTION], use_base=True, max_new_tokens=8)
    models, loop = opened(place)
    base, german = loop.run(models.list_models())
    assert base.is_base and german == Listed("german", False, "CAUSAL_LM")
    text, _ = answer_of(models, loop, base.name, like="german", max_new_tokens=8)
    assert text == expected[0]
    assert loop.run(models.form("german")) == "text"
    assert loop.run(models.form(base.name)) == "conversation"


def test_an_answer_fits_the_context_and_a_long_conversation_is_refused(adapter_folder, opened):
    models, loop = opened(adapter_folder / "german")
    _, reason = answer_of(models, loop, "german", max_new_tokens=100_000)
    assert reason in ("stop", "length")
    long = [{"role": "user", "content": "the grass is green " * 60}]
    with pytest.raises(DataError, match=r"too long: got .* Begin a new one with /clear"):
        answer_of(models, loop, "german", long)


def test_a_base_alone_can_be_talked_to(tiny_gpt2_dir, opened):
    models, loop = opened(tiny_gpt2_dir)
    (base,) = loop.run(models.list_models())
    assert loop.run(models.form(base.name)) == "text"
    assert answer_of(models, loop, base.name, max_new_tokens=3)[0]


def test_a_classifier_is_no_partner(adapter_folder):
    with pytest.raises(ConfigError, match="for SEQ_CLS, expected one for CAUSAL_LM"):
        InProcessModels(adapter_folder / "mood")
