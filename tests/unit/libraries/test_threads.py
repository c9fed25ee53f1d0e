import json
import os
import subprocess
import sys

import pytest

from lorakit.libraries import threads


@pytest.fixture
def unset(monkeypatch):
    for name in threads._SETTINGS:
        monkeypatch.setenv(name, "anything")  # so that it is put back whatever happens
        monkeypatch.delenv(name)


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_the_library_says_that_threads_wait_in_a_loop(unset):
    assert "Set GOMP_SPINCOUNT=10000 before torch is imported" in threads.spinning_note()
    threads.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "10000" and threads.spinning_note() is None


@pytest.mark.parametrize("name", threads._SETTINGS)
def test_what_the_user_has_chosen_stays(unset, monkeypatch, name):
    monkeypatch.setenv(name, "active")
    threads.limit_spinning()
    assert {n: os.environ.get(n) for n in threads._SETTINGS} == {
        n: "active" if n == name else None for n in threads._SETTINGS
    }
    assert threads.spinning_note() is None


COMMAND = """
import json, os, sys
from lorakit.cli import main
main.app = lambda: print(json.dumps([os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules]))
main.main()
"""


def test_the_command_sets_it_before_torch_is_loaded():
    environment = {k: v for k, v in os.environ.items() if k not in threads._SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["10000", False]
