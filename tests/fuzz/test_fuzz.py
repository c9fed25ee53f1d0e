"""A few cases of fixed seed of every fuzzer; `python -m tests.fuzz` tries many."""

import pytest
from tests.fuzz.all_fuzzers import FUZZERS
from tests.fuzz.frame import try_cases

SEED = 1
CASES = {"adapters": 200}
"""Some six seconds each. The count is fixed, not the time, so that a run can be repeated."""


@pytest.mark.parametrize("name", FUZZERS)
def test_it_is_read_right_or_refused_in_a_sentence(name):
    found = try_cases(FUZZERS[name](), SEED, CASES[name])
    assert not found, "\n\n".join(str(one) for one in found[:5])
