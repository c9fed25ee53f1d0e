import json
import os
import subprocess
import sys

import pytest

from lorakit.libraries import torch_environment


@pytest.fixture
def unset_threads(monkeypatch):
    for name in torch_environment._SETTINGS:
        monkeypatch.setenv(name, "anything")  # so that it is put back whatever happens
        monkeypatch.delenv(name)


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_the_library_says_that_threads_wait_in_a_loop(unset_threads):
    assert "Set GOMP_SPINCOUNT=10000 before torch is imported" in torch_environment.spinning_note()
    torch_environment.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "10000" and torch_environment.spinning_note() is None


@pytest.mark.parametrize("name", torch_environment._SETTINGS)
def test_what_the_user_has_chosen_stays(unset_threads, monkeypatch, name):
    monkeypatch.setenv(name, "active")
    torch_environment.limit_spinning()
    assert {n: os.environ.get(n) for n in torch_environment._SETTINGS} == {
        n: "active" if n == name else None for n in torch_environment._SETTINGS
    }
    assert torch_environment.spinning_note() is None


COMMAND = """
import json, os, sys
from lorakit.cli import main
main.app = lambda: print(json.dumps([os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules]))
main.main()
"""


def test_the_command_sets_it_before_torch_is_loaded():
    environment = {k: v for k, v in os.environ.items() if k not in torch_environment._SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["10000", False]


@pytest.fixture
def unset_inductor(monkeypatch):
    for name in ("ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "anything")  # so that it is put back whatever happens
        monkeypatch.delenv(name)


def test_each_named_instruction_set_has_a_directory(unset_inductor, monkeypatch):
    directories = set()
    for capability in ("avx2", "default"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        torch_environment.separate_inductor_cache()
        directories.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(directories) == 2


def test_without_a_named_set_torch_s_directory_stays(unset_inductor):
    torch_environment.separate_inductor_cache()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_the_user_s_directory_stays(unset_inductor, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    torch_environment.separate_inductor_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
