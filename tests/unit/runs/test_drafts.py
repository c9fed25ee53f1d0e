"""Drafts of runs."""

from dataclasses import replace

import pytest

from lorakit.errors import DiskError, MissingFileError
from lorakit.runs.drafts import (
    delete_draft,
    load_draft,
    new_draft,
    newer_draft,
    recent_drafts,
    save_draft,
)


def test_a_saved_draft_is_read_back(tmp_path):
    draft = new_draft("model: m\n", step="data")
    saved = save_draft(tmp_path, replace(draft, step="plan", text="model: n\n"))
    assert load_draft(tmp_path, draft.id) == saved
    assert (saved.step, saved.text) == ("plan", "model: n\n") and saved.saved_s > 0
    delete_draft(tmp_path, draft.id)
    delete_draft(tmp_path, "../../x")
    with pytest.raises(MissingFileError, match="Begin a new run"):
        load_draft(tmp_path, draft.id)


def test_a_draft_that_was_saved_elsewhere_is_newer(tmp_path):
    draft = new_draft("model: m\n")
    assert newer_draft(tmp_path, draft) is None
    saved = save_draft(tmp_path, draft)
    assert newer_draft(tmp_path, saved) is None
    assert newer_draft(tmp_path, draft) == saved


@pytest.mark.parametrize("content", ["", "[]", '{"step": "dance"}', '{"text": 7}', "{", "\udce4"])
def test_a_damaged_draft_is_as_none(tmp_path, content):
    draft = save_draft(tmp_path, new_draft("model: m"))
    path = tmp_path / ".lorakit" / "drafts" / f"{draft.id}.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(MissingFileError, match="damaged"):
        load_draft(tmp_path, draft.id)
    assert recent_drafts(tmp_path) == []


@pytest.mark.parametrize("id", ["", "..", "../../../etc/passwd", "0" * 13])
def test_an_id_is_no_path(tmp_path, id):
    with pytest.raises(MissingFileError):
        load_draft(tmp_path, id)


def test_recent_drafts_are_the_newest_that_say_anything(tmp_path):
    save_draft(tmp_path, new_draft())
    saved = [save_draft(tmp_path, new_draft(f"model: m{n}")) for n in range(6)]
    assert recent_drafts(tmp_path) == saved[:0:-1]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_disk(tmp_path):
    (tmp_path / ".lorakit").touch()
    with pytest.raises((DiskError, OSError)):
        save_draft(tmp_path, new_draft())
