"""Which requests wait, which are read next, and which decode."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence

from lorakit.serving.engine.request import Answer

_MOST_PADDING = 0.25
"""Share of padding that prompts read together may have."""


class Scheduler:
    """First come, first served; the youngest gives way when memory runs out.

    Attributes:
        waiting: Requests without a place, the next first.
        running: Requests that decode, in the order of the batch's rows.
    """

    def __init__(self, chunk_tokens: int):
        self._chunk_tokens = chunk_tokens
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []

    def admit(
        self, fits: Callable[[Sequence[int]], bool], is_cached: Callable[[Answer], bool]
    ) -> list[Answer]:
        """Take the requests out of the queue whose prompts are read next, together.

        Args:
            fits: Whether rows of these numbers of tokens can join the batch.
            is_cached: Whether the prefix cache has the beginning of a prompt, which is then read
                alone.
        """
        group: list[Answer] = []
        lengths: list[int] = []
        while self.waiting:
            answer = self.waiting[0]
            tokens = len(answer.tokens)
            alone = answer.failures > 0 or is_cached(answer)
            if group and (alone or not self._pads_little([*lengths, tokens])):
                break
            if not fits([*lengths, tokens]):
                break
            lengths.append(tokens)
            group.append(self.waiting.popleft())
            if alone:
                break
        return group

    def put_back(self, answer: Answer) -> None:
        """Let a request that lost its place wait before those that came later."""
        insort(self.waiting, answer, key=lambda each: each.number)

    def youngest(self) -> int:
        """Return the row of the request that came last."""
        return max(range(len(self.running)), key=lambda row: self.running[row].number)

    def leave(self, row: int) -> Answer:
        """Take a row out; the last takes its place, as in the batch cache."""
        answer = self.running[row]
        self.running[row] = self.running[-1]
        self.running.pop()
        return answer

    def _pads_little(self, lengths: Sequence[int]) -> bool:
        padded = len(lengths) * max(lengths)
        return padded <= self._chunk_tokens and padded - sum(lengths) <= _MOST_PADDING * padded
