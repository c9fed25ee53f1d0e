"""What pytest looks for doctests in: not in a module whose library is not there.

A module that cannot be imported for another reason is an error and no skip: the tests in it would
be lost without a word.
"""

import gc
import os
from importlib.util import find_spec

# The workers of a suite share the cores: a thread that waits leaves them to whatever runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Triton is for Linux only.
collect_ignore = [] if find_spec("triton") else ["src/lorakit/ops/triton_kernels.py"]


def pytest_collection_finish() -> None:
    """Take what is loaded by now out of the garbage collector's sight.

    The libraries and the tests are millions of objects that live until the end. The Trainer, for
    one, runs a full collection before each training, which looks through all of them.
    """
    gc.collect()
    gc.freeze()
