"""What all pages of a process share."""

import pytest

from fixtures.run_folders import made_run
from lorakit.errors import ConfigError, LorakitError
from lorakit.studio import context
from lorakit.studio.context import Studio, current, open_studio


def test_pages_share_one_look_at_the_folder(tmp_path):
    studio = Studio(tmp_path)
    assert studio.runs() == []
    made_run(tmp_path, "a")
    assert studio.runs() == []  # a moment ago
    assert [row.path for row in studio.runs(fresh=True)] == ["a"]
    assert studio.relative(studio.path("a")) == "a"
    with pytest.raises(ConfigError):
        studio.path("..")


def test_a_page_needs_a_studio(tmp_path, monkeypatch):
    monkeypatch.setattr(context, "_opened", [])
    with pytest.raises(LorakitError, match="No studio is open"):
        current()
    open_studio(Studio(tmp_path))
    assert current().root == tmp_path
