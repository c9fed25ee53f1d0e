"""The lineage of a run, from its files and from environment.json."""

import json

from lorakit.adapters.lineage import Lineage, data_source
from lorakit.models.base_digest import base_digest
from lorakit.training.starting_point.run_lineage import KEY, lineage_of, read_lineage


def test_base_and_data_are_recorded_without_a_parent(recipe):
    made = recipe()
    assert lineage_of(made, None) == Lineage(
        base_digest=base_digest(made.model), data=(data_source(made.data.train),)
    )


def test_a_finished_run_has_it_in_both_files(done):
    found = read_lineage(done[0].run_dir / "environment.json")
    settings = json.loads((done[0].adapter_path / "lorakit.json").read_text())
    assert Lineage.parse(settings[KEY], "lorakit.json") == found is not None


def test_an_environment_without_one_gives_none(tmp_path):
    file = tmp_path / "environment.json"
    assert read_lineage(file) is None
    for text in ("{", "[]", "{}", '{"lineage": {"parents": 3}}'):
        file.write_text(text)
        assert read_lineage(file) is None
