"""What lines do in a chat, with models that answer with what they were asked."""

from contextlib import closing

import pytest

from fixtures.printed import flat
from lorakit.cli.chatting.conversation import Conversation
from lorakit.cli.chatting.session import COMMANDS, Session
from lorakit.errors import ConfigError, DataError, GenerationError
from lorakit.serving.clients.event_loop import LoopThread
from lorakit.serving.clients.talking import AnswerOptions, End, Listed

MODELS = (
    Listed("base", True),
    Listed("german", False, "CAUSAL_LM"),
    Listed("story", False, "CAUSAL_LM"),
    Listed("mood", False, "SEQ_CLS"),
)


class Echoes:
    """Models that answer with their name and the last message, and remember all they get."""

    def __init__(self):
        self.asked = []
        self.error = None

    async def list_models(self):
        return MODELS

    async def form(self, name):
        return "text" if name == "story" else "conversation"

    async def answer(self, name, messages, options, *, form_like):
        self.asked.append((name, messages, options, form_like))
        yield f"{name}: "
        if self.error is not None:
            raise self.error
        yield messages[-1]["content"]
        yield End("length" if options.max_new_tokens else "stop")

    async def close(self):
        pass


@pytest.fixture
def session():
    with closing(LoopThread()) as loop:
        made = Session(Echoes(), loop, AnswerOptions(), Conversation(), MODELS)
        made.choose("german")
        yield made


def test_an_answer_is_shown_and_kept(session, capsys):
    assert session.take("  hello  ")
    assert capsys.readouterr().out == "german: hello\n"
    session.take("more")
    *_, (name, messages, options, _) = session.models.asked
    contents = [each["content"] for each in messages]
    assert (name, contents) == ("german", ["hello", "german: hello", "more"])
    assert options.seed == AnswerOptions().seed + 1  # or equal questions would get equal draws


def test_the_base_is_shown_below_in_the_adapters_form_with_its_history(session, capsys):
    session.take("/base")
    session.take("hello")
    shown = "[german]\ngerman: hello\n[base, the base alone]\nbase: hello\n"
    assert capsys.readouterr().out == shown
    session.take("more")
    name, messages, _, like = session.models.asked[-1]
    assert (name, like, messages[1]["content"]) == ("base", "german", "base: hello")
    session.take("/base")
    assert not session.shows_base


def test_a_failed_answer_leaves_the_conversation_as_it_was(session, capsys):
    session.models.error = GenerationError("It failed.")
    with pytest.raises(GenerationError):
        session.take("hello")
    assert session.conversation.exchanges == []
    assert capsys.readouterr().out == "german: \n"


def test_an_answer_that_is_cut_is_told(session, capsys):
    session.options = AnswerOptions(max_new_tokens=2)
    session.take("hello")
    assert "german was cut at the maximum length" in capsys.readouterr().err


def test_another_model_goes_on_with_the_conversation(session, capsys):
    session.take("hello")
    session.take("/adapter base")
    session.take("more")
    name, messages, *_ = session.models.asked[-1]
    assert name == "base" and len(messages) == 3
    session.take("/adapter")
    listed = capsys.readouterr().err
    assert "* base  (the base)" in listed and "  mood  (SEQ_CLS)" in listed


def test_a_model_of_texts_has_no_history_and_no_system_message(session, capsys):
    session.take("hello")
    session.take("/adapter story")
    assert "story continues texts, so that each line stands by itself." in capsys.readouterr().err
    session.take(" once ")
    assert session.models.asked[-1][1] == [{"role": "user", "content": " once "}]
    with pytest.raises(ConfigError, match="'story' takes no system message"):
        session.take("/system be short")
    session.take("/adapter german")
    session.take("/system be short")
    with pytest.raises(ConfigError, match="'story' takes no system message"):
        session.take("/adapter story")
    assert session.name == "german"


def test_the_system_message_is_set_shown_and_removed(session, capsys):
    for line in ("/system", "/system be short", "/system", "hello", "/system off", "more"):
        session.take(line)
    first, second = (messages for _, messages, *_ in session.models.asked)
    assert first[0] == {"role": "system", "content": "be short"}
    assert second[0]["role"] == "user"
    shown = flat(capsys.readouterr().err)
    assert "System message: none" in shown and "System message: be short" in shown


def test_a_conversation_is_saved_and_cleared(session, tmp_path, capsys):
    with pytest.raises(DataError, match="Nothing to save"):
        session.take(f"/save {tmp_path}/a.jsonl")
    session.take("hello")
    session.take(f"/save '{tmp_path}/my chats.jsonl'")
    assert "which has 1 example now" in flat(capsys.readouterr().err)
    assert (tmp_path / "my chats.jsonl").read_text().count("\n") == 1
    session.take("/clear")
    assert session.conversation.exchanges == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/adaptor x", "No command /adaptor: expected one of .* Did you mean '/adapter'"),
        ("/clear all", "/clear takes no argument: got 'all'"),
        ("/save", "/save takes one file: got 0"),
        ("/save a b", "/save takes one file: got 2"),
        ("/save 'a", "Cannot read the name of the file"),
        ("/adapter germen", "Did you mean 'german'"),
        ("/adapter mood", "got a model for SEQ_CLS"),
    ],
)
def test_a_wrong_command_is_told(session, line, message):
    with pytest.raises(ConfigError, match=message):
        session.take(line)
    assert session.name == "german"


def test_the_base_has_no_base_beside_it(session):
    session.take("/adapter base")
    with pytest.raises(ConfigError, match="'base' is the base itself"):
        session.take("/base")
    session.take("/adapter german")
    session.take("/base")
    with pytest.raises(ConfigError, match="'base' is the base itself"):
        session.take("/adapter base")


def test_without_a_name_it_is_the_only_adapter_or_the_base(session):
    session.choose(None)
    assert session.name == "base"
    session.listed = MODELS[:2]
    session.choose(None)
    assert session.name == "german"
    session.listed = MODELS[3:]
    with pytest.raises(ConfigError, match="Nobody to talk to"):
        session.choose(None)


def test_empty_lines_do_nothing_and_quit_ends(session, capsys):
    assert session.take("   ")
    assert session.take("/help")
    shown = capsys.readouterr().err
    assert all(word in shown for word in COMMANDS)
    assert not session.take("/quit")
