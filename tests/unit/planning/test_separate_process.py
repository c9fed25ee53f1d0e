"""A plan made in a separate process."""

import subprocess

from forked import Program
from lorakit.planning import plan
from lorakit.planning import separate_process as apart


def test_a_plan_made_apart_is_the_same(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it; nobody else comes
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    made = apart.plan_in_separate_process(recipe(), 2)
    assert made is not None
    monkeypatch.undo()
    here = plan(recipe(), processes=2)
    assert (made.peak_bytes, made.notes) == (here.peak_bytes, here.notes)


def test_there_is_no_plan_apart_where_none_can_be_made(recipe, monkeypatch):
    ended = []

    def forked_run(command, env, **_):
        """Run `python -m lorakit.planning.separate_process` with the libraries loaded."""
        _, _, module, *words = command
        code = f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
        with Program(code, *words, environment=env) as program:
            ended.append(program.finished())
        raise subprocess.CalledProcessError(ended[-1].returncode, command)

    monkeypatch.setattr(apart.subprocess, "run", forked_run)
    assert apart.plan_in_separate_process(recipe(**{"lora.target_modules": ["q_porj"]}), 2) is None
    assert ended[0].returncode == 1 and "TargetError" in ended[0].stderr
