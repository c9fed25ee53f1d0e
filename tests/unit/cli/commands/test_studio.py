"""`lorakit studio`: each mistake is one sentence. tests/browser opens it."""

import os
import socket
from pathlib import Path

from fixtures.printed import flat


def test_mistakes_are_one_message_and_exit_code_2(cli, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "short").write_text("abc")
    cases = [
        ([tmp_path / "gone"], "there is no such directory, expected a folder with runs"),
        ([tmp_path / "file"], "it is a file, expected a folder with runs. Name a folder."),
        ([tmp_path, "--host", "0.0.0.0"], "Anybody could open this studio: got host 0.0.0.0"),
        ([tmp_path, "--password-file", tmp_path / "no"], "Cannot read the password in"),
        ([tmp_path, "--password-file", tmp_path / "short"], "got 3 characters"),
        ([tmp_path, "--port", "99999"], "Invalid value for '--port'"),
        ([tmp_path, "--host", "203.0.113.7"], "got host 203.0.113.7 and no password"),
    ]
    for words, message in cases:
        result = cli("studio", *words)
        assert result.exit_code == 2, words
        assert message in flat(result.stderr), words


def test_a_taken_port_is_named(cli, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = cli("studio", tmp_path, "--port", port)
    assert result.exit_code == 2
    text = flat(result.stderr)
    assert f"127.0.0.1:{port}: the port is used by process {os.getpid()}" in text
    assert "--port 0 takes the next free one." in text


def test_a_missing_package_names_the_extra(cli, tmp_path, monkeypatch):
    from lorakit.libraries import extras

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "nicegui" else find(name))
    result = cli("studio", tmp_path)
    assert result.exit_code == 2
    assert "pip install 'lorakit[studio]'" in flat(result.stderr)


def test_a_folder_that_may_not_be_written_to_is_named(cli, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = cli("studio", tmp_path)
    assert result.exit_code == 2 and "may not be written to" in flat(result.stderr)
