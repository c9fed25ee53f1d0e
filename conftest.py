"""What pytest looks for doctests in: not in a module whose library is not there.

A module that cannot be imported for another reason is an error and no skip: the tests in it would
be lost without a word.
"""

from importlib.util import find_spec

# Triton is for Linux only.
collect_ignore = [] if find_spec("triton") else ["src/lorakit/ops/triton_kernels.py"]
