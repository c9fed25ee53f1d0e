import pytest

from lorakit.cli.sizes import bytes_of
from lorakit.errors import ConfigError


@pytest.mark.parametrize(("text", "size"), [("1GiB", 2**30), ("2.5 MB", 2_500_000), ("0", 0)])
def test_sizes_have_units(text, size):
    assert bytes_of(text, "--kv-memory") == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1 PB", "1e9", "GB"])
def test_what_is_no_size_is_refused_with_the_option(text):
    with pytest.raises(ConfigError, match="--kv-memory is not a size: got"):
        bytes_of(text, "--kv-memory")
