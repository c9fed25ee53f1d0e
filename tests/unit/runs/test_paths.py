"""One function decides what is below the folder of runs, another walks a folder."""

import os

import pytest

from lorakit.errors import ConfigError, MissingFileError, OutputExistsError
from lorakit.runs import paths
from lorakit.runs.paths import new_path, resolve, visible_folders


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "inside").symlink_to(root / "a")
    (root / "outside").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    return root


def test_what_is_below_is_found(root):
    assert resolve(root, "a/b") == root / "a" / "b"
    assert resolve(root, "inside/b") == root / "a" / "b"
    assert resolve(root, "") == root


@pytest.mark.parametrize("path", ["..", "a/../..", "outside", "outside/root", "/etc/passwd", "/"])
def test_what_is_not_below_is_refused(root, path):
    if path == "outside/root":  # comes back into the folder
        assert resolve(root, path) == root
        return
    with pytest.raises(ConfigError, match="it leads out of that folder"):
        resolve(root, path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "circle/a"])
def test_a_path_that_is_none_is_refused(root, path):
    with pytest.raises((ConfigError, MissingFileError)) as caught:
        resolve(root, path)
    assert "\0" not in str(caught.value)


def test_a_path_that_leads_nowhere_is_missing(root):
    with pytest.raises(MissingFileError, match="Nothing at 'gone\\\\x1b'"):
        resolve(root, "gone\x1b")


def test_hidden_folders_links_and_checkpoints_are_not_entered(tmp_path):
    for name in ("a/b", ".hidden", "run/checkpoint-3", "node_modules", "1/2/3/4/5/6/7"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "z.csv").touch()
    (tmp_path / "a" / "y.csv").touch()
    found = {str(path.relative_to(tmp_path)): names for path, names in visible_folders(tmp_path)}
    assert set(found) == {
        *(".", "a", "a/b", "run"),
        *("1", "1/2", "1/2/3", "1/2/3/4", "1/2/3/4/5", "1/2/3/4/5/6"),
    }
    assert found["a"] == ["y.csv", "z.csv"]


def test_a_walk_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_MOST_FOLDERS", 3)
    for n in range(9):
        (tmp_path / str(n)).mkdir()
    assert len(list(visible_folders(tmp_path))) == 3


def test_names_that_are_not_utf8_are_left_out(root):
    strange = os.fsdecode(b"caf\xe9")
    (root / strange).mkdir()
    (root / f"{strange}.csv").touch()
    (root / "fine.csv").touch()
    found = dict(visible_folders(root))
    assert "fine.csv" in found[root] and f"{strange}.csv" not in found[root]
    assert root / strange not in found


# ---- new files ----


def test_a_new_path_is_below_the_folder(tmp_path):
    assert new_path(tmp_path, " merged/german ") == tmp_path.resolve() / "merged" / "german"
    (tmp_path / "merged").mkdir()
    assert new_path(tmp_path, "merged/größe 你") == tmp_path.resolve() / "merged" / "größe 你"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/../../x",
        "/etc/x",
        "a/.hidden",
        "a\nb",
        "a\\b",
        "x" * 201,
        "~/..",
    ],
)
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="Cannot write to"):
        new_path(tmp_path, name)


def test_links_and_files_on_the_way_are_refused(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "file").touch()
    with pytest.raises(ConfigError, match="leads out of that folder"):
        new_path(root, "out/x")
    with pytest.raises(ConfigError, match="file is a file, expected a directory"):
        new_path(root, "file/x")
    for name in ("file", "out"):
        with pytest.raises(OutputExistsError, match="it exists already"):
            new_path(root, name)
