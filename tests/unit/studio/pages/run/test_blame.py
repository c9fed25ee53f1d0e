"""The examples behind an answer or the mistakes, on the page of a finished run."""

import asyncio
import json
import threading
from dataclasses import replace

import pytest
from nicegui import ui

from fixtures.run_folders import write_run
from lorakit.errors import ConfigError, StoppedError
from lorakit.runs.blame_answer import BlameAnswer, BlamedExample
from lorakit.studio.pages.run import blame

pytestmark = pytest.mark.anyio

FOUND = BlameAnswer(
    heading="The 1 examples that made the mistakes worst, of 8",
    notes=("Looking at the 2 mistakes among 4 validation examples.",),
    columns=("text", "label"),
    examples=(BlamedExample(0.25, "train.csv:7", ("<b>fine</b>", "bad")),),
)


@pytest.fixture
def asked(monkeypatch):
    """The questions that the page has asked, which are answered here."""
    questions = []

    class Here:
        answer = FOUND

        def __init__(self, directory, function, run, answer, **options):
            questions.append((run.name, answer, options))
            self.is_cancelled = threading.Event()

        def result(self, told):
            told("Computing the gradients of 8 training examples", 0.5)
            if isinstance(self.answer, Exception):
                raise self.answer
            if self.answer is None:
                self.is_cancelled.wait(30)
                raise StoppedError("Cancelled: nothing was changed.")
            return self.answer

        def cancel(self):
            self.is_cancelled.set()

    monkeypatch.setattr(blame, "Computation", Here)
    monkeypatch.setattr(blame, "_answers", {})
    questions.append(Here)
    return questions


@pytest.fixture
async def page(user, studio, asked):
    """The page of a finished run."""
    run = write_run(studio.root / "run", is_finished=True)
    (run / "predictions.jsonl").write_text(json.dumps({"text": "a", "prediction": "b"}) + "\n")
    await user.open("/run/run")
    return user


def field(user, label):
    (found,) = (e for e in user.find(kind=ui.textarea).elements if e.props["label"] == label)
    return found


async def test_the_examples_behind_the_mistakes_are_listed_and_stay(page, asked):
    page.find("Behind the mistakes").click()
    await page.should_see("train.csv:7", retries=50)
    for text in (FOUND.heading, *FOUND.notes, "<b>fine</b>", "+25.00%"):
        await page.should_see(text)
    await page.should_see("lorakit blame run --mistakes")
    assert asked[1:] == [("run", None, {"prompt": None, "label": None})]
    await page.open("/run/run")  # a reload
    await page.should_see("train.csv:7")
    assert len(asked) == 2


async def test_places_begin_at_the_folder(page, asked, studio):
    (example,) = FOUND.examples
    there = replace(example, place=f"{studio.root}/data/train.csv:7")
    asked[0].answer = replace(FOUND, examples=(there,))
    page.find("Behind the mistakes").click()
    await page.should_see("data/train.csv:7", retries=50)
    await page.should_not_see(f"{studio.root}/data")


async def test_a_text_and_its_label_are_asked_about(page, asked):
    button = next(iter(page.find("Behind this label").elements))
    assert not button.enabled
    field(page, "A text to classify").value = "a fine film"
    field(page, "Its label (empty: what the adapter says)").value = "bad"
    assert button.enabled
    page.find("Behind this label").click()
    await page.should_see("lorakit blame run 'a fine film' --label bad", retries=50)
    assert asked[1:] == [("run", "a fine film", {"prompt": None, "label": "bad"})]


async def test_an_error_is_the_sentence_of_the_command_line(page, asked):
    asked[0].answer = ConfigError("There are no mistakes to look at: got a run without any.")
    page.find("Behind the mistakes").click()
    await page.should_see("There are no mistakes to look at", retries=50)
    await page.should_not_see("train.csv:7")


async def test_it_shows_what_it_does_and_can_be_cancelled(page, asked):
    asked[0].answer = None
    page.find("Behind the mistakes").click()
    await page.should_see("Computing the gradients of 8 training examples …", retries=50)
    page.find("Cancel").click()
    await page.should_see("Cancelled.", retries=50)


async def test_an_answer_needs_what_it_answers_where_a_model_writes(user, studio, asked):
    recipe = "model: b\ntask: CAUSAL_LM\ndata: {train: a.jsonl}\noutput: out\n"
    write_run(studio.root / "run", recipe=recipe, is_finished=True)
    await user.open("/run/run")
    field(user, "What it answers").value = "How long?"
    field(user, "An answer").value = "Nine minutes."
    user.find("Behind this answer").click()
    await user.should_see("lorakit blame run 'Nine minutes.' --prompt 'How long?'", retries=50)


async def test_another_adapter_and_a_run_that_goes_on_have_no_old_answer(page, studio, asked):
    page.find("Behind the mistakes").click()
    await page.should_see("train.csv:7", retries=50)
    (studio.root / "run" / "adapter" / "new").touch()
    await page.open("/run/run")
    await page.should_not_see("train.csv:7")
    (studio.root / "run" / "report.md").unlink()
    await asyncio.sleep(0.1)
    await page.open("/run/run")
    await page.should_not_see("Behind the mistakes")
