"""Tests that are compiled once for all workers.

pytest rewrites the assertions of each test file before it compiles the file, which takes the
workers of a new clone seconds each. The process that starts them does it while the libraries are
imported.
"""

import sys
from pathlib import Path

from _pytest.assertion import rewrite


def rewrite_tests(config) -> None:
    """Write the compiled files that are missing beside the tests, as pytest would."""
    if config.getoption("assertmode") != "rewrite" or sys.dont_write_bytecode:
        return
    state = config.stash[rewrite.assertstate_key]
    tests = Path(__file__).parent
    for path in [*tests.rglob("test_*.py"), *tests.rglob("conftest.py")]:
        folder = rewrite.get_cache_dir(path)
        compiled = folder / f"{path.stem}{rewrite.PYC_TAIL}"
        if rewrite.try_makedirs(folder) and rewrite._read_pyc(path, compiled) is None:
            digest, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, digest, compiled)
