"""Settings of all tests: waiting threads, compiled code, garbage; and the modules with doctests.

A module whose library is missing is not collected. One that cannot be imported for another reason
is an error and not a skip: its tests would be lost silently.
"""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from lorakit.libraries.torch_environment import separate_inductor_cache

# The workers of a suite share the cores: a thread that waits leaves them to whatever runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# They compile themselves: processes for it would each import torch, for a few kernels.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

separate_inductor_cache()

# Importing and collecting leaves no garbage, and looking for it among millions of objects takes
# seconds.
gc.disable()

# A server freezes all objects while it runs and unfreezes them at its end. That would bring back
# those of the libraries, and every later search for garbage would take a second.
_freeze, _unfreeze = gc.freeze, gc.unfreeze
gc.freeze = gc.unfreeze = lambda: None

_TESTS = Path(__file__).parent / "tests"

# Triton is for Linux only.
collect_ignore = [] if find_spec("triton") else ["src/lorakit/ops/triton/triton_kernels.py"]


def pytest_ignore_collect(collection_path):
    """Pass over the sources without examples; pytest would search each docstring of hundreds."""
    is_source = collection_path.suffix == ".py" and not collection_path.is_relative_to(_TESTS)
    if is_source and ">>> " not in collection_path.read_text(encoding="utf-8"):
        return True
    return None


def pytest_collection_finish():
    """Collect garbage from here on."""
    gc.enable()


def pytest_unconfigure():
    """Let pytest's last search for garbage be a quick one."""
    _freeze()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Hide what exists before a file of tests from the garbage collector.

    Libraries, tests and what a session shares are millions of objects that live until the end. The
    Trainer, for one, runs a full collection before each training, which would look through them.
    """
    gc.collect()
    _freeze()


@pytest.fixture
def freezing(monkeypatch):
    """Let a server freeze and unfreeze all objects, as it does outside of tests."""
    monkeypatch.setattr(gc, "freeze", _freeze)
    monkeypatch.setattr(gc, "unfreeze", _unfreeze)
    yield
    _freeze()
