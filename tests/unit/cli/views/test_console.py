"""Drawing: nothing is cut off in a pipe, everything fits on a narrow terminal."""

import io

import pytest
from rich.console import Console

from lorakit.cli.views import console
from lorakit.errors import escaped

WIDE = ["model.layers.0.self_attn.q_proj." + "x" * 60, "1,024", "word " * 12]


def test_a_piped_table_is_as_wide_as_it_needs(capsys):
    console.table(["module", "rank", "note"], [WIDE, ["m", 8, None]])
    lines = capsys.readouterr().out.splitlines()
    assert WIDE[0] in lines[2]
    assert WIDE[2].strip() in lines[2]
    assert not any(line.endswith(" ") for line in lines)


def test_a_piped_table_of_a_given_width_folds_and_drops_nothing(capsys):
    console.table(["module", "note"], [WIDE[:2]], max_width=60)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("x") == 60 and "…" not in text


def test_numbers_are_aligned_to_the_right(capsys):
    console.table(["module", "rank"], [["a", "1,024"], ["b", 8]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("1,024")
    assert len(lines[3]) == len(lines[2])


def test_a_narrow_terminal_folds_and_drops_nothing(monkeypatch):
    screen = io.StringIO()
    narrow = Console(file=screen, width=40, force_terminal=True, no_color=True, markup=False)
    monkeypatch.setattr(console, "console", lambda **_: narrow)
    console.table(["module", "note"], [WIDE[:2]])
    text = screen.getvalue()
    assert "…" not in text
    assert text.count("x") == 60


def test_long_lines_and_brackets_are_printed_as_they_are(capsys):
    console.say("[bold]" + "y" * 200)
    assert capsys.readouterr().out == "[bold]" + "y" * 200 + "\n"


def test_no_color_is_respected(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.complain("Error: no.")
    assert "\x1b[31m" not in capsys.readouterr().err


def test_closing_names_files_with_their_sizes_and_commands(tmp_path, capsys):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"x" * 2345)
    console.closing([file], {"lorakit inspect run": "shows the adapter"})
    assert capsys.readouterr().out == (
        f"\nWrote\n  {file}  (2.3 kB)\n\nNext\n  lorakit inspect run  # shows the adapter\n"
    )


@pytest.mark.parametrize("text", ["[red]a[/red]", "[/]", "\x1b[31mred", "a\u202eb", "half \ud800"])
def test_foreign_text_neither_styles_nor_controls_the_terminal(capsys, text):
    console.say(text)
    console.complain(f"Error: {text}")
    console.pairs({"name": text})
    console.table(("text", text), [(1, text)])
    out = "".join(capsys.readouterr())
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\ud800" not in out
    escaped_text = escaped(text)
    assert out.count(escaped_text) == 5
