"""How threads wait and what the garbage collector sees in all tests; which modules have doctests.

A module whose library is missing has none. One that cannot be imported for another reason is an
error and no skip: the tests in it would be lost without a word.
"""

import gc
import os
from importlib.util import find_spec

import pytest

# The workers of a suite share the cores: a thread that waits leaves them to whatever runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Triton is for Linux only.
collect_ignore = [] if find_spec("triton") else ["src/lorakit/ops/triton_kernels.py"]


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Take what lives when a file of tests begins out of the garbage collector's sight.

    Libraries, tests and what a session shares are millions of objects that live until the end. The
    Trainer, for one, runs a full collection before each training, which would look through them.
    """
    gc.collect()
    gc.freeze()
