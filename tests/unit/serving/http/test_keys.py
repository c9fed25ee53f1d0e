import pytest

from lorakit.errors import ConfigError, MissingFileError
from lorakit.serving.http.keys import ApiKeys, collect_keys
from lorakit.serving.refusals import RequestError

KEYS = ApiKeys(["a-long-key", "another-key"], ["the-admin-key"])


def test_without_keys_everybody_may_call_but_nobody_administers():
    open_to_all = ApiKeys()
    caller = open_to_all.caller(None)
    assert (caller.name, caller.is_admin) == ("anonymous", False)
    with pytest.raises(RequestError, match="started without an administrator's key") as caught:
        open_to_all.require_admin(caller)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "header", ["Bearer a-long-key", "bearer another-key ", "Bearer the-admin-key"]
)
def test_each_key_lets_its_caller_in(header):
    caller = KEYS.caller(header)
    assert caller.name.startswith("key-")
    assert "long" not in caller.name
    assert caller.is_admin == ("admin" in header)


@pytest.mark.parametrize(
    ("header", "got"),
    [
        (None, "no key"),
        ("", "no key"),
        ("Bearer", "no key"),
        ("Basic a-long-key", "no key"),
        ("Bearer a-long-ke", "a key that the server does not know"),
        ("Bearer \udcff", "a key that the server does not know"),
    ],
)
def test_a_missing_or_wrong_key_is_refused(header, got):
    with pytest.raises(RequestError) as caught:
        KEYS.caller(header)
    assert caught.value.status == 401
    assert f"got {got}, expected" in str(caught.value)


def test_administration_needs_the_other_key():
    KEYS.require_admin(KEYS.caller("Bearer the-admin-key"))
    with pytest.raises(RequestError, match="not an administrator's"):
        KEYS.require_admin(KEYS.caller("Bearer a-long-key"))


def test_keys_come_from_options_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nkey-in-a-file\n\n")
    environment = {"KEYS": "key-one-of-two, key-two-of-two"}
    assert collect_keys(["key-of-option"], file, "KEYS", environment) == [
        *("key-of-option", "key-in-a-file", "key-one-of-two", "key-two-of-two")
    ]


@pytest.mark.parametrize("key", ["short", "with a space in it", "ключ-длинный"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(ConfigError, match="cannot be used: got") as caught:
        collect_keys([key], None, "KEYS", {})
    assert key not in str(caught.value)


def test_a_file_without_a_key_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="No file of keys"):
        collect_keys([], tmp_path / "gone", "KEYS", {})
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="No key in"):
        collect_keys([], tmp_path / "empty", "KEYS", {})
