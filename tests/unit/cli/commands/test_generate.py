"""`lorakit generate` for each kind of adapter, and where its texts come from."""

import shutil

import pytest
from transformers import AutoModelForCausalLM

from lorakit.cli.commands.generate import format_label, read_texts, show_tags
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.inference import LabelSet, Numbers, TaggedWord


def test_one_prompt_gives_the_answer_alone_on_stdout(cli, lm_run):
    result = cli("generate", lm_run, "what colour is the grass?", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.stderr
    assert "lorakit" not in result.stdout
    assert "grass" not in result.stdout
    assert f'lorakit generate {lm_run} "..." --base' in result.stderr


def test_with_base_both_answers_stand_below_their_prompt(cli, lm_run):
    prompts = ["what colour is the grass?", "what colour is the sky?"]
    result = cli("generate", lm_run, *prompts, "--max-new-tokens", 4, "--base")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("> ")] == [f"> {text}" for text in prompts]
    assert lines.count("[adapter]") == lines.count("[base alone]") == 2


def test_drawing_is_repeatable_by_its_seed(cli, lm_run):
    words = ["generate", lm_run, "what", "--temperature", 2, "--max-new-tokens", 12]
    first, again, other = (cli(*words, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other
    assert cli(*words, "--seed", 2**63).exit_code == 2  # torch takes 64 bits


def test_a_text_gets_its_label_with_the_probability(cli, cls_run):
    result = cli("generate", cls_run, "the film was good")
    assert result.exit_code == 0, result.stderr
    header, _, row = result.stdout.splitlines()
    assert header.split() == ["label", "probability", "text"]
    label, probability, *text = row.split()
    assert label in ("positive", "negative")
    assert 50 <= float(probability.removesuffix("%")) <= 100
    assert " ".join(text) == "the film was good"


def test_texts_may_come_line_by_line_from_stdin(cli, cls_run):
    result = cli("generate", cls_run, "--base", input="a good film\n\na bad film\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0].split()[2:4] == ["base", "alone"]
    assert [line.split()[-3:] for line in result.stdout.splitlines()[2:]] == [
        ["a", "good", "film"],
        ["a", "bad", "film"],
    ]
    assert "untrained head" in result.stderr


def test_words_are_shown_with_their_tags(monkeypatch, capsys):
    words = [TaggedWord("Anna", "B-PER", 0.9), TaggedWord("lives", "O", 0.8)]
    monkeypatch.setattr("lorakit.inference.tag", lambda *_, **__: [words])
    show_tags(None, ["Anna lives"], base=False)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Anna/B-PER lives"
    assert lines[3].split() == ["Anna", "B-PER", "90.0%"]
    show_tags(None, ["Anna lives"], base=True)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ("adapter: Anna/B-PER lives\nbase alone: Anna/B-PER lives\n")


def test_texts_come_from_one_place(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("one\n \ntwo\n")
    assert read_texts([], file) == ["one", "two"]
    with pytest.raises(ConfigError, match="Two sources of texts"):
        read_texts(["x"], file)
    with pytest.raises(MissingFileError, match=r"No file .*none\.txt for --file"):
        read_texts([], tmp_path / "none.txt")
    with pytest.raises(MissingFileError, match="is a directory"):
        read_texts([], tmp_path)
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="byte 0 is not UTF-8"):
        read_texts([], file)


def test_nothing_on_stdin_is_an_error(cli, cls_run):
    result = cli("generate", cls_run, input="\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: No text in stdin")


def test_on_a_terminal_without_a_text_it_does_not_wait(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(ConfigError, match="No text: got none on the command line"):
        read_texts([], None)


def test_top_p_without_drawing_is_an_error(cli, lm_run):
    result = cli("generate", lm_run, "what", "--top-p", 0.9)
    assert result.exit_code == 2
    assert "Add --temperature 1, or remove --top-p." in result.stderr


def test_an_adapter_for_another_base_is_refused(cli, lm_run, tiny_gpt2_dir):
    result = cli("generate", lm_run, "what", "--base-model", tiny_gpt2_dir)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "made for another base than this GPT2LMHeadModel" in result.stderr


def test_other_weights_of_a_base_that_is_named_are_noted(cli, lm_run, tiny_llama_dir, tmp_path):
    other = shutil.copytree(tiny_llama_dir, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.norm.weight.data += 1
    model.save_pretrained(other)
    said = "has other weights than the base of the training"
    assert said in cli("generate", lm_run, "what", "--base-model", other).stderr
    assert said in cli("merge", lm_run, tmp_path / "merged", "--base-model", other).stdout
    assert said not in cli("generate", lm_run, "what", "--base-model", tiny_llama_dir).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "x", "--url", "http://h", "--base-model", "b"], "--base-model applies to a model"),
        (["a", "x", "--url", "http://h", "--unquantized"], "--unquantized applies to a model"),
        (["x", "--adapter", "a"], "--adapter applies to a running server: got no --url"),
        (["--url", "http://h"], "No adapter: got none"),
        (["a", "x", "--url", "h:80"], "Not the address of a server"),
    ],
)
def test_what_does_not_go_with_a_server_or_without_one_is_refused(cli, words, message):
    result = cli("generate", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_table_is_for_predict(tmp_path):
    with pytest.raises(ConfigError, match="lorakit predict RUN"):
        read_texts([], tmp_path / "reviews.csv")


def test_labels_and_numbers_are_shown_in_one_cell():
    several = LabelSet(("a", "b"), {"a": 0.75, "b": 0.5, "c": 0.1})
    assert format_label(several) == ("a 75.0%, b 50.0%", None)
    assert format_label(LabelSet((), {"a": 0.1})) == ("(none)", None)
    assert format_label(Numbers({"x": 0.25, "y": 1234.5678})) == ("0.25, 1234.57", None)
