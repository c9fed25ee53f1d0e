"""Texts, labels and tags as they are printed."""

from typing import NamedTuple

import pytest

from lorakit.cli.views.answers import pairs_of, print_labels, print_tags, print_texts
from lorakit.errors import DataError


class Tagged(NamedTuple):
    word: str
    tag: str
    probability: float


class Labelled(NamedTuple):
    label: str
    probability: float


def test_one_text_of_one_model_is_printed_alone(capsys):
    print_texts(["ask"], {"german": ["answer"]})
    assert capsys.readouterr().out == "answer\n"


def test_several_texts_are_below_their_prompts_with_the_models_names(capsys):
    print_texts(["one", "two"], {"adapter": ["1", "2"]})
    assert capsys.readouterr().out == "> one\n1\n\n> two\n2\n"
    print_texts(["one"], {"adapter": ["1"], "base alone": ["uno"]})
    assert capsys.readouterr().out == "> one\n[adapter]\n1\n[base alone]\nuno\n"


def test_labels_have_their_probabilities(capsys):
    print_labels(["a film"], [[Labelled("good", 0.75)], [Labelled("bad", 0.5)]])
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["label", "probability", "base", "alone", "probability", "text"]
    assert row.split() == ["good", "75.0%", "bad", "50.0%", "a", "film"]


def test_tagged_words_have_their_tags(capsys):
    words = [[Tagged("Anna", "B-PER", 0.9), Tagged("lives", "O", 0.8)]]
    print_tags({"adapter": words})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Anna/B-PER lives"
    assert lines[3].split() == ["Anna", "B-PER", "90.0%"]
    print_tags({"adapter": words, "base alone": words})
    assert capsys.readouterr().out == "adapter: Anna/B-PER lives\nbase alone: Anna/B-PER lives\n"


def test_pairs_are_split_at_their_tab():
    assert pairs_of(["a b\tc"]) == [("a b", "c")]
    with pytest.raises(DataError, match="Text 2 is not a pair: got 'no tab', expected two texts"):
        pairs_of(["a\tb", "no tab"])
