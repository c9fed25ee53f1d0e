import json
import os

import pytest

from lorakit.errors import DiskError
from lorakit.serving.http.access_log import AccessLog


def test_each_request_is_one_line_of_json(tmp_path):
    log = AccessLog(tmp_path / "access.jsonl")
    log.add(id="1", model="m\nn", user=None)
    log.add(id="2")
    log.close()
    first, second = map(json.loads, (tmp_path / "access.jsonl").read_text().splitlines())
    assert first["model"] == "m\nn" and "user" not in first and first["time"].endswith("+00:00")
    assert second["id"] == "2"


def test_a_log_is_continued(tmp_path):
    for number in range(2):
        log = AccessLog(tmp_path / "access.jsonl")
        log.add(id=str(number))
        log.close()
    assert len((tmp_path / "access.jsonl").read_text().splitlines()) == 2


def test_without_a_place_nothing_is_kept_and_nothing_runs():
    log = AccessLog()
    log.add(id="1")
    log.close()
    assert log.lost == 0


def test_a_file_that_cannot_be_opened_is_told_at_the_start(tmp_path):
    with pytest.raises(DiskError, match=r"cannot be written to .*: No such file"):
        AccessLog(tmp_path / "gone" / "access.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux' device that is full")
def test_a_full_disk_loses_lines_and_nothing_else(tmp_path, caplog):
    place = tmp_path / "access.jsonl"
    place.symlink_to("/dev/full")
    log = AccessLog(place)
    for number in range(3):
        log.add(id=str(number))
    while log.lost < 3:
        pass
    place.unlink()  # there is space again
    log.add(id="last")  # still goes to the full device
    log.add(id="after")
    log.close()
    assert caplog.text.count("loses lines") == 1
    assert json.loads(place.read_text().splitlines()[-1])["id"] == "after"
