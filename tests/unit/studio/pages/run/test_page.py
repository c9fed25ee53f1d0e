"""A run's page: what it shows of the files, and that it stays true to them."""

import asyncio
import json
import os

import pytest
from nicegui import ui

from fixtures.run_folders import append, locked_by, step_row, write_run
from lorakit.errors import TrainingError
from lorakit.recipes.run_directory import RunDirectory
from lorakit.runs import queue
from lorakit.runs.jobs import JobFolder
from lorakit.studio.charts import LineChart
from lorakit.studio.pages.run import progress

pytestmark = pytest.mark.anyio


@pytest.fixture
def sent(monkeypatch):
    """The messages to the charts of the page, as the browser would get them."""
    messages = []
    send = LineChart._send
    monkeypatch.setattr(
        LineChart,
        "_send",
        lambda chart, message: messages.append((chart, message)) or send(chart, message),
    )
    return messages


def points(messages, name):
    """Return the points of a line after all messages."""
    held = []
    for _, message in messages:
        for line in message.get("lines", ()):
            if line["name"] == name:
                held[line["kept"] :] = line["points"]
    return held


async def test_a_running_run_is_shown_whole_and_goes_on(user, studio, sent):
    run = write_run(studio.root / "a b", 20)
    await user.open("/run/a b")
    await user.should_see("Learning rate")
    await user.should_see("Peak memory (GB)")
    assert points(sent, "training")[0] == (1, 2.0)
    assert len(points(sent, "training")) == 20
    append(run, step_row(21, 9.0))
    await asyncio.sleep(1.2)
    assert points(sent, "training")[-1] == (21, 9.0)


async def test_labels_and_names_are_texts(user, studio, sent):
    write_run(studio.root / "run", 20, is_finished=True)
    await user.open("/run/run")
    await user.should_see("base/<b>m</b>")
    assert points(sent, "<script>x</script>")
    assert points(sent, "😀")


async def test_a_report_has_no_html_of_its_own(user, studio):
    write_run(studio.root / "run", is_finished=True)
    await user.open("/run/run")
    (report,) = user.find(ui.html).elements
    html = report.content
    assert "<strong>Good.</strong>" in html
    assert "<td" in html
    for tag in ("<script", "<img", "javascript:"):
        assert tag not in html


async def test_a_damaged_run_says_which_file_is_wrong(user, studio):
    run = write_run(studio.root / "run", is_finished=True)
    (run / "recipe.yaml").write_text("model: [\n")
    (run / "environment.json").write_text("{")
    (run / "adapter" / "adapter_config.json").unlink()
    append(run, [])
    (run / "predictions.jsonl").write_text("{}\n")
    await user.open("/run/run")
    for name in (
        "recipe.yaml",
        "environment.json",
        "adapter",
        "metrics.jsonl",
        "predictions.jsonl",
    ):
        await user.should_see(str(run / name))
    await user.should_see("Loss")


async def test_a_folder_that_is_no_run_says_so(user, studio):
    (studio.root / "empty").mkdir()
    await user.open("/run/empty")
    await user.should_see("there is no recipe.yaml in it")


@pytest.mark.parametrize("path", ["%2e%2e/outside", "link", "missing", "%00"])
async def test_a_path_outside_or_of_nothing_is_refused(user, studio, tmp_path, path):
    studio.root.joinpath("link").symlink_to("/")
    await user.open(f"/run/{path}")
    await user.should_see("Cannot open" if path != "missing" else "Nothing at 'missing'")
    await user.should_not_see("Learning rate")


async def test_examples_right_and_wrong_are_texts(user, studio):
    run = write_run(studio.root / "run", is_finished=True)
    rows = [
        {
            "text": "<script>alert(1)</script>",
            "expected": "😀",
            "prediction": "<b>",
            "probability": 0.9,
        },
        {"text": "good", "expected": "😀", "prediction": "😀", "base_prediction": "<b>"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "predictions.jsonl").write_text(text, encoding="utf-8")
    await user.open("/run/run")
    await user.should_see("<script>alert(1)</script>")
    await user.should_see("1 of 2 validation examples are right")
    await user.should_see("Base against adapter")
    await user.should_see("Confusion matrix")


async def test_the_verdict_stands_at_the_top_until_the_run_goes_on(user, studio):
    run = write_run(studio.root / "run", is_finished=True)
    file = run / "verdict.json"
    file.write_text('{"sentence": "Better than <b>guessing</b>.", "outcome": "better"}')
    await user.open("/run/run")
    await user.should_see("Better than <b>guessing</b>.")
    file.unlink()
    await asyncio.sleep(1.2)
    await user.should_not_see("Better than")


async def test_a_new_report_appears_while_the_page_is_open(user, studio):
    run = write_run(studio.root / "run")
    await user.open("/run/run")
    await user.should_not_see("Report")
    write_run(run, is_finished=True)
    await asyncio.sleep(1.2)
    await user.should_see("Report")


async def test_the_output_is_shown_without_codes_of_a_terminal(user, studio):
    write_run(studio.root / "run")
    job = JobFolder(studio.root).create(["train"], "run", studio.root, {})
    job.log_file.write_bytes(b"\x1b[31m10%\r100%\x1b[0m\n\x07<script>\n")
    await user.open("/run/run")
    await user.should_see("100%\n\\x07<script>\n")


async def test_a_run_that_waits_has_a_page(user, studio):
    about = {"task": "SEQ_CLS", "model": "base"}
    JobFolder(studio.root).create(["train"], "later", studio.root, about)
    await user.open("/run/later")
    await user.should_see("queued")
    await user.should_see("base")
    await user.should_see("Remove from the queue")
    user.find("Remove from the queue").click()
    await asyncio.sleep(0.5)
    assert JobFolder(studio.root).all() == []


async def test_an_interrupted_run_is_resumed(user, studio, monkeypatch):
    write_run(studio.root / "run")
    started = []
    monkeypatch.setattr(queue, "start_supervisor", lambda job, root: started.append(job.words))
    await user.open("/run/run")
    await user.should_see("interrupted")
    user.find("Resume").click()
    await asyncio.sleep(0.5)
    assert started == [("train", str(studio.root / "run" / "recipe.yaml"), "--resume")]


async def test_a_running_run_is_stopped_by_its_process(user, studio, monkeypatch):
    locked_by(write_run(studio.root / "run"), os.getpid())
    stopped = []
    monkeypatch.setattr(progress, "stop_run", lambda root, path: stopped.append((root, path)))
    await user.open("/run/run")
    await user.should_see("running")
    user.find("Stop").click()
    await asyncio.sleep(0.5)
    assert stopped == [(studio.root, "run")]


async def test_a_run_that_has_just_ended_cannot_be_stopped(user, studio):
    run = write_run(studio.root / "run")
    locked_by(run, os.getpid())
    await user.open("/run/run")
    (run / ".lock").unlink()
    user.find("Stop").click()
    await user.should_see("it is not running")


async def test_a_failed_run_says_why(user, studio):
    run = write_run(studio.root / "run")
    RunDirectory(run).write_failure(TrainingError("The loss is <b>NaN</b>."))
    await user.open("/run/run")
    await user.should_see("The loss is <b>NaN</b>.")


async def test_a_damaged_run_says_why(user, studio):
    write_run(studio.root / "a", recipe="model: m\ntask: none\ndata: {}\noutput: a\n")
    await user.open("/run/a")
    await user.should_see("damaged")
    await user.should_see("got task 'none', expected the recipe that lorakit wrote")
