"""The next token of each row: all rows at once, each with its settings and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lorakit.errors import GenerationError
from lorakit.serving.engine.request import Answer
from lorakit.serving.requests import Sampling, TokenLogprob

_FIRST_SORTED = 256
"""Likeliest tokens that are sorted at first; top_p rarely needs more."""


class Sampler:
    """Chooses the next tokens of some answers, one row of logits each.

    A row's token depends on its logits, its settings and its random numbers alone. What the
    settings need is prepared once, for as long as the rows stay the same.
    """

    def __init__(self, answers: Sequence[Answer], device: torch.device):
        self._answers = list(answers)
        self._device = device
        settings = [answer.request.sampling for answer in answers]
        self._changed = [row for row, answer in enumerate(answers) if _changes_logits(answer)]
        self._reporting = [row for row, each in enumerate(settings) if each.logprobs is not None]
        self._drawing = [row for row, each in enumerate(settings) if each.is_drawn]
        drawing = [settings[row] for row in self._drawing]
        self._filters = _Filters(drawing, device) if drawing else None

    def sample(
        self, logits: Tensor
    ) -> tuple[list[int], list[TokenLogprob | None], list[Exception | None]]:
        """Choose tokens.

        Args:
            logits: (rows, vocabulary) in float32; they are changed.

        Returns: The tokens, their log-probabilities where asked for, and what is wrong with each
            row, whose token then means nothing.
        """
        raw = logits[self._reporting].log_softmax(-1) if self._reporting else None
        highest = logits.amax(-1)
        failures: list[Exception | None] = [None] * len(self._answers)
        for row in self._changed:
            try:
                _change(logits[row], self._answers[row])
            except Exception as error:  # a grammar is foreign code
                failures[row] = error
        tokens = logits.argmax(-1)
        if self._filters is not None:
            numbers = [self._answers[row].draw() for row in self._drawing]
            drawn = self._filters.draw(logits[self._drawing], numbers)
            tokens[torch.tensor(self._drawing, device=self._device)] = drawn
        chosen: list[int] = tokens.tolist()
        reports: list[TokenLogprob | None] = [None] * len(chosen)
        if raw is not None:
            for place, row in enumerate(self._reporting):
                most = self._answers[row].request.sampling.logprobs or 0
                reports[row] = _report(raw[place], chosen[row], most)
        for row, is_number in enumerate(torch.isfinite(highest).tolist()):
            if not is_number:
                failures[row] = _not_a_number(self._answers[row])
        return chosen, reports, failures


class _Filters:
    """Temperature and the cuts of the rows that draw."""

    def __init__(self, settings: Sequence[Sampling], device: torch.device):
        def column(value: Callable[[Sampling], float]) -> Tensor:
            values = [[value(each)] for each in settings]
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._temperature = column(lambda each: each.temperature)
        self._min_p = column(lambda each: each.min_p) if any(s.min_p for s in settings) else None
        self._top_p = (
            column(lambda each: each.top_p) if any(s.top_p < 1 for s in settings) else None
        )
        self._top_k = [each.top_k for each in settings]
        self._device = device

    def draw(self, logits: Tensor, numbers: Sequence[float]) -> Tensor:
        """Return a token of each row.

        Args:
            logits: (rows, vocabulary).
            numbers: A random number in [0, 1) for each row.
        """
        logits = logits / self._temperature
        if any(self._top_k):
            logits = logits.masked_fill(logits < self._lowest_of_top_k(logits), -torch.inf)
        weights = torch.softmax(logits, -1)
        if self._min_p is not None:
            least = weights.amax(-1, keepdim=True) * self._min_p
            weights = weights.masked_fill(weights < least, 0)
        if self._top_p is not None:
            weights = weights.masked_fill(weights < self._lowest_of_top_p(weights), 0)
        # The token at which the sum of weights, in the order of the vocabulary, passes the number.
        sums = weights.double().cumsum(-1)
        points = torch.tensor(numbers, dtype=torch.float64, device=self._device)[:, None]
        places = torch.searchsorted(sums, points * sums[:, -1:], right=True)
        return places[:, 0].clamp_(max=logits.shape[-1] - 1)

    def _lowest_of_top_k(self, logits: Tensor) -> Tensor:
        size = logits.shape[-1]
        counts = [min(k, size) if k else size for k in self._top_k]
        most = max(count for count in counts if count < size) if min(counts) < size else 1
        highest = logits.topk(most, -1).values
        place = torch.tensor([[min(count, most) - 1] for count in counts], device=self._device)
        lowest = highest.gather(-1, place)
        unlimited = torch.tensor([[count == size] for count in counts], device=self._device)
        return lowest.masked_fill(unlimited, -torch.inf)

    def _lowest_of_top_p(self, weights: Tensor) -> Tensor:
        """Return the weight of the last of the likeliest tokens that have top_p together."""
        wanted = self._top_p * weights.sum(-1, keepdim=True)  # type: ignore[operator]  # called with a top_p
        most = min(_FIRST_SORTED, weights.shape[-1])
        highest = weights.topk(most, -1).values
        sums = highest.cumsum(-1)
        if most < weights.shape[-1] and bool((sums[:, -1:] < wanted).any()):
            highest = weights.sort(-1, descending=True).values
            sums = highest.cumsum(-1)
        place = (sums < wanted).sum(-1, keepdim=True).clamp_(max=highest.shape[-1] - 1)
        lowest = highest.gather(-1, place)
        return lowest.masked_fill(self._top_p >= 1, 0)  # type: ignore[operator]  # called with a top_p


def _changes_logits(answer: Answer) -> bool:
    sampling = answer.request.sampling
    penalties = sampling.presence_penalty or sampling.frequency_penalty
    return bool(penalties or sampling.logit_bias or answer.request.grammar is not None)


def _change(logits: Tensor, answer: Answer) -> None:
    """Apply penalties, bias and grammar to the logits of a row, (vocabulary,)."""
    sampling = answer.request.sampling
    changes: dict[int, float] = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in answer.counts.items():
            penalty = sampling.presence_penalty + sampling.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
    if changes:
        places = torch.tensor(list(changes), device=logits.device)
        logits[places] += torch.tensor(list(changes.values()), device=logits.device)
    if answer.request.grammar is not None:
        bits = np.frombuffer(answer.request.grammar.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little").astype(bool)[: len(logits)]
        known = len(allowed)  # a model may have more logits than its tokenizer has tokens
        logits[known:] = -torch.inf
        logits[:known].masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)


def _not_a_number(answer: Answer) -> GenerationError:
    return GenerationError(
        f"The answer of {answer.adapter_text} stopped after {answer.answered} tokens: got logits "
        "that are infinite or not numbers, expected finite ones. Check the adapter's weights and "
        "the dtype of the base."
    )


def _report(logprobs: Tensor, token: int, most: int) -> TokenLogprob:
    likeliest: tuple[tuple[int, float], ...] = ()
    if most:
        values, tokens = logprobs.topk(min(most, len(logprobs)))
        likeliest = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), likeliest)
