"""Links, passwords and cookies."""

import stat

import pytest

from lorakit.errors import ConfigError
from lorakit.studio.access import Access, load_key, read_password

KEY = b"k" * 32


def test_a_link_works_once_and_the_next_is_told():
    told = []
    access = Access(KEY, "cookie", on_link_used=told.append)
    token = access.token
    assert not access.redeem("wrong") and not access.redeem("") and told == []
    assert access.redeem(token)
    assert not access.redeem(token)
    assert told == [access.token] and access.redeem(access.token)


def test_a_cookie_is_known_after_a_restart_and_no_other(monkeypatch):
    cookie = Access(KEY, "cookie").issue()
    assert Access(KEY, "cookie").is_admitted(cookie)
    assert not Access(b"x" * 32, "cookie").is_admitted(cookie)
    assert not Access(KEY, "cookie", "password").is_admitted(cookie)
    for wrong in (None, "", "a", "..", f"9{cookie}", cookie[:-1], cookie + "0", "\udc00.é.ü"):
        assert not Access(KEY, "cookie").is_admitted(wrong)
    monkeypatch.setattr("time.time", lambda: 9e9)
    assert not Access(KEY, "cookie").is_admitted(cookie)


def test_with_a_password_no_link_admits():
    access = Access(KEY, "cookie", "correct horse")
    assert not access.redeem(access.token)
    assert access.is_password("correct horse")
    assert not access.is_password("correct horsf") and not access.is_password("")
    assert not Access(KEY, "cookie").is_password("")


def test_the_key_is_kept_and_private(tmp_path):
    (tmp_path / ".lorakit").mkdir()
    key = load_key(tmp_path)
    assert load_key(tmp_path) == key and len(key) == 32
    path = tmp_path / ".lorakit" / "studio-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.with_name(".gitignore").read_text() == "*\n"
    path.write_text("damaged")
    assert load_key(tmp_path) != key


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short\n", "got 5 characters"), (b"", "got 0 characters"), (b"\xff" * 9, "it is not UTF-8")],
)
def test_a_bad_password_file_is_named(tmp_path, content, message):
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_password(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_password(tmp_path / "gone")
    path.write_text("long enough\nsecond line\n")
    assert read_password(path) == "long enough"


def test_the_key_of_programs_stays_until_the_password_changes():
    key = Access(KEY, "cookie").api_key
    assert key.startswith("lorakit-") and len(key) > 40 and key == Access(KEY, "cookie").api_key
    others = [Access(b"x" * 32, "cookie"), Access(KEY, "cookie", "password")]
    assert key not in [each.api_key for each in others]
    assert not Access(KEY, "cookie").is_admitted(key)
