"""`lorakit chat`: lines of stdin, a terminal, a run and a server."""

import json
import os
import pty
import select
import signal
import sys
import time

import pytest


def test_each_line_of_stdin_is_answered(cli, lm_run):
    result = cli("chat", lm_run, "--max-new-tokens", 3, input="what colour\n\nthe sky\n")
    assert result.exit_code == 0, result.stderr
    assert "each line stands by itself" in result.stderr  # it was trained on prompts
    alone = cli("generate", lm_run, "what colour", "--max-new-tokens", 3)
    assert result.stdout.splitlines()[0] == alone.stdout.splitlines()[0]


def test_a_server_is_talked_to_and_the_conversation_saved(cli, served, tmp_path):
    file = tmp_path / "chats.jsonl"
    words = ("chat", served.server.url, "--adapter", "german", "--max-new-tokens", 4)
    lines = f"hello\nagain\n/save {file}\n/quit\nnever"
    result = cli(*words, "--base", "--system", "be short", input=lines)
    assert result.exit_code == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("[")] == [
        "[german]",
        "[base, the base alone]",
    ] * 2
    (example,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each["role"] for each in example["messages"]] == ["system", *["user", "assistant"] * 2]


def test_a_server_that_is_gone_is_one_sentence(cli):
    result = cli("chat", "http://127.0.0.1:9", input="hello\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: The server at http://127.0.0.1:9 does not answer: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["http://127.0.0.1:9", "--unquantized"], "--unquantized is for a model that is loaded"),
        (["http://", "--system", "x"], "Not the address of a server"),
        (["somewhere", "--api-key-file", "keys"], "--api-key-file is for a server"),
        (["somewhere", "--top-p", "0.5"], "--top-p requires sampling"),
        (["nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_does_not_go_together_is_refused(cli, words, message):
    result = cli("chat", *words, input="hello\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_classifier_is_no_partner(cli, cls_run):
    result = cli("chat", cls_run, input="hello\n")
    assert result.exit_code == 2
    assert f"Try `lorakit generate {cls_run}`" in result.stderr


def test_no_line_is_an_error(cli, served):
    result = cli("chat", served.server.url, input="\n")
    assert result.exit_code == 2
    assert "No text in stdin" in result.stderr


ENDLESS = """
import asyncio, signal, sys
from contextlib import closing
from lorakit.cli.chatting.conversation import Conversation
from lorakit.cli.chatting.session import Session
from lorakit.cli.commands import chat
from lorakit.cli.signals import ending
from lorakit.serving.clients.event_loop import LoopThread
from lorakit.serving.clients.talking import AnswerOptions, Listed

class Endless:
    cancelled = 0
    async def list_models(self):
        return [Listed("base", True)]
    async def form(self, name):
        return "conversation"
    async def answer(self, name, messages, options, *, form_like):
        try:
            while True:
                yield "word "
                await asyncio.sleep(0.01)
        finally:
            self.cancelled += 1

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a background shell
ending.install()
with closing(LoopThread()) as loop:
    models = Endless()
    session = Session(models, loop, AnswerOptions(), Conversation(), [Listed("base", True)])
    session.choose(None)
    chat.talk(session)
sys.exit(0 if models.cancelled == 2 and not session.conversation.exchanges else 3)
"""
"""A chat with a model that says "word " without end."""


class Terminal:
    """Types into a terminal and reads what it shows."""

    def __init__(self, descriptor):
        self.descriptor, self._unread = descriptor, ""

    def read_until(self, text, seconds=30):
        until = time.monotonic() + seconds
        while text not in self._unread:
            left = max(0, until - time.monotonic())
            ready, _, _ = select.select([self.descriptor], [], [], left)
            assert ready, self._unread
            self._unread += os.read(self.descriptor, 1000).decode()
        self._unread = self._unread.partition(text)[2]

    def type(self, text):
        os.write(self.descriptor, text.encode())


def test_in_a_terminal_an_interrupt_ends_an_answer_and_ctrl_d_the_chat():
    process, descriptor = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-c", ENDLESS])
    terminal = Terminal(descriptor)
    try:
        for _ in range(2):
            terminal.read_until("> ")
            terminal.type("hello\r")
            terminal.read_until("word word word")
            terminal.type("\x03")
            terminal.read_until("Stopped: this question and its answer are dropped.")
        terminal.read_until("> ")
        terminal.type("half")
        terminal.read_until("half")
        time.sleep(0.2)  # readline misses a signal that comes before it waits for the next key
        terminal.type("\x03")
        terminal.read_until("> ")
        terminal.type("/nope\r")
        terminal.read_until("No command /nope: expected one of")
        terminal.read_until("> ")
        terminal.type("\x04")
        _, status = os.waitpid(process, 0)
        process = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if process:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        os.close(descriptor)
