"""Runs made once by the command line itself, for the commands that need a trained adapter."""

from functools import cache
from pathlib import Path

import pytest
import typer.testing
import yaml
from typer.testing import CliRunner

from lorakit.cli.main import app

# Only the tests of the command line train through it; one epoch on 48 rows takes a second.
QUICK = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.01}


class Cli:
    """Calls the command line in this process."""

    def __init__(self) -> None:
        self._runner = CliRunner()

    def __call__(self, *words, **options):
        return self._runner.invoke(app, [str(word) for word in words], **options)


@pytest.fixture(scope="session", autouse=True)
def _one_command_line():
    """Build the command line of all commands once, not for each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.testing._get_command))
        yield


@pytest.fixture(scope="session")
def cli() -> Cli:
    return Cli()


def write_recipe(directory: Path, **values) -> Path:
    """Write a recipe; its run directory is `run` beside it."""
    training = {**QUICK, **values.pop("training", {})}
    path = directory / "recipe.yaml"
    values = {"output": str(directory / "run"), **values, "training": training}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def cls_recipe(tmp_path, tiny_distilbert_dir, cls_csv) -> Path:
    """A recipe that has not been run."""
    data = {"train": cls_csv, "max_length": 32}
    return write_recipe(tmp_path, model=tiny_distilbert_dir, task="SEQ_CLS", data=data)


def trained(cli, directory: Path, **values):
    recipe = write_recipe(directory, **values)
    result = cli("train", recipe)
    assert result.exit_code == 0, result.output
    return directory / "run", result


@pytest.fixture(scope="session")
def cls_training(cli, tmp_path_factory, tiny_distilbert_dir, cls_csv):
    """A finished run that classifies, and what the command line said."""
    data = {"train": cls_csv, "max_length": 32}
    folder = tmp_path_factory.mktemp("cls")
    return trained(cli, folder, model=tiny_distilbert_dir, task="SEQ_CLS", data=data)


@pytest.fixture(scope="session")
def lm_training(cli, tmp_path_factory, tiny_llama_dir, prompt_jsonl):
    """A finished run that writes text, and what the command line said."""
    data = {"train": prompt_jsonl, "max_length": 64}
    folder = tmp_path_factory.mktemp("lm")
    return trained(cli, folder, model=tiny_llama_dir, task="CAUSAL_LM", data=data)


@pytest.fixture
def cls_run(cls_training) -> Path:
    return cls_training[0]


@pytest.fixture
def lm_run(lm_training) -> Path:
    return lm_training[0]


@pytest.fixture(scope="session")
def quantized_run(cli, tmp_path_factory, tiny_distilbert_dir, cls_csv):
    """A finished run that classifies, on a base in 4 bits."""
    values = {
        "model": tiny_distilbert_dir,
        "task": "SEQ_CLS",
        "data": {"train": cls_csv, "max_length": 32},
        "quantization": {"bits": 4, "compute_dtype": "float32"},
    }
    run, result = trained(cli, tmp_path_factory.mktemp("quantized"), **values)
    assert "dtypes: factors float32, base nf4 (float32)" in result.stdout
    return run
