"""The progress of a run, on a terminal and in a file."""

import io
from contextlib import contextmanager

import pytest
from rich.console import Console

from lorakit.cli.views import progress
from lorakit.cli.views.progress import TrainingProgress, showing_data_progress
from lorakit.config import TaskType
from lorakit.data.progress import report_progress


@contextmanager
def progress_view():
    view = TrainingProgress()
    yield view
    view.stop()


def step(number, *, logged=True, loss=1.25):
    return {
        "step": number,
        "max_steps": 20,
        "epoch": number / 10,
        "logged": logged,
        "loss": loss,
        "learning_rate": 2e-4,
    }


def test_elsewhere_than_on_a_terminal_every_logged_step_is_a_line(capsys):
    with progress_view() as view:
        view.step(step(1, logged=False, loss=None))
        view.step(step(2))
        view.step(step(3, logged=False))
        view.evaluation({"step": 10, "epoch": 1.0, "metrics": {"eval_loss": 0.5, "eval_f1": 0.25}})
        view.step(step(20))
    first, evaluation, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 2/20  epoch 0.20  loss 1.2500  lr 2.0e-04  left ")
    assert evaluation == "after epoch 1: loss 0.5, f1 0.25"
    assert last == "step 20/20  epoch 2.00  loss 1.2500  lr 2.0e-04"


def test_averages_over_classes_are_called_as_in_the_report(capsys):
    metrics = {"eval_loss": 0.5, "eval_precision": 0.5, "eval_recall": 0.5, "eval_f1": 0.25}
    with progress_view() as view:
        for task, labels in (("SEQ_CLS", ("a", "b")), ("TOKEN_CLS", ("O", "B-PER"))):
            view.name_metrics(TaskType(task), labels)
            view.evaluation({"step": 10, "epoch": 1.0, "metrics": metrics})
    assert capsys.readouterr().out.splitlines() == [
        "after epoch 1: loss 0.5, macro precision 0.5, macro recall 0.5, macro f1 0.25",
        "after epoch 1: loss 0.5, precision 0.5, recall 0.5, f1 0.25",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_there_is_one_bar_that_fits(width, monkeypatch):
    screen = io.StringIO()
    terminal = Console(
        file=screen, width=width, force_terminal=True, no_color=True, highlight=False
    )
    monkeypatch.setattr(progress, "console", lambda: terminal)
    with progress_view() as view:
        for number in range(1, 21):
            view.step(step(number))
        view.evaluation({"step": 20, "epoch": 2.0, "metrics": {"eval_loss": 0.5}})
    text = screen.getvalue()
    assert "20/20" in text
    assert "after epoch 2: loss 0.5" in text
    assert width < 80 or "loss 1.2500" in text
    assert "step 2/20" not in text


def test_work_on_large_data_is_shown_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with showing_data_progress():
        for done in (0, 1000, 2000):
            report_progress("Reading a.csv", done, 2000, "bytes")
        report_progress("Tokenizing", 5000, 10_000)
    report_progress("Tokenizing", 10_000, 10_000)

    assert capsys.readouterr() == (
        "",
        "0 of 2,000 bytes (Reading a.csv)\n1,000 of 2,000 bytes (Reading a.csv)\n"
        "2,000 of 2,000 bytes (Reading a.csv)\n5,000 of 10,000 examples (Tokenizing)\n",
    )


def test_work_on_large_data_has_a_bar_on_a_terminal(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda stderr: screen)
    with showing_data_progress():
        for done in (0, 10_000):
            report_progress("Tokenizing", done, 10_000)

    shown = screen.file.getvalue()
    assert "10000/10000" in shown and "examples (Tokenizing)" in shown
