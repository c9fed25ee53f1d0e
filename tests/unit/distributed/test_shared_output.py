"""All processes see one run directory."""

import pytest

from lorakit.distributed import shared_output
from lorakit.distributed.shared_output import require_shared_directory
from lorakit.errors import MissingFileError


@pytest.fixture
def another(monkeypatch):
    """Calls functions as a second process, while the marker is there."""
    seen = []

    def run_on_all(function):
        for call in seen:
            call()
        return function()

    monkeypatch.setattr(shared_output, "process_count", lambda: 2)
    monkeypatch.setattr(shared_output, "run_on_main", lambda function: function())
    monkeypatch.setattr(shared_output, "run_on_all", run_on_all)
    monkeypatch.setattr(shared_output, "_TIMEOUT_S", 0)
    return seen


def test_a_marker_is_seen_by_all_and_removed(another, tmp_path):
    another.append(lambda: found.extend(path.name for path in tmp_path.iterdir()))
    found: list[str] = []
    require_shared_directory(tmp_path)
    assert len(found) == 1 and found[0].startswith(".seen-by-all-")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_sees_another_directory_is_named(another, tmp_path):
    another.append(lambda: [path.unlink() for path in tmp_path.iterdir()])
    with pytest.raises(MissingFileError) as caught:
        require_shared_directory(tmp_path)
    assert str(caught.value).startswith("Process 0 on ")
    assert f"does not see the run directory {tmp_path} that the main process" in str(caught.value)


def test_one_process_writes_nothing(tmp_path):
    require_shared_directory(tmp_path / "absent")
