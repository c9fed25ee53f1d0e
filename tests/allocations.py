"""Count the bytes torch allocates on the CPU, those inside its own operators included."""

from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Allocations:
    """What a call allocated, in bytes."""

    largest: int
    """The largest single buffer."""
    peak: int
    """The most that was alive at once, beyond what was alive before the call."""
    sizes: tuple[int, ...]
    """Every buffer, in the order of allocation."""


def allocations_of(call):
    """Run a function without arguments and return what it allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    sizes = tuple(change for change in changes if change > 0)
    return Allocations(max(sizes, default=0), peak, sizes)
