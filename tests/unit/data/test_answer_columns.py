"""Names of columns and parts differ from each other."""

from lorakit.data import answer_columns


def test_names_are_distinct():
    keys = {answer_columns.PARTS, answer_columns.SEGMENTS, answer_columns.VOTES_KEY}
    assert len(keys | {answer_columns.REFERENCE_KEY}) == 4
    parts = {answer_columns.PROMPT, answer_columns.FIRST, answer_columns.SECOND}
    assert len(parts | {answer_columns.PADDING}) == 4
