"""The names of data in a recipe."""

from pathlib import Path

import pytest

from lorakit.errors import DataError
from lorakit.recipes.data_names import is_local, require_known_ending


def test_paths_are_told_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    local = ("a.csv", "./a", "~/a", "/a", "a/b/c", "here", "here/missing")
    assert all(map(is_local, local))
    assert not any(map(is_local, ("glue", "owner/name")))


@pytest.mark.parametrize(("name", "step"), [("a.csv.gz", "Unpack"), ("a.xls", "Convert")])
def test_an_unknown_ending_is_refused_with_the_next_step(name, step):
    require_known_ending(Path("A.CSV"), "data.train")
    with pytest.raises(DataError, match=rf"Could not read data\.train: .* {step} the file"):
        require_known_ending(Path(name), "data.train")
