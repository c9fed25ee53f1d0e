"""What pytest looks for doctests in: not in a module whose library is not there.

A module that cannot be imported for another reason is an error and no skip: the tests in it would
be lost without a word.
"""

import os
from importlib.util import find_spec

# As the command line does: the workers of a suite share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Triton is for Linux only.
collect_ignore = [] if find_spec("triton") else ["src/lorakit/ops/triton_kernels.py"]
