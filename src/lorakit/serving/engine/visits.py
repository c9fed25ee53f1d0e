"""Rows that take part in one step beside the running answers, to see what an adapter does.

An adapter is probed this way while others are answered: a step reads every weight once for all of
its rows, so a few more rows cost far less than a forward pass for them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorakit.serving.engine.batch_cache import KeysValues
from lorakit.serving.engine.runner import ModelRunner, cache_of, keys_values

VISITING_ROWS = 2
"""One without the adapter, and one with it."""


@dataclass(frozen=True)
class VisitOutput:
    """What the rows of a visit gave: logits of the next token, (vocabulary,) in float32.

    Attributes:
        base: Without the adapter.
        adapted: With it.
        is_finite: Whether the adapted row has finite logits, keys and values in all layers.
    """

    base: Tensor
    adapted: Tensor
    is_finite: bool


@dataclass(eq=False)
class Visit:
    """An adapter's rows, which all read the same token after the first one of the vocabulary.

    Attributes:
        adapter: The adapter's name in the model.
        token: What they read.
        result: What they gave.
    """

    adapter: str
    token: int
    result: Future[VisitOutput] = field(default_factory=Future)

    @property
    def names(self) -> list[str | None]:
        """The adapter of each row."""
        return [None, self.adapter]

    def finish(self, logits: Tensor, layers: Sequence[KeysValues | None]) -> None:
        """Answer whoever waits.

        Args:
            logits: (2, vocabulary) in float32.
            layers: Keys and values of the adapted row.
        """
        # Attention may drop an infinite key, so finite logits do not suffice.
        last = [each[..., -1, :].float().sum() for pair in layers if pair for each in pair]
        sums = torch.stack([*last, logits[-1].sum()])
        base, adapted = logits.clone()
        output = VisitOutput(base, adapted, bool(sums.isfinite().all()))
        if self.result.set_running_or_notify_cancel():
            self.result.set_result(output)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits that there is no output, once."""
        if not self.result.done() and self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)

    def run_alone(self, runner: ModelRunner, first_token: Sequence[KeysValues | None]) -> None:
        """Run the rows in a separate forward pass.

        Args:
            runner: Calls the model.
            first_token: Keys and values of the token before, (1, heads, 1, width) of each layer.
        """
        rows = len(self.names)
        repeated = [
            pair and (pair[0].expand(rows, -1, -1, -1), pair[1].expand(rows, -1, -1, -1))
            for pair in first_token
        ]
        cache = cache_of(repeated)
        ids = torch.full((rows, 1), self.token, device=runner.device)
        try:
            logits = runner.forward(
                ids, cache, self.names, ids.new_ones(rows, 2), ids.new_ones(rows, 1)
            )
        except Exception as error:
            runner.close()
            self.fail(error)
            return
        self.finish(logits, [pair and (pair[0][-1:], pair[1][-1:]) for pair in keys_values(cache)])
