"""The examples and the tokenizer that a plan reads."""

from types import SimpleNamespace

import pytest

from lorakit.errors import ConfigError, DataError
from lorakit.planning import plan


def test_a_batch_is_as_large_as_in_training_however_few_rows_are_looked_at(recipe, monkeypatch):
    from lorakit.planning import sources

    monkeypatch.setattr(sources, "_LONGEST", 1)
    monkeypatch.setattr(sources, "_SPREAD", 2)
    made = recipe(**{"training.packing": True, "data.max_length": 64})
    assert plan(made).batch_rows == 4  # four rows are looked at and make one pack, taken again
    assert plan(recipe()).batch_rows == 4


def test_rows_are_read_once_for_all_plans(recipe, monkeypatch):
    from lorakit.planning import alternatives, find_sources
    from lorakit.training.tasks import task_for

    made = recipe()
    found = find_sources(made, task_for(made.task))
    monkeypatch.setattr("lorakit.planning.sources.load_splits", None)
    planned = plan(made, sources=found)
    ways = alternatives.side_by_side(made, planned, sources=found)
    assert len(ways) == 3 and ways["LoRA"] is planned
    assert plan(made, sources=found).at_peak == planned.at_peak


def test_examples_that_do_not_fit_the_adapter_to_start_from_are_refused_as_in_training(recipe):
    from lorakit.planning import find_sources
    from lorakit.training.tasks import task_for

    def find(labels, problem_type=None):
        settings = SimpleNamespace(problem_type=problem_type)
        start = SimpleNamespace(labels=labels, tokenizer=None, settings=settings)
        return find_sources(made, task_for(made.task), start)

    made = recipe("SEQ_CLS")
    known = ("positive", "negative", "neutral")
    assert find(known).labels == known
    with pytest.raises(DataError, match="that the adapter was not trained on: got negative, "):
        find(("positive", "neutral"))
    with pytest.raises(ConfigError, match="The labels do not fit the adapter in start_from"):
        find(("score",), "regression")
