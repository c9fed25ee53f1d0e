"""A plan made in a separate process."""

import subprocess

import pytest

from lorakit.planning import plan
from lorakit.planning import separate_process as apart

pytestmark = pytest.mark.usefixtures("forked_commands")


def test_a_plan_made_apart_is_the_same(recipe, monkeypatch):
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "2")  # as a launcher sets it; nobody else comes
        launched.setenv("ACCELERATE_USE_FSDP", "true")
        made = apart.plan_in_separate_process(recipe(), 2)
    assert made is not None
    here = plan(recipe(), processes=2)
    assert (made.peak_bytes, made.notes) == (here.peak_bytes, here.notes)


def test_there_is_no_plan_apart_where_none_can_be_made(recipe, monkeypatch):
    ended = []
    run = subprocess.run

    def noted(command, *, check, **options):
        ended.append(run(command, **options))
        ended[-1].check_returncode()

    monkeypatch.setattr(apart.subprocess, "run", noted)
    assert apart.plan_in_separate_process(recipe(**{"lora.target_modules": ["q_porj"]}), 2) is None
    assert ended[0].returncode == 1 and "TargetError" in ended[0].stderr
