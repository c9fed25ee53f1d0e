"""Amounts of memory; what parses is in the docstring."""

import pytest

from lorakit.errors import ConfigError
from lorakit.planning.memory_size import parse_memory


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0GB", "16", "12 parsecs", "1e30GB"])
def test_what_is_not_an_amount_is_refused(text):
    with pytest.raises(ConfigError, match="expected a number and a unit"):
        parse_memory(text)


def test_a_number_without_a_unit_is_taken_for_gigabytes_in_the_question_alone():
    with pytest.raises(ConfigError, match=r"Did you mean 16GB\?"):
        parse_memory("16")


def test_units_may_be_short_and_written_in_any_case():
    assert parse_memory(" 2g ") == parse_memory("2 GB") == 2 * 10**9
