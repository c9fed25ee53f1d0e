"""The progress of work on data."""

from lorakit.data.progress import Progress, report_progress, reporting_progress


def test_progress_goes_to_the_innermost_listener_or_nowhere():
    report_progress("Reading", 1, 2, "bytes")
    outer, inner = [], []
    with reporting_progress(outer.append):
        with reporting_progress(inner.append):
            report_progress("Reading", 1, 2, "bytes")
        report_progress("Tokenizing", 2, 2)

    assert inner == [Progress("Reading", 1, 2, "bytes")]
    assert outer == [Progress("Tokenizing", 2, 2, "examples")]
