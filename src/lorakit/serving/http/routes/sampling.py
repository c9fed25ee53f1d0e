"""From the fields of a request to how its answers are sampled."""

from __future__ import annotations

import secrets
from typing import Any

from lorakit.serving.http.limits import Limits
from lorakit.serving.http.protocol.completions import SamplingFields
from lorakit.serving.refusals import RequestError
from lorakit.serving.requests import Sampling
from lorakit.serving.served_model import ServedModel
from lorakit.serving.text_side import TextSide

_SEEDS = 2**63


def check_counts(fields: SamplingFields, prompts: int, limits: Limits) -> None:
    """Refuse more prompts, answers or stop texts than a request may have.

    Raises:
        RequestError: One of them exceeds its limit.
    """
    if not prompts:
        raise RequestError(
            "The parameter 'prompt' is wrong: got no prompt, expected at least one.",
            param="prompt",
        )
    answers = prompts * (fields.n or 1)
    longest = max(map(len, fields.stops), default=0)
    for param, what, got, most in (
        ("prompt", "prompts", prompts, limits.inputs),
        ("n", "answers in all", answers, limits.choices if prompts == 1 else limits.inputs),
        ("stop", "stop texts", len(fields.stops), limits.stop_texts),
        ("stop", "characters in a stop text", longest, limits.stop_characters),
    ):
        if got > most:
            raise RequestError(
                f"The parameter '{param}' is wrong: got {got} {what}, expected at most {most}.",
                param=param,
            )


def most_new_tokens(
    wanted: int | None,
    default: int | None,
    prompt_tokens: int,
    model: ServedModel,
    limits: Limits,
    prompt_param: str = "prompt",
) -> int:
    """Return how many new tokens an answer may have.

    Args:
        wanted: What the request asks for; None for the default.
        default: What a request that does not say gets; None for all that fits.
        prompt_tokens: Tokens of the prompt.
        model: The model, whose context prompt and answer share.
        limits: The server's limits.
        prompt_param: Name of the parameter that holds the prompt.

    Raises:
        RequestError: The prompt is too long, or too many tokens are wanted.
    """
    most_prompt = min(filter(None, (limits.prompt_tokens, model.limit)), default=None)
    if most_prompt is not None and prompt_tokens > most_prompt:
        raise RequestError(
            f"The prompt is too long: got {prompt_tokens} tokens, expected at most {most_prompt}. "
            "Shorten it.",
            param=prompt_param,
            code="context_length_exceeded",
        )
    room = None if model.limit is None else model.limit - prompt_tokens
    if wanted is not None and limits.output_tokens is not None and wanted > limits.output_tokens:
        raise RequestError(
            f"The parameter 'max_tokens' is wrong: got {wanted}, expected at most "
            f"{limits.output_tokens}, the limit of this server.",
            param="max_tokens",
        )
    if room is not None and (room < 1 or (wanted is not None and wanted > room)):
        raise RequestError(
            f"The prompt and its answer are too long: got {prompt_tokens} tokens and {wanted or 1} "
            f"new ones, expected at most {model.limit} together, the context of the model. Shorten "
            "the prompt or ask for fewer tokens.",
            param="max_tokens" if wanted is not None else prompt_param,
            code="context_length_exceeded",
        )
    if wanted is not None:
        return wanted
    left = None if model.most_tokens is None else max(model.most_tokens - prompt_tokens, 1)
    bounds = [bound for bound in (default, limits.output_tokens, left) if bound is not None]
    return min(bounds, default=_WITHOUT_LIMIT)


_WITHOUT_LIMIT = 1024
"""New tokens of an answer where neither request, server nor model has a limit."""


def choice_samplings(
    fields: SamplingFields,
    text: TextSide,
    most_tokens: int,
    likeliest: int | None,
    first_choice: int = 0,
) -> list[Sampling]:
    """Return the sampling of each answer to one prompt; they differ in their seeds.

    Args:
        fields: The fields of the request.
        text: The adapter's tokens that end an answer.
        most_tokens: New tokens at most.
        likeliest: Number of likeliest tokens reported with each; None for no log-probabilities.
        first_choice: Number of the answers to earlier prompts.
    """
    seed = secrets.randbits(62) if fields.seed is None else fields.seed
    common: dict[str, Any] = {
        "max_tokens": most_tokens,
        "temperature": 1.0 if fields.temperature is None else fields.temperature,
        "top_p": 1.0 if fields.top_p is None else fields.top_p,
        "top_k": max(fields.top_k or 0, 0),
        "min_p": fields.min_p or 0.0,
        "presence_penalty": fields.presence_penalty or 0.0,
        "frequency_penalty": fields.frequency_penalty or 0.0,
        "logit_bias": {int(key): value for key, value in (fields.logit_bias or {}).items()},
        "stop": tuple(fields.stops),
        "stop_token_ids": frozenset() if fields.ignore_eos else text.stop_token_ids,
        "logprobs": likeliest,
    }
    return [
        Sampling(seed=(seed + first_choice + choice) % _SEEDS, **common)
        for choice in range(fields.n or 1)
    ]
