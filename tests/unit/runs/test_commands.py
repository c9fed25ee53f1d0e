"""The command lines that the studio runs."""

from pathlib import Path

from lorakit.runs.commands import command_line, train_command


def test_the_words_are_those_of_a_terminal(tmp_path, monkeypatch):
    words = train_command("a b.yaml", ("lora.r=4",), resume=True)
    assert words == ("lorakit", "train", "a b.yaml", "lora.r=4", "--resume")
    line = "lorakit train 'a b.yaml' lora.r=4 --resume"
    assert command_line(tmp_path, words) == f"cd {tmp_path} && {line}"
    monkeypatch.chdir(tmp_path)
    assert command_line(Path.cwd(), words) == line
