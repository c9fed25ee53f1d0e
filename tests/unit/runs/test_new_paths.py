"""New files lie below the folder, whatever a form says."""

import pytest

from lorakit.errors import ConfigError, OutputExistsError
from lorakit.runs.new_paths import new_path


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
