"""Only what lies below the root."""

import pytest

from lorakit.errors import ConfigError
from lorakit.serving.store.allowed_paths import AllowedPaths


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "root" / "inside").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return AllowedPaths(tmp_path / "root")


def test_relative_and_absolute_paths_below_the_root(paths, tmp_path):
    assert paths.resolve("inside") == tmp_path / "root" / "inside"
    assert paths.resolve(f"{tmp_path}/root/inside") == tmp_path / "root" / "inside"


@pytest.mark.parametrize(
    "text", ["../outside", "inside/../inside", "", "a\0b", "a\nb", "/etc", "/", ".."]
)
def test_others_are_refused(paths, text):
    with pytest.raises(ConfigError, match="Cannot load an adapter from") as caught:
        paths.resolve(text)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_links_are_followed_first(paths, tmp_path):
    root = tmp_path / "root"
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root / "inside")
    (root / "circle").symlink_to(root / "circle")
    paths.resolve("in")
    for text in ("out", "out/x"):
        with pytest.raises(ConfigError, match="leads out of") as caught:
            paths.resolve(text)
        assert "outside" not in str(caught.value)
    with pytest.raises(ConfigError, match="leads out of"):
        paths.resolve("circle/x")


def test_a_root_that_is_a_link_itself(tmp_path):
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    paths = AllowedPaths(tmp_path / "link")
    paths.require(tmp_path / "link" / "a")
    paths.require(tmp_path / "real" / "a")


def test_without_a_root_nothing_is_loaded_on_request():
    with pytest.raises(ConfigError, match="no root directory"):
        AllowedPaths(None).resolve("/tmp")
