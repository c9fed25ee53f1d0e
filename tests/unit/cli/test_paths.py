"""What a user may name as an adapter."""

import pytest

from lorakit.cli.paths import adapter_location, path_beside, require_place_of_file, run_of
from lorakit.errors import ConfigError, MissingFileError


@pytest.fixture
def run(tmp_path):
    (tmp_path / "good" / "adapter").mkdir(parents=True)
    (tmp_path / "good" / "recipe.yaml").touch()
    (tmp_path / "good" / "adapter" / "adapter_config.json").touch()
    return tmp_path / "good"


def test_a_run_and_its_adapter_are_the_same(run):
    assert adapter_location(str(run)) == run / "adapter"
    assert adapter_location(str(run / "adapter")) == run / "adapter"
    assert run_of(run / "adapter") == run


def test_an_adapter_may_stand_alone(run, tmp_path):
    (run / "adapter").rename(tmp_path / "alone")
    assert run_of(adapter_location(str(tmp_path / "alone"))) is None


def test_a_recipe_beside_an_adapter_of_another_name_is_not_its_own(run):
    (run / "adapter").rename(run / "of-peft")
    assert run_of(adapter_location(str(run / "of-peft"))) is None
    (run / "of-peft").rename(run / "checkpoint-4")
    assert run_of(run / "checkpoint-4") == run


def test_a_file_has_a_place_of_its_own(run, tmp_path):
    for free in (tmp_path / "new" / "plot.png", run / "recipe.yaml"):
        require_place_of_file(free, "the plot")
    for taken, why in ((run, "it is a folder"), (run / "recipe.yaml" / "p.png", "is a file")):
        with pytest.raises(ConfigError, match=f"Cannot write the plot to '{taken}': .*{why}"):
            require_place_of_file(taken, "the plot")


def test_what_is_no_directory_may_be_a_hub_id():
    assert adapter_location("someone/adapter") == "someone/adapter"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "recipe.yaml",
            "got a run that has not finished, expected adapter_config.json there or in adapter/. "
            "Finish it with `lorakit train {path}/recipe.yaml --resume`.",
        ),
        (
            "config.json",
            "got a checkpoint without an adapter, expected adapter_config.json there or in "
            "adapter/. Train an adapter for it with `lorakit train`.",
        ),
        (
            "notes.txt",
            "got a directory without one, expected adapter_config.json there or in adapter/. "
            "Name the directory of a run, or its adapter/.",
        ),
    ],
)
def test_anything_else_is_distinguished(tmp_path, file, message):
    (tmp_path / file).touch()
    with pytest.raises(MissingFileError) as caught:
        adapter_location(str(tmp_path))
    expected = message.format(path=tmp_path)
    assert str(caught.value) == f"No adapter in {tmp_path}: {expected}"


def test_a_directory_is_beside_another_whatever_that_is_called_by(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert path_beside(".", "-vllm") == (tmp_path / "a" / "b-vllm").resolve()
    assert path_beside("..", "-vllm") == (tmp_path / "a-vllm").resolve()
    assert str(path_beside("c/", "-vllm")) == "c-vllm"
