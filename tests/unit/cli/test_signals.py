"""What a signal does at each moment: end at once, ask a run to stop, or raise for Ray's sake."""

import os
import signal
import subprocess
import sys

import pytest

from lorakit.cli import signals
from lorakit.files import atomic
from lorakit.training.stop_request import StopRequest


class Left(BaseException):
    """Raised instead of leaving the process."""


@pytest.fixture
def ending(monkeypatch):
    """Signals as the command line takes them, with an exit that can be seen."""

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in taken}
    made = signals.Ending()
    made.install()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "line", "code"),
    [
        (signal.SIGINT, "Interrupted.", 130),
        (signal.SIGTERM, "Terminated.", 143),
        (signal.SIGHUP, "The terminal has closed.", 129),
    ],
)
def test_it_ends_at_once_with_a_line_and_nothing_half_written(
    ending, tmp_path, capfd, number, line, code
):
    with pytest.raises(Left) as left, atomic.creating_directory(tmp_path / "new") as partial:
        (partial / "file").write_text("half")
        try:
            signal.raise_signal(number)
        finally:
            assert list(tmp_path.iterdir()) == []
    assert left.value.args == (code,)
    assert capfd.readouterr().err == f"{line}\n"


def test_a_run_is_asked_first_and_ended_by_the_second(ending, capfd):
    stop = StopRequest()
    with ending.ending_with(lambda: "Go on with: this.", stop), stop.observing():
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(Left) as left:
            signal.raise_signal(signal.SIGINT)
    assert left.value.args == (143,)  # for the reason that came first
    assert capfd.readouterr().err.splitlines() == [
        "Stopping after this step, or at the end of the run if it was the last; a second signal "
        "ends immediately.",
        "Terminated. Go on with: this.",
    ]


def test_a_launcher_hands_the_same_signal_on(ending, capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop = StopRequest()
    with ending.ending_with(signals.no_last_words, stop), stop.observing():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(signals, "_SAME_S", 0.0)
        with pytest.raises(Left):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "Interrupted.\n"


def test_where_ray_has_to_be_ended_it_raises_once(ending):
    with ending.raising_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert ending.exit_code() == 143
        with pytest.raises(Left):
            signal.raise_signal(signal.SIGTERM)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signals.Ending().install()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# The moment is when the command has begun to import torch.
AT_IMPORT = """
import importlib.abc, os, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["lorakit", "merge", "nothing", "nowhere"]
from lorakit.__main__ import main
main()
"""


def test_it_ends_without_a_traceback_while_libraries_are_imported(tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "adapter_config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_in_a_chat_each_interrupt_raises_and_other_signals_end(ending):
    with ending.repeating_interrupt():
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(Left) as left:
            signal.raise_signal(signal.SIGTERM)
    assert left.value.args == (143,)
