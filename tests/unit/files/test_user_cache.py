"""Where kept results are."""

from pathlib import Path

from lorakit.files.user_cache import user_cache


def test_the_directory_is_chosen_or_of_a_variable_or_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LORAKIT_CACHE", "~/kept")
    assert user_cache("data", "~/chosen") == Path("/home/ada/chosen")
    assert user_cache("data") == Path("/home/ada/kept/data")

    monkeypatch.delenv("LORAKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_cache("data") == Path("/cache/lorakit/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache("data") == Path("/home/ada/.cache/lorakit/data")
