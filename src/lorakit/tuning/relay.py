"""The process that Ray Tune has for a trial of a group: it relays reports and trains nothing.

It imports neither torch nor the trainer, so that it starts quickly and is small.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

_WAIT_S = 0.2


def relay_trial(sample: dict[str, Any], groups: Sequence[Any]) -> None:
    """Have a group train one trial, and report its epochs to Ray Tune.

    If Ray stops the trial, the group saves it and goes on without it.

    Args:
        sample: Sample of Ray Tune.
        groups: Handles of `TrialGroup` actors, which have room for all trials that run at once.

    Raises:
        Exception: What ended the trial.
    """
    import ray
    from ray import tune

    name = str(tune.get_context().get_trial_name())
    group = _with_room(groups)
    training = group.train.remote(sample, name)
    try:
        while (report := ray.get(group.next_report.remote(name))) is not None:
            tune.report(report)
        ray.get(training)
    finally:
        group.stop.remote(name)


def _with_room(groups: Sequence[Any]) -> Any:
    """Take a place in a group; wait if the trials before are still saving."""
    import ray

    while True:
        for group in groups:
            if ray.get(group.take_place.remote()):
                return group
        time.sleep(_WAIT_S)
