"""Tests in forks of the process that collected them: what fails, what crashes, what comes after."""

from forked import run

TESTS = """
import os, pytest

@pytest.fixture(scope="module")
def shared():
    yield os.getpid()
    print("the end of a file")

def test_passes(shared, tmp_path):
    assert shared == os.getpid() != os.getppid()

def test_fails(shared):
    print("what it printed")
    assert shared == 0

def test_is_killed():
    os.kill(os.getpid(), 9)

def test_after():
    pass

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass
"""

# The server of forks would import all libraries, which these tests do not use.
PYTEST = """
import sys

import pytest

from forked import fork_server

fork_server.set_forkserver_preload([])
sys.exit(pytest.main(["-p", "forked_workers", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def outcome(tmp_path, *options):
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    settings = ("--rootdir", tmp_path, "--basetemp", tmp_path / "temporary")
    return run(PYTEST, *settings, "-rs", *options, tmp_path)


def test_every_test_is_reported_once_and_a_crash_is_a_failure(tmp_path):
    ended = outcome(tmp_path, "--forks", 2)
    assert ended.returncode == 1
    assert "4 failed, 4 passed, 2 skipped" in ended.stdout
    assert ended.stdout.count("not today") == 2
    assert ended.stdout.count("what it printed") == 4  # as code and as output
    for name in ("one", "two"):
        crash = f"The worker that ran test_{name}.py::test_is_killed ended with exit code -9."
        assert crash in ended.stdout


def test_the_first_failure_ends_all_workers(tmp_path):
    ended = outcome(tmp_path, "--forks", 2, "-x")
    assert ended.returncode == 1
    assert "stopping after 1 failures" in ended.stdout
    assert "killed" not in ended.stdout.replace("test_is_killed", "")
