"""Commands beside this process: what they write, their sentence, cancelling."""

import shutil
import time
from pathlib import Path

import pytest

from lorakit.runs.command import Command, command_line, train_command


@pytest.fixture
def root(adapter_folder, tmp_path):
    shutil.copytree(adapter_folder / "german", tmp_path / "german")
    return tmp_path


def test_a_command_names_what_it_wrote(root, forked_commands):
    command = Command(root, "Convert", ["convert", "german", "made/portable", "--to", "portable"])
    assert command.line == "lorakit convert german made/portable --to portable"
    command.wait(120)
    assert command.is_over and command.has_succeeded and command.problem is None
    assert "made/portable/adapter_model.safetensors" in command.written
    assert all((root / name).is_file() for name in command.written)
    assert command.seconds > 0


def test_an_error_is_the_command_lines_sentence(root, forked_commands):
    command = Command(root, "Convert", ["convert", "german", "german"])
    command.wait(120)
    assert command.problem == (
        "Cannot write an adapter to german: it holds files already, expected a new or empty "
        "directory. Name another one."
    )
    assert command.written == []


def test_a_cancelled_command_writes_nothing(root):
    command = Command(root, "Convert", ["convert", "german", "made"])
    time.sleep(0.3)
    command.cancel()
    command.wait(30)
    assert command.is_over and command.is_cancelled
    assert command.problem == "Convert: cancelled; nothing was written."
    assert [path.name for path in root.iterdir()] == ["german"]


def test_the_words_are_those_of_a_terminal(tmp_path, monkeypatch):
    words = train_command("a b.yaml", ("lora.r=4",), resume=True)
    assert words == ("lorakit", "train", "a b.yaml", "lora.r=4", "--resume")
    line = "lorakit train 'a b.yaml' lora.r=4 --resume"
    assert command_line(tmp_path, words) == f"cd {tmp_path} && {line}"
    monkeypatch.chdir(tmp_path)
    assert command_line(Path.cwd(), words) == line
