"""Paths that cannot be models."""

import pytest

from lorakit.errors import ConfigError, MissingFileError
from lorakit.models.local_paths import check_local_path


def test_paths_are_relative_to_the_root(tmp_path):
    (tmp_path / "bases" / "small").mkdir(parents=True)
    (tmp_path / "bases" / "small" / "config.json").write_text("{}")
    check_local_path("bases/small", "model", tmp_path)
    check_local_path("owner/name", "model", tmp_path)  # a hub id
    with pytest.raises(MissingFileError, match="Near it: small"):
        check_local_path("./bases/smal", "model", tmp_path)


def test_a_file_an_adapter_and_an_empty_directory_are_refused(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(MissingFileError, match="Name its folder"):
        check_local_path(str(tmp_path / "weights.bin"), "model")
    with pytest.raises(MissingFileError, match=r"a directory without config\.json"):
        check_local_path(str(tmp_path), "model")
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ConfigError, match="which is an adapter"):
        check_local_path(str(tmp_path), "model")


@pytest.mark.parametrize("name", ["http://x y", "name///", "two words", "n" * 300])
def test_a_name_that_no_hub_id_has_is_refused(name, tmp_path):
    with pytest.raises(MissingFileError, match="neither a directory nor a hub id"):
        check_local_path(name, "model", tmp_path)
