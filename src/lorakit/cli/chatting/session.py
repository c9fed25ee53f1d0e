"""What a line does that is typed into a chat: a question, or a command that begins with /."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.chatting.conversation import Conversation, Exchange
from lorakit.cli.views.chat import show_answers
from lorakit.cli.views.console import remark
from lorakit.errors import ConfigError, did_you_mean
from lorakit.serving.clients.talking import AnswerOptions, End, Listed, find_listed

if TYPE_CHECKING:
    from lorakit.serving.clients.event_loop import LoopThread
    from lorakit.serving.clients.talking import TalkingModels

COMMANDS = {
    "/adapter": ("[NAME]", "talk to another adapter or to the base; without NAME, list them"),
    "/base": ("", "show the base alone beside the adapter, or stop doing so"),
    "/system": ("[TEXT]", "set the system message, show it, or remove it with `/system off`"),
    "/save": ("FILE", "add the conversation to a JSONL file that lorakit can train on"),
    "/clear": ("", "begin a new conversation"),
    "/help": ("", "show these commands"),
    "/quit": ("", "end; so does Ctrl-D"),
}
"""Arguments and purpose of each command."""

_WITHOUT_HISTORY = {
    "instruction": "was trained on single instructions",
    "text": "continues texts",
}


@dataclass
class Session:
    """A chat with models.

    Attributes:
        models: Where answers come from.
        loop: Runs their coroutines.
        options: How answers are generated.
        conversation: What was said so far.
        listed: The models that can be asked.
        name: The model that is asked.
        shows_base: Whether the base alone is asked too.
    """

    models: TalkingModels
    loop: LoopThread
    options: AnswerOptions
    conversation: Conversation
    listed: Sequence[Listed]
    name: str = ""
    shows_base: bool = False
    _asked: int = field(default=0, init=False)

    @property
    def base_name(self) -> str:
        """The name of the base alone.

        Raises:
            ConfigError: There is none, or there are several.
        """
        bases = [each.name for each in self.listed if each.is_base]
        if len(bases) != 1:
            raise ConfigError(
                f"No base to show beside '{self.name}': got {len(bases)} of them from the server, "
                "expected one. Leave --base out."
            )
        return bases[0]

    def choose(self, name: str | None) -> None:
        """Talk to a model: the one named, else the only adapter, else the base.

        Raises:
            ConfigError: There is no such model, or it cannot chat.
        """
        usable = [each for each in self.listed if _can_chat(each) and each.problem is None]
        adapters = [each for each in usable if not each.is_base]
        if name is None:
            first = adapters if len(adapters) == 1 else usable
            if not first:
                raise ConfigError(
                    "Nobody to talk to: got no model for CAUSAL_LM, expected one. Serve one."
                )
            name = first[0].name
        found = find_listed(self.listed, name)
        if not _can_chat(found):
            raise ConfigError(
                f"No chat with '{name}': got a model for {found.task}, expected one for CAUSAL_LM. "
                "Try `lorakit generate`."
            )
        if found.is_base and self.shows_base:
            raise ConfigError(
                f"'{name}' is the base itself: expected an adapter to show beside the base. Choose "
                "one with --adapter NAME, or /adapter NAME."
            )
        form = self.loop.run(self.models.form(name))
        if form != "conversation" and self.conversation.system is not None:
            raise ConfigError(
                f"'{name}' takes no system message: it {_WITHOUT_HISTORY[form]}. Leave it out "
                "(`/system off` in a chat)."
            )
        self.name = name
        self.conversation.has_history = form == "conversation"
        if form != "conversation":
            remark(f"{name} {_WITHOUT_HISTORY[form]}, so that each line stands by itself.")

    def take(self, line: str) -> bool:
        """Do what a line says; return whether the chat goes on.

        Raises:
            LorakitError: It cannot be done; the conversation is as it was before.
        """
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/"):
            self.ask(text if self.conversation.has_history else line)
            return True
        word, _, rest = text.partition(" ")
        if word == "/quit":
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/adapter": self._adapter,
            "/base": self._base,
            "/system": self._system,
            "/save": self._save,
            "/clear": self._clear,
            "/help": self._help,
        }
        if word not in actions:
            raise ConfigError(
                f"No command {word}: expected one of {', '.join(COMMANDS)}."
                f"{did_you_mean(word, COMMANDS)}"
            )
        rest = rest.strip()
        if rest and not COMMANDS[word][0]:
            raise ConfigError(f"{word} takes no argument: got {rest!r}. Leave it out.")
        actions[word](rest)
        return True

    def ask(self, question: str) -> None:
        """Show the answer to a question, and beside it the base's if it is asked too.

        Raises:
            KeyboardInterrupt: The user ended the answer; it is not kept.
            LorakitError: There is no answer.
        """
        names = [self.name, self.base_name] if self.shows_base else [self.name]
        options = replace(self.options, seed=self.options.seed + self._asked)
        self._asked += 1
        streams = [
            self.models.answer(
                name,
                self.conversation.messages(question, of_base=number > 0),
                options,
                form_like=self.name,
            )
            for number, name in enumerate(names)
        ]
        answers, is_cut = [""] * len(names), [False] * len(names)

        def parts() -> Generator[tuple[int, str]]:
            with closing(self.loop.merge(streams)) as merged:
                for number, item in merged:
                    if isinstance(item, Exception):
                        raise item
                    if isinstance(item, End):
                        is_cut[number] = item.reason == "length"
                    elif item is not None:
                        answers[number] += item
                        yield number, item

        headings = [self.name, f"{names[-1]}, the base alone"] if self.shows_base else [self.name]
        with closing(parts()) as shown:
            show_answers(headings, shown)
        self.conversation.exchanges.append(Exchange(question, *answers))
        for name, cut in zip(names, is_cut, strict=True):
            if cut:
                remark(f"{name} was cut at the maximum length; --max-new-tokens sets it.")

    # ---- commands ----

    def _adapter(self, name: str) -> None:
        if name:
            self.choose(name)
            remark(f"Talking to {name}. The conversation goes on; /clear begins a new one.")
            return
        self.listed = self.loop.run(self.models.list_models())
        for each in self.listed:
            marks = [*(["the base"] if each.is_base else []), *([each.task] if each.task else [])]
            marks += [f"cannot be used: {each.problem}"] if each.problem else []
            note = f"  ({', '.join(marks)})" if marks else ""
            remark(f"{'*' if each.name == self.name else ' '} {each.name}{note}")

    def _base(self, _: str) -> None:
        if not self.shows_base and self.name == self.base_name:
            raise ConfigError(
                f"'{self.name}' is the base itself: expected an adapter to show beside the base. "
                "Choose one with /adapter NAME."
            )
        self.shows_base = not self.shows_base
        remark(f"The base alone is {'shown beside the adapter' if self.shows_base else 'off'}.")

    def _system(self, text: str) -> None:
        if not text:
            remark(f"System message: {self.conversation.system or 'none'}")
            return
        if text == "off":
            self.conversation.system = None
            remark("No system message.")
            return
        if not self.conversation.has_history:
            raise ConfigError(
                f"'{self.name}' takes no system message: it does not take conversations. Choose "
                "another model with /adapter NAME."
            )
        self.conversation.system = text
        remark("The system message holds for the whole conversation, also for what was said.")

    def _save(self, rest: str) -> None:
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise ConfigError(
                f"Cannot read the name of the file: {error}. Write it again."
            ) from None
        if len(words) != 1:
            raise ConfigError(
                f"/save takes one file: got {len(words)}, expected a name such as chats.jsonl. Put "
                "a name with spaces into quotes."
            )
        file = Path(words[0]).expanduser()
        lines = self.conversation.save(file)
        remark(f"Saved to {file}, which has {lines} {'example' if lines == 1 else 'examples'} now.")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        remark("A new conversation.")

    def _help(self, _: str) -> None:
        for word, (arguments, purpose) in COMMANDS.items():
            remark(f"  {f'{word} {arguments}':<16}  {purpose}")
        remark("  Ctrl-C ends an answer that is being written.")


def _can_chat(each: Listed) -> bool:
    return each.task in (None, "CAUSAL_LM")
