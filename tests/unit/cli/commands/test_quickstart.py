"""What `lorakit quickstart` shows."""

from pathlib import Path

import pytest

from lorakit.cli.commands import quickstart as quickstart_module
from lorakit.cli.commands.quickstart import free_directory, show_example, show_methods
from lorakit.quickstart.compare import MethodResult
from lorakit.quickstart.run import Example, QuickstartResult

RESULT = QuickstartResult(
    training=None,  # type: ignore[arg-type]
    methods=(
        MethodResult("LoRA", 0.12, 0.857, 181_760, 736_000, 65.4),
        MethodResult("full fine-tuning", 0.12, 0.861, 4_494_592, 18_000_000, 95.0),
    ),
    examples=(),
    checkpoint_bytes=8_989_128,
    guessing_accuracy=0.206,
)


def test_the_table_has_before_and_after(capsys):
    show_methods(RESULT)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "method accuracy before after trained saved size time" in lines
    assert "LoRA 12.0% 85.7% 181,760 736.0 kB 1 min 05 s" in lines
    assert "full fine-tuning 12.0% 86.1% 4,494,592 18.0 MB 1 min 35 s" in lines
    assert any(
        "guessing the commonest package gives 20.6%" in line and "9.0 MB" in line for line in lines
    )


def test_an_example_shows_text_truth_prediction_and_probability(capsys):
    text = "Return the root.\n\n" + "word " * 40 + "\nthird\nfourth"
    show_example(Example(text, "xml", "tkinter", 0.634))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "  | Return the root."
    assert lines[3].endswith(" ...")
    assert all(len(line) <= 80 for line in lines)
    assert lines[-2] == "  | ..."
    assert lines[-1] == "  from xml; the model says tkinter (63%): wrong"


def test_a_second_quickstart_takes_the_next_free_directory(tmp_path):
    wished = tmp_path / "quickstart-run"
    assert free_directory(wished) == wished
    wished.mkdir()
    (tmp_path / "quickstart-run-2").mkdir()
    assert free_directory(wished) == tmp_path / "quickstart-run-3"


@pytest.fixture
def small(monkeypatch, tiny_llama_dir):
    """Make the quickstart small: a tiny base, 30 rows of ten labels, one short epoch."""
    from lorakit.quickstart import run
    from lorakit.quickstart.docstrings import Docstring, DocstringSplits, write_splits

    labels = tuple("abcdefghij")
    rows = tuple(Docstring(f"{label} number {i}", label) for i in range(3) for label in labels)

    def write_rows(folder, *, seed):
        return write_splits(DocstringSplits(rows[10:], rows[:10], labels), folder)

    monkeypatch.setattr(run, "base_model_path", lambda: Path(tiny_llama_dir))
    monkeypatch.setattr(run, "write_docstrings", write_rows)
    monkeypatch.setattr(run, "EPOCHS", 1)
    monkeypatch.setattr(run, "MAX_LENGTH_TOKENS", 24)


def test_what_has_not_learnt_is_warned_of_as_in_the_report(cli, small, tmp_path, monkeypatch):
    from lorakit.analysis import guessing

    monkeypatch.setattr(guessing.Reference, "beaten_by", lambda *_, **__: False)
    result = cli("quickstart", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = (tmp_path / "out" / "lora" / "report.md").read_text()
    (line,) = [line.strip() for line in result.stdout.splitlines() if "to have been learnt" in line]
    assert f"**{line}**" in report


def test_the_whole_road(small, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart-run").mkdir()
    result = cli("quickstart", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "ten largest packages" in result.stdout
    assert "Training in quickstart-run-2/lora" in result.stdout
    assert result.stdout.count("A docstring the model has not been trained on") == 3
    assert "  quickstart-run-2/lora/adapter/  (" in result.stdout
    assert 'lorakit generate quickstart-run-2/lora "Parse a date."' in result.stdout
    tried = cli("generate", "quickstart-run-2/lora", "Parse a date.")
    assert tried.exit_code == 0, tried.stderr


def test_an_output_that_is_taken_is_refused(cli, tmp_path):
    (tmp_path / "mine").touch()
    result = cli("quickstart", "--output", tmp_path)
    assert result.exit_code == 2
    assert f"Error: Cannot write to output {tmp_path}" in result.stderr


def test_ctrl_c_ends_it_with_a_word(cli, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart_module, "QuickstartView", interrupt)
    result = cli("quickstart", "--output", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")
