"""Answers while they are written: alone, side by side, and one below the other."""

import io

import pytest
from rich.console import Console

from lorakit.cli.views import chat

HEADINGS = ("german", "base")
PARTS = [(0, "eins "), (1, "one "), (1, "two"), (0, "zwei")]


@pytest.fixture
def screen(monkeypatch):
    """Show on a terminal of a given width; return it."""

    def make(width, is_terminal=True, height=20):
        made = Console(
            file=io.StringIO(),
            width=width,
            height=height,
            force_terminal=is_terminal,
            color_system=None,
            markup=False,
        )
        monkeypatch.setattr(chat, "console", lambda: made)
        monkeypatch.setattr(chat, "say", lambda text="", style=None: made.print(text))
        return made

    return make


def test_one_answer_is_shown_as_it_comes_without_a_heading(capsys):
    seen = []

    def parts():
        for part in ("one", " two\n", "\x1b[31mred"):
            yield 0, part
            seen.append(capsys.readouterr().out)

    chat.show_answers(["german"], parts())
    assert seen == ["one", " two\n", "\\x1b[31mred"]
    assert capsys.readouterr().out == "\n"


def test_an_answer_that_ends_its_line_gets_no_empty_one(capsys):
    chat.show_answers(["german"], [(0, "one\n")])
    assert capsys.readouterr().out == "one\n"


@pytest.mark.parametrize(("width", "is_terminal"), [(80, True), (200, False)])
def test_without_a_wide_terminal_answers_are_below_each_other(screen, width, is_terminal):
    made = screen(width, is_terminal)
    chat.show_answers(HEADINGS, PARTS)
    assert made.file.getvalue().split() == ["[german]", "eins", "zwei", "[base]", "one", "two"]


def test_in_a_wide_terminal_they_are_side_by_side(screen):
    made = screen(120)
    chat.show_answers(HEADINGS, PARTS)
    shown = made.file.getvalue()
    assert shown[shown.rindex("german") :].split() == [
        "german",
        "base",
        "eins",
        "zwei",
        "one",
        "two",
    ]


def test_what_is_longer_than_the_screen_shows_its_end_while_it_is_written(screen):
    made = screen(120, height=10)
    heights = []

    def parts():
        for number in range(40):
            yield 0, f"line {number}\n"
            heights.append(made.file.getvalue())

    chat.show_answers(HEADINGS, parts())
    before_the_last = heights[-2]
    frame = before_the_last[before_the_last.rindex("german") :]
    assert "line 38" in frame and "line 5 " not in frame
    final = made.file.getvalue()
    assert "line 5 " in final[final.rindex("german") :]


@pytest.mark.parametrize("width", [80, 120])
def test_a_stopped_answer_stays_on_the_screen(screen, width):
    made = screen(width)

    def parts():
        yield 0, "eins"
        yield 1, "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.show_answers(HEADINGS, parts())
    shown = made.file.getvalue()
    assert "eins" in shown[shown.rindex("german") :] and "one" in shown[shown.rindex("base") :]
