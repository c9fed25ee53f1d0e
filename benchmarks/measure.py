"""Timing that compares: variants take turns, and ratios are taken inside a round."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

TIME = "time"
Quantiles = tuple[float, float, float]
"""The 20th, 50th and 80th percentile."""


class Stopwatch:
    """Times one sample; waits for the device before every reading of the clock."""

    def __init__(self, device: str = "cpu"):
        self._on_cuda = device.startswith("cuda")
        self.laps: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Restart the clock: what the sample did so far was preparation."""
        self._began = self._now()

    def lap(self, name: str, times: int = 1) -> None:
        """Note the seconds since the start, divided by how often the sample did its work."""
        self.laps[name] = (self._now() - self._began) / times

    def _now(self) -> float:
        if self._on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


Sample = Callable[[Stopwatch], None]


@dataclass(frozen=True)
class Timings:
    """Seconds of every round, by variant and lap.

    Attributes:
        seconds: Seconds by (variant, lap), a value for each round.
    """

    seconds: dict[tuple[str, str], list[float]]

    def of(self, variant: str, lap: str = TIME) -> list[float]:
        """Return the seconds of each round."""
        return self.seconds[variant, lap]

    def by_variant(self, lap: str = TIME) -> dict[str, list[float]]:
        """Return the seconds of each round of every variant that noted this lap."""
        return {name: rounds for (name, noted), rounds in self.seconds.items() if noted == lap}


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """Return the order of one round: each variant comes first in turn.

    >>> turns(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    first = round_number % len(names)
    return [*names[first:], *names[:first]]


def interleaved(
    samples: Mapping[str, Sample], *, rounds: int, warmup: int = 1, device: str = "cpu"
) -> Timings:
    """Time variants in turn, so that a change of the machine's pace meets all of them alike.

    Args:
        samples: What to time, by variant. A sample may prepare and then `start` the watch, and
            must note at least one `lap`.
        rounds: Rounds that count.
        warmup: Rounds before them that do not.
        device: Device that the samples run on.
    """
    names = list(samples)
    seconds: dict[tuple[str, str], list[float]] = {}
    was_collecting = gc.isenabled()
    try:
        for number in range(warmup + rounds):
            gc.enable()
            gc.collect()
            gc.disable()
            for name in turns(names, number):
                watch = Stopwatch(device)
                samples[name](watch)
                if number >= warmup:
                    for lap, value in watch.laps.items():
                        seconds.setdefault((name, lap), []).append(value)
    finally:
        if was_collecting:
            gc.enable()
    laps = list(dict.fromkeys(lap for _, lap in seconds))
    return Timings({(name, lap): seconds[name, lap] for lap in laps for name in names})


def repeated(work: Callable[[], object], times: int, lap: str = TIME) -> Sample:
    """Return a sample that does short work several times and notes the time of one."""

    def sample(watch: Stopwatch) -> None:
        watch.start()
        for _ in range(times):
            work()
        watch.lap(lap, times)

    return sample


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return the 20th, 50th and 80th percentile, interpolated linearly.

    >>> quantiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (2.0, 3.5, 5.0)
    """
    ordered = sorted(values)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return at(0.2), at(0.5), at(0.8)
