"""Let a running server answer the texts of `lorakit generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.views.answers import pairs_of, print_labels, print_tags, print_texts
from lorakit.cli.views.console import next_steps, remark, shell_quote
from lorakit.errors import ConfigError

if TYPE_CHECKING:
    from lorakit.serving.clients.over_http import RemoteModels
    from lorakit.serving.clients.talking import AnswerOptions

_AT_ONCE = 8
_DEFAULT_NEW_TOKENS = 64


def generate_from_server(
    url: str,
    key: str | None,
    adapter: str,
    prompts: Sequence[str],
    base: bool,
    options: AnswerOptions,
) -> None:
    """Print what a server answers to texts.

    Args:
        url: Address of the server.
        key: Its API key, if it needs one.
        adapter: A model of the server, or a run whose name it has.
        prompts: The texts.
        base: Whether the base alone answers too.
        options: How texts are generated.

    Raises:
        ConfigError: The server has no such model, or the base alone cannot do its task.
        ServerError: The server cannot be reached, or refuses a request.
    """
    from lorakit.serving.clients.event_loop import LoopThread
    from lorakit.serving.clients.over_http import RemoteModels
    from lorakit.serving.clients.talking import find_listed

    models = RemoteModels(url, key)
    with closing(LoopThread()) as loop:
        try:
            listed = loop.run(models.list_models())
            name = _served_name(adapter, [each.name for each in listed])
            task = find_listed(listed, name).task or "CAUSAL_LM"
            names = {"adapter": name}
            if base:
                bases = [each.name for each in listed if each.is_base]
                if task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM") or len(bases) != 1:
                    raise ConfigError(
                        f"--base cannot be shown beside '{name}': got a model for {task} and "
                        f"{len(bases)} bases on the server, expected a model that generates text "
                        "and one base. Leave it out."
                    )
                names["base alone"] = bases[0]
            remark(f"{task} with {name} at {models.url}")
            if task == "SEQ_CLS":
                is_pair = loop.run(models.takes_pairs(name))
                texts = pairs_of(prompts) if is_pair else list(prompts)
                print_labels(prompts, [loop.run(models.classify(name, texts))])
            elif task == "TOKEN_CLS":
                print_tags({name: loop.run(models.tag(name, prompts))})
            else:
                answers = {
                    shown: loop.run(_texts(models, each, name, task, prompts, options))
                    for shown, each in names.items()
                }
                print_texts(prompts, answers)
        finally:
            loop.run(models.close())
    if task == "CAUSAL_LM":
        command = f"lorakit chat {shell_quote(url)} --adapter {shell_quote(name)}"
        next_steps({command: "talks to it"}, stderr=True)


def _served_name(adapter: str, names: Sequence[str]) -> str:
    """Return the name under which a server may have a run or an adapter directory."""
    path = Path(adapter)
    if adapter in names or not path.is_dir():
        return adapter
    path = path.absolute()
    return path.parent.name if path.name == "adapter" else path.name


async def _texts(
    models: RemoteModels,
    name: str,
    like: str,
    task: str,
    prompts: Sequence[str],
    options: AnswerOptions,
) -> list[str]:
    free = asyncio.Semaphore(_AT_ONCE)
    most = options.max_new_tokens or _DEFAULT_NEW_TOKENS

    async def answer(prompt: str) -> str:
        async with free:
            if task == "SEQ_2_SEQ_LM":
                return await models.write(name, prompt, options)
            limited = replace(options, max_new_tokens=most)
            return await models.whole_answer(name, prompt, limited, form_like=like)

    return await asyncio.gather(*(answer(prompt) for prompt in prompts))
