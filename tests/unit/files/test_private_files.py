import os
from pathlib import Path

import pytest

from lorakit.files import private_files
from lorakit.files.private_files import is_private

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no user ids")


@pytest.fixture
def place(tmp_path):
    """A file in two directories that nobody else may write to."""
    path = tmp_path / "outer" / "inner" / "file"
    path.parent.mkdir(parents=True)
    path.touch()
    for directory in (path.parent, path.parent.parent):
        directory.chmod(0o755)
    path.chmod(0o644)
    return path


def test_what_others_can_only_read_is_private(place):
    assert is_private(place) and is_private(place.parent)


@pytest.mark.parametrize("up", [0, 1, 2], ids=["the file", "its directory", "the one above"])
@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_what_others_can_write_or_rename_is_not(place, up, mode):
    [place, *place.parents][up].chmod(mode)
    assert not is_private(place)


def test_a_sticky_directory_protects_what_is_in_it(place):
    place.parent.parent.chmod(0o1777)
    assert is_private(place)
    assert not is_private(place.parent.parent)  # but it is not private itself


def test_a_group_may_write_only_where_it_is_the_user_s_own(place, monkeypatch):
    place.parent.chmod(0o775)
    monkeypatch.setattr(private_files, "_is_group_of_one", lambda group_id: True)
    assert is_private(place)
    monkeypatch.setattr(private_files, "_is_group_of_one", lambda group_id: False)
    assert not is_private(place)


def test_another_owner(place, monkeypatch):
    owner = os.lstat(place).st_uid
    monkeypatch.setattr(private_files.os, "getuid", lambda: owner + 1)
    assert not is_private(place)


def test_a_link_counts_as_what_it_points_to(place, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(place)
    assert is_private(link)
    place.chmod(0o666)
    assert not is_private(link)


def test_a_relative_path(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    assert is_private(Path("file"))
