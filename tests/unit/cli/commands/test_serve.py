"""`lorakit serve`: what it prints, how it ends, and each wrong option."""

import os
import re
import signal
import threading

import httpx2
import pytest

from fixtures.printed import flat
from lorakit.cli.commands import serve as command
from lorakit.cli.commands.serve import parse_named_paths
from lorakit.cli.signals import ending
from lorakit.errors import ConfigError


@pytest.fixture
def signals(monkeypatch):
    """Install the handlers of the command line, and forget afterwards that a signal came."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ending.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    ending.__init__()


def test_a_run_is_served_until_a_signal_comes(cli, cls_run, tmp_path, signals, monkeypatch):
    answers = []
    show = command.show_calls

    def then_call(url, overview, has_key):
        show(url, overview, has_key)

        def call():
            body = {"model": "run", "input": "the film was good"}
            answers.append(httpx2.post(f"{url}/v1/classify", json=body))
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Timer(0.3, call).start()

    monkeypatch.setattr(command, "show_calls", then_call)
    log = tmp_path / "access.jsonl"
    result = cli("serve", cls_run, "--port", 0, "--access-log", log)
    assert result.exit_code == 143, result.output
    assert answers[0].json()["data"][0]["label"] in ("positive", "negative")
    text = flat(result.stdout)
    assert "Loading the base ... Base " in text
    assert re.search(r"run SEQ_CLS 4 [\d.]+ kB \d+ \(\d+%\)", text) or "run SEQ_CLS" in text
    assert re.search(r"Serving at http://127.0.0.1:\d+ curl http", text)
    assert "docs/serving.md" in result.stderr and "Terminated." in result.stderr
    assert '"path": "/v1/classify"' in log.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Nothing to serve: got no base"),
        (["/gone"], "No model in BASE: got '/gone'"),
        (["--adapters", "/gone"], "No folder of adapters at /gone"),
        (["--adapter", "german"], "--adapter is wrong: got 'german', expected NAME=PATH"),
        (["--adapter", "a=x", "--adapter", "a=y"], "got the name 'a' twice"),
        (["--kv-memory", "much"], "--kv-memory is not a size: got 'much'"),
        (["--host", "0.0.0.0"], "Anybody could use this server"),
        (["--api-key", "short"], "A key from the command line cannot be used"),
        (["--api-key-file", "/gone"], "No file of keys at /gone"),
        (["--batch-rows", "0"], "Invalid value for '--batch-rows'"),
        (["--port", "99999"], "Invalid value for '--port'"),
        (["--replicas", "2"], "--replicas requires --ray. Add --ray, or leave --replicas out."),
        (["--address", "auto"], "--address requires --ray."),
        (["--ray", "--measure", "3"], "--measure is wrong: got 3 together with --ray"),
        (["--ray", "--replicas", "0"], "Invalid value for '--replicas'"),
        (["--max-waiting", "-1"], "Invalid value for '--max-waiting'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(cli, words, message):
    result = cli("serve", *words)
    assert result.exit_code == 2
    assert message in flat(result.stderr)


def test_names_and_paths_are_split_at_the_first_equals_sign():
    assert parse_named_paths(["a=b=c", "d=e"]) == {"a": "b=c", "d": "e"}
    for word in ("=path", "name=", "name"):
        with pytest.raises(ConfigError):
            parse_named_paths([word])
