"""Tags and notes in the directory of a run."""

import pytest

from lorakit.errors import ConfigError
from lorakit.runs.notes import Notes, read_notes, write_note, write_tags


def test_tags_and_a_note_are_kept_apart(tmp_path):
    assert read_notes(tmp_path) == Notes()
    write_tags(tmp_path, [" good ", "good", "", "Größe 😀"])
    write_note(tmp_path, "first\r\nsecond\x1b[31m\n")
    assert read_notes(tmp_path) == Notes(("good", "Größe 😀"), "first\nsecond[31m")
    write_tags(tmp_path, [])
    assert read_notes(tmp_path).note == "first\nsecond[31m"


@pytest.mark.parametrize("tags", [["x" * 41], ["a\nb"], [str(n) for n in range(21)]])
def test_tags_that_are_no_words_are_refused(tmp_path, tags):
    with pytest.raises(ConfigError, match="cannot be saved"):
        write_tags(tmp_path, tags)
    assert read_notes(tmp_path) == Notes()


def test_a_long_note_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got 10,001 characters"):
        write_note(tmp_path, "x" * 10_001)


@pytest.mark.parametrize("text", ["[]", "{", '{"tags": 3}', '{"note": "text"}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "notes.json").write_text(text)
    with pytest.raises(ConfigError, match=r"Cannot read .*notes\.json"):
        read_notes(tmp_path)
