"""The examples and the tokenizer that a plan reads."""

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
