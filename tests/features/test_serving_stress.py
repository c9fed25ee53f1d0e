"""The server under stress: many adapters, cancellations, rewritten adapters, scarce memory."""

import pytest
from benchmarks.serving_stress import StressPlan, stress

_MOST_TIES = 1e-3
_LOGPROB_ERROR = 1e-4


@pytest.mark.slow("hundreds of requests to many adapters, of which some are rewritten")
def test_every_answer_is_that_of_the_request_alone_with_its_adapter_alone():
    report = stress(StressPlan(requests=200))
    assert report.differences == []
    assert report.ties <= _MOST_TIES * report.tokens
    assert report.logprob_error < _LOGPROB_ERROR
    assert report.left == 0
    assert report.counted["refusals"] == 0
    # The stress was one: each way to end and each mechanism had its turn.
    assert all(report.ends[end] for end in ("stop", "length", "cancelled", "abandoned")), report
    assert report.rewrites and report.across_rewrites, report
    mechanisms = ("preemptions", "cached tokens", "evictions")
    assert all(report.counted[what] for what in mechanisms), report
