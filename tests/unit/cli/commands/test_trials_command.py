"""What `lorakit tune` and `lorakit study` share."""

from pathlib import Path

import pytest
import typer

from lorakit.cli.commands.trials_command import run_with_progress


@pytest.mark.parametrize("command", ["tune", "study"])
def test_an_address_without_a_cluster_is_refused_immediately(cli, cls_recipe, command, monkeypatch):
    # Another test may have left a Ray running in this process, which would be used as it is.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    result = cli(command, cls_recipe, "--address", "nowhere")
    assert result.exit_code == 2
    assert "--address: got 'nowhere', expected host:port" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_recipe_is_run_with_its_changes_and_the_result_is_returned(cls_recipe):
    def run(recipe, *, resume, address, on_event):
        return recipe.lora.r, resume, address

    result = run_with_progress("tune", run, cls_recipe, ["lora.r=3"], None, True)
    assert result == (3, True, None)


@pytest.mark.parametrize("is_begun", [False, True])
def test_ctrl_c_says_how_to_resume_what_was_begun(cls_recipe, is_begun, capsys):
    def run(recipe, *, resume, address, on_event):
        on_event.is_open = is_begun
        raise KeyboardInterrupt

    recipe = cls_recipe.rename(Path(cls_recipe.parent, "a b.yaml"))
    with pytest.raises(typer.Exit) as caught:
        run_with_progress("study", run, recipe, ["lora.r=3"], "here:1", False)
    assert caught.value.exit_code == 130
    command = f"lorakit study '{recipe}' lora.r=3 --address here:1 --resume"
    how = f"Finished trials are kept; resume with: {command}" if is_begun else "Nothing has been"
    assert how in capsys.readouterr().err
