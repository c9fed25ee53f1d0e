"""What Ray Tune runs for a trial of a group; its training is that of a stand-in."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from lorakit.tuning.relay import relay_trial


class Call:
    """A method of an actor, called at once."""

    def __init__(self, function):
        self.remote = function


class Group:
    def __init__(self, reports, error=None, free=True):
        self.calls, self._reports, self._error, self._free = [], list(reports), error, free
        for name in ("take_place", "train", "next_report", "stop"):
            setattr(self, name, Call(getattr(self, f"_{name}")))

    def _take_place(self):
        return self._free

    def _train(self, sample, name):
        self.calls.append(("train", sample, name))
        return self._error

    def _next_report(self, name):
        return self._reports.pop(0) if self._reports else None

    def _stop(self, name):
        self.calls.append(("stop", name))


@pytest.fixture
def reported(monkeypatch):
    import ray
    from ray import tune

    def get(value):
        if isinstance(value, Exception):
            raise value
        return value

    reported = []
    context = SimpleNamespace(get_trial_name=lambda: "trial-003")
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(tune, "get_context", lambda: context)
    monkeypatch.setattr(tune, "report", reported.append)
    return reported


def test_reports_are_relayed_from_the_group_that_has_room(reported):
    full, free = Group([], free=False), Group([{"epoch": 1}, {"epoch": 2}])
    relay_trial({"lora.r": 2}, [full, free])
    assert reported == [{"epoch": 1}, {"epoch": 2}]
    assert free.calls[0] == ("train", {"lora.r": 2}, "trial-003") and not full.calls


def test_a_group_that_was_killed_is_passed_over_while_another_lives(reported):
    from ray.exceptions import ActorDiedError

    dead, living = Group([], free=ActorDiedError()), Group([{"epoch": 1}])
    relay_trial({}, [dead, living])
    assert reported == [{"epoch": 1}]
    with pytest.raises(ActorDiedError):
        relay_trial({}, [dead, dead])


def test_an_error_of_the_trial_is_raised_and_a_stop_is_passed_on(reported, monkeypatch):
    from ray import tune

    with pytest.raises(ValueError, match="diverged"):
        relay_trial({}, [Group([], ValueError("diverged"))])

    def stopped(report):
        raise SystemExit

    monkeypatch.setattr(tune, "report", stopped)
    group = Group([{"epoch": 1}, {"epoch": 2}])
    with pytest.raises(SystemExit):
        relay_trial({}, [group])
    assert group.calls[-1] == ("stop", "trial-003")


@pytest.mark.parametrize("module", ["relay", "trial_group"])
def test_it_imports_no_torch(module):
    """A handle of an actor imports the file of its class, in each process that gets it."""
    program = f"import sys, lorakit.tuning.{module}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
