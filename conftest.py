"""Settings of all tests: waiting threads, compiled code, garbage, logs; the modules with doctests.

A module whose library is missing is not collected. One that cannot be imported for another reason
is an error and not a skip: its tests would be lost silently.
"""

import gc
import logging
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from _pytest.logging import catching_logs

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

# pytest attaches its handlers to the root of all loggers and to the hundred that do not propagate,
# for which it looks through all of them, six times a test. Those keep the handlers here.
_loggers_seen: dict[logging.Handler, int] = {}


def _attach(self: catching_logs) -> logging.Handler:
    loggers = logging.root.manager.loggerDict
    if _loggers_seen.get(self.handler) != len(loggers):
        _loggers_seen[self.handler] = len(loggers)
        for logger in loggers.values():
            if isinstance(logger, logging.Logger) and not logger.propagate:
                logger.addHandler(self.handler)
    logging.root.addHandler(self.handler)
    self.attached_loggers.append(logging.root)
    return self.handler


_attach_at_level = catching_logs.__enter__
catching_logs.__enter__ = lambda self: (_attach if self.level is None else _attach_at_level)(self)

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
