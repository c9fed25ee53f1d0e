"""Rows as the model will see them."""

from lorakit.cli.views.dry_run import marked_lines, show_example
from lorakit.runs.data_preview import SHOWN_TOKENS, shorten_middle
from lorakit.training.tasks import PreviewExample


def test_tokens_that_count_are_marked_from_below(capsys):
    show_example(
        1,
        PreviewExample(
            ["<s>", "2", "+", "2", "=", "4", "</s>"],
            [False] * 5 + [True] * 2,
            "2 of 7 tokens count",
        ),
    )
    assert capsys.readouterr().out == (
        "  1. 7 tokens; 2 of 7 tokens count\n     <s> 2 + 2 = 4 </s>\n                 ^ ^^^^\n"
    )


def test_a_row_without_marks_has_its_note(capsys):
    show_example(2, PreviewExample(["[CLS]", "good", "[SEP]"], [False] * 3, "label: positive"))
    assert capsys.readouterr().out == ("  2. 3 tokens; label: positive\n     [CLS] good [SEP]\n")


def test_control_characters_of_a_label_are_shown_escaped(capsys):
    show_example(1, PreviewExample(["a\x1b[31m"], [False], "label: good\n\x1b[2Jbad"))
    assert capsys.readouterr().out == (
        "  1. 1 tokens; label: good\\n\\x1b[2Jbad\n     a\\x1b[31m\n"
    )


def test_lines_fit_and_line_breaks_are_shown():
    tokens = ["word\n"] * 40
    lines = list(marked_lines(tokens, [True] * 40, 30))
    assert all(len(line) <= 30 for line in lines)
    assert lines[0] == "word\\n word\\n word\\n word\\n"
    assert lines[1] == "^^^^^^ ^^^^^^ ^^^^^^ ^^^^^^"


def test_wide_characters_keep_the_marks_below_their_token():
    assert list(marked_lines(["漢字", "x"], [False, True], 20)) == ["漢字 x", "     ^"]


def test_a_long_row_loses_its_middle():
    tokens, counted = shorten_middle([str(i) for i in range(1000)], [False] * 999 + [True])
    assert len(tokens) == len(counted) == SHOWN_TOKENS + 1
    assert tokens[-1] == "999"
    assert counted[-1]
