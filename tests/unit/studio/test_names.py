"""What bases are called."""

from lorakit.quickstart.model_files import base_model_path
from lorakit.studio.names import base_name, short_base_name


def test_the_base_that_comes_along_has_a_short_name():
    packaged = str(base_model_path())
    assert (base_name(packaged), base_name("/a/b"), base_name("a/b")) == (
        "quickstart",
        "/a/b",
        "a/b",
    )
    assert (short_base_name(packaged), short_base_name("/a/b/"), short_base_name("a/b")) == (
        "quickstart",
        "b",
        "a/b",
    )
