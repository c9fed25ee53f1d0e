"""Commands that a launcher has started several times."""

import pytest

from lorakit.cli.launched import is_first, is_launched_in_parallel, should_print_error


@pytest.mark.parametrize(
    ("world", "rank", "parallel", "first"),
    [
        (None, None, False, True),
        ("1", "0", False, True),
        ("1", "3", False, True),  # left over from an outer launcher
        ("2", "0", True, True),
        ("2", None, True, True),
        ("2", "1", True, False),
    ],
)
def test_one_process_prints(monkeypatch, world, rank, parallel, first):
    for name, value in (("WORLD_SIZE", world), ("RANK", rank)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert (is_launched_in_parallel(), is_first()) == (parallel, first)
    # The processes have not met here, so that the first one prints.
    assert should_print_error(ValueError()) == first


def test_processes_that_have_met_agree_on_who_prints(monkeypatch):
    processes = "lorakit.distributed.processes"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(f"{processes}.process_count", lambda: 2)
    error = ValueError()
    monkeypatch.setattr(f"{processes}.should_report_error", lambda given: given is error)
    assert should_print_error(error) and not should_print_error(ValueError())
