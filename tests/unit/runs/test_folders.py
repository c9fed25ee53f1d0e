"""Walking folders of unknown size."""

from lorakit.runs import folders
from lorakit.runs.folders import visible_folders


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
    monkeypatch.setattr(folders, "_MOST_FOLDERS", 3)
    for n in range(9):
        (tmp_path / str(n)).mkdir()
    assert len(list(visible_folders(tmp_path))) == 3
