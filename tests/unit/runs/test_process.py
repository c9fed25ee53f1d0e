"""Stopping a run, whoever started it."""

import signal
import subprocess
import sys

import pytest

from fixtures.run_folders import locked_by, made_run
from lorakit.errors import ConfigError
from lorakit.runs.process import stop_run


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_run_of_a_terminal_is_stopped_too(tmp_path, sleeper):
    locked_by(made_run(tmp_path, "run"), sleeper.pid)
    stop_run(tmp_path, "run")
    assert sleeper.wait(20) == -signal.SIGTERM


def test_a_process_that_got_the_id_of_the_run_is_left_alone(tmp_path, sleeper):
    path = made_run(tmp_path, "run")
    locked_by(path, sleeper.pid, identity="an earlier process")
    with pytest.raises(ConfigError, match="Cannot stop 'run': it is not running"):
        stop_run(tmp_path, "run")
    assert sleeper.poll() is None


def test_a_run_elsewhere_and_none_are_refused(tmp_path):
    locked_by(made_run(tmp_path, "run"), 77, host="far")
    with pytest.raises(ConfigError, match=r"it runs on 'far'.*Stop it there with: kill 77"):
        stop_run(tmp_path, "run")
    with pytest.raises(ConfigError, match="it is not running"):
        stop_run(tmp_path, "gone")
    with pytest.raises(ConfigError, match=r"leads out of that folder|not running"):
        stop_run(tmp_path, "..")
