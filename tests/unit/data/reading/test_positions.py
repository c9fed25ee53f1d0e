"""Numbers and lines of examples, for messages."""

import numpy as np

from lorakit.data.reading.positions import Place, describe_examples


def test_a_selection_of_a_selection_keeps_its_place_in_the_file():
    place = Place("the examples of 'x.csv'", lines=np.array([2, 3, 5, 9]))

    chosen = place.select([3, 1]).select([0])

    assert str(chosen) == "the examples of 'x.csv'"
    assert chosen.numbers.tolist() == [3] and chosen.lines.tolist() == [9]
    assert describe_examples([0], chosen) == "example 4 (line 9)"
    assert describe_examples([0], Place("x").select([6])) == "example 7"


def test_many_examples_are_counted_with_their_first_lines():
    place = Place("x", lines=np.arange(2, 12))

    text = describe_examples(range(10), place, most=2)

    assert text == "examples 1, 2 and 8 more (lines 2, 3)"
