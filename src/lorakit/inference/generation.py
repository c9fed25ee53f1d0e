"""Generate text with a trained adapter, in the format it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.config import TaskType
from lorakit.data.chat import leaves_out_system, wants_content_parts, with_content_parts
from lorakit.data.conversations import (
    MalformedConversationError,
    parse_messages,
    with_default_system,
)
from lorakit.data.text_formats import alpaca_prompt
from lorakit.data.tokenizers import (
    batch_columns,
    chat_columns,
    decode,
    end_id,
    ids_to_continue,
    pad_id,
)
from lorakit.errors import DataError
from lorakit.inference.loaded import LoadedModel
from lorakit.models.pretrained import model_limit

Prompt = str | tuple[str, str] | Sequence[Mapping[str, Any]]
"""A text, an instruction with its input, or the messages of a conversation."""

_DEFAULT_NEW_TOKENS = 64
_CERTAIN_TEMPERATURE = 1e-20
"""At or below it the likeliest token is certain, and logits that are divided by it may overflow."""


def is_sampled(temperature: float) -> bool:
    """Return whether tokens are drawn at a temperature; else the likeliest is taken each time.

    >>> is_sampled(0.5), is_sampled(0), is_sampled(1e-40)
    (True, False, False)
    """
    return temperature > _CERTAIN_TEMPERATURE


def generate_text(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    use_base: bool = False,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 42,
    batch_rows: int = 8,
    **options: Any,
) -> list[str]:
    """Continue or answer prompts, as the adapter was trained to.

    A text is put into the format of the training examples: a user message for an adapter trained on
    conversations, an instruction for one trained on alpaca examples, after `source_prefix` for a
    sequence-to-sequence model, and unchanged for one trained on plain text. The system prompt of
    training is put before a conversation that begins with no system message.

    Args:
        loaded: An adapter for CAUSAL_LM or SEQ_2_SEQ_LM on its base.
        prompts: Texts, or conversations as lists of messages.
        use_base: Whether the base model answers without the adapter.
        max_new_tokens: Maximum length of an answer; None takes that of training, or 64.
        temperature: 0 takes the likeliest token each time; above 0 tokens are sampled.
        seed: Seed for sampling.
        batch_rows: Number of prompts in a batch.
        options: Options of `generate`, such as `top_p` or `num_beams`.

    Returns: The new text of each prompt.

    Raises:
        ConfigError: The adapter is for another task.
        DataError: A prompt exceeds the model's limit, or is a conversation and the tokenizer has no
            chat template, or one that leaves its system message out.
    """
    loaded.require_task("generate text", TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)
    new_tokens = max_new_tokens or loaded.settings.max_target_length or _DEFAULT_NEW_TOKENS
    options |= {"do_sample": is_sampled(temperature)}
    if options["do_sample"]:
        options["temperature"] = temperature
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_rows):
            ids = [_prompt_ids(loaded, one) for one in prompts[start : start + batch_rows]]
            texts += continue_tokens(loaded, ids, new_tokens, use_base, **options)
    return texts


def continue_tokens(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    new_tokens: int,
    use_base: bool = False,
    **options: Any,
) -> list[str]:
    """Continue or answer tokenized prompts, in one batch.

    Args:
        loaded: A language model with an adapter.
        prompts: Token ids of each prompt.
        new_tokens: Maximum length of an answer.
        use_base: Whether the base model answers without the adapter.
        options: Options of `generate`; by default the likeliest token is taken.

    Returns: The new text of each prompt.

    Raises:
        DataError: A prompt exceeds the model's limit.
    """
    model: Any = loaded.model
    with loaded.inference_context(use_base):
        encoded = _pad_prompts(loaded, prompts)
        _require_room(loaded, encoded["input_ids"].shape[1], new_tokens)
        made = model.generate(
            **encoded,
            max_new_tokens=new_tokens,
            eos_token_id=stop_ids(loaded),
            pad_token_id=pad_id(loaded.tokenizer),
            **_sampling(loaded, options),
        )
    if loaded.task_type is TaskType.CAUSAL_LM:
        made = made[:, encoded["input_ids"].shape[1] :]
    return [decode(loaded.tokenizer, row, skip_special_tokens=True) for row in made.tolist()]


def _sampling(loaded: LoadedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `generate` without what the files of the base prefer, as the server has it.

    A sequence-to-sequence model keeps beams and the like, with which its training is evaluated.
    """
    plain: dict[str, Any] = {"do_sample": False}
    if loaded.settings.num_beams is not None:
        plain["num_beams"] = loaded.settings.num_beams
    if options.get("do_sample"):
        plain |= {"top_k": 0, "top_p": 1.0, "min_p": None, "num_beams": 1}
    if loaded.task_type is TaskType.CAUSAL_LM:
        plain |= {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
    return {**plain, **options}


def _prompt_ids(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    tokenizer, settings = loaded.tokenizer, loaded.settings
    if loaded.task_type is TaskType.SEQ_2_SEQ_LM:
        return _source_ids(loaded, prompt)
    if isinstance(prompt, str) and settings.format == "messages":
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        text = alpaca_prompt(prompt) if settings.format == "alpaca" else prompt
        return ids_to_continue(tokenizer, text)
    parts: Any = prompt
    if isinstance(prompt, tuple) and settings.format == "alpaca":
        return ids_to_continue(tokenizer, alpaca_prompt(*parts))
    if not tokenizer.chat_template:
        raise DataError(
            f"A conversation cannot be rendered: the tokenizer used with the adapter (base "
            f"'{loaded.base}') has no chat template. Give the prompt as one text."
        )
    try:
        given = parse_messages([dict(message) for message in parts])
    except MalformedConversationError as problem:
        raise DataError(
            f"A prompt is not a conversation: got {problem}, expected a text or messages such as "
            "{'role': 'user', 'content': 'Hello'}. Write it so."
        ) from problem
    messages = with_default_system(given, settings.system_prompt)
    if wants_content_parts(tokenizer):
        messages = with_content_parts(messages)
    ids = list(chat_columns(tokenizer, messages, add_generation_prompt=True)["input_ids"])
    if any(each["role"] == "system" for each in given) and leaves_out_system(tokenizer):
        raise DataError(
            f"A system message would have no effect: the chat template used with the adapter (base "
            f"'{loaded.base}') leaves it out. Put it into the first message of the user."
        )
    return ids


def _source_ids(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        raise DataError(
            "A sequence-to-sequence model takes a text: got a list of messages. Give the prompt "
            "as one text."
        )
    columns = batch_columns(
        loaded.tokenizer,
        [loaded.settings.source_prefix + prompt],
        truncation=True,
        max_length=loaded.max_length,
    )
    return columns["input_ids"][0]


def _pad_prompts(loaded: LoadedModel, prompts: Sequence[list[int]]) -> dict[str, Tensor]:
    """Pad token ids to one length, on the left for a model that continues on the right."""
    prompts = [prompt or [_first_id(loaded)] for prompt in prompts]
    length = max(len(prompt) for prompt in prompts)
    pad, on_left = pad_id(loaded.tokenizer), loaded.task_type is TaskType.CAUSAL_LM
    ids, mask = [], []
    for prompt in prompts:
        fill, seen = [pad] * (length - len(prompt)), [1] * len(prompt)
        hidden = [0] * len(fill)
        ids.append(fill + prompt if on_left else prompt + fill)
        mask.append(hidden + seen if on_left else seen + hidden)
    device = loaded.model.device
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _first_id(loaded: LoadedModel) -> int:
    """Return the token that an empty prompt consists of."""
    start: Any = loaded.tokenizer.bos_token_id
    return (end_id(loaded.tokenizer) or 0) if start is None else start


def _require_room(loaded: LoadedModel, prompt_tokens: int, new_tokens: int) -> None:
    limit = model_limit(loaded.model)
    if loaded.task_type is not TaskType.CAUSAL_LM or limit is None:
        return
    if prompt_tokens + new_tokens > limit:
        raise DataError(
            f"The prompt is too long: got {prompt_tokens} tokens and {new_tokens} new ones, "
            f"expected at most {limit} together, the positions of this "
            f"{type(loaded.model).__name__}. Shorten the prompt or ask for fewer tokens."
        )


def stop_ids(loaded: LoadedModel) -> list[int]:
    """Return the tokens that end an answer: those of the base, its tokenizer and the training."""
    end: Any = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = [end] if isinstance(end, int) else list(end or [])
    ids += [end_id(loaded.tokenizer), *loaded.settings.stop_token_ids]
    return sorted({i for i in ids if i is not None})
