"""Adapters by name, as their files are."""

import logging
import os
import shutil

import pytest

from fixtures.served import save_adapters_in
from lorakit.errors import AdapterNameError, ConfigError, MissingFileError
from lorakit.serving.store import adapter_directory
from lorakit.serving.store.allowed_paths import AllowedPaths
from lorakit.serving.store.catalogue import Catalogue


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(adapter_directory, "_SETTLED_S", 0.0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return save_adapters_in(tmp_path_factory.mktemp("two"), "topic", "tone")


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two, tmp_path / "adapters")


def catalogue(folder, named=None, root=None):
    made = Catalogue("base", folder, named or {}, AllowedPaths(root or folder))
    look_at_all(made)
    return made


def look_at_all(made):
    names = made.names_now()
    made.keep_only(names)
    for name in sorted(names):
        made.look_up(name)


def look_at_some(made, *names):
    for name in made.names_now():
        assert made.knows(name) == (name in names)


def names_in(made):
    return sorted(entry.name for entry in made)


def test_subfolders_runs_and_named_ones(folder, tmp_path):
    (folder / "run").mkdir()
    shutil.copytree(folder / "tone", folder / "run" / "adapter")
    (folder / "notes").mkdir()
    (folder / ".topic.0a1b").mkdir()
    (folder / "file.txt").write_text("no adapter")
    elsewhere = shutil.copytree(folder / "tone", tmp_path / "elsewhere")
    made = catalogue(folder, {"other": elsewhere})
    assert names_in(made) == ["other", "run", "tone", "topic"]
    assert made.look_up("run").path == folder / "run" / "adapter"
    assert all(entry.failure is None and entry.facts.rank == 2 for entry in made)


def test_nothing_is_examined_again_until_a_file_changes(folder):
    made = catalogue(folder)
    before = made.look_up("tone")
    look_at_all(made)
    assert made.look_up("tone") is before
    made.set_content(before, "0" * 64)
    assert made.hashes == {"0" * 64}
    (folder / "tone" / "lorakit.json").write_text("{}")
    after = made.look_up("tone")
    assert after is not before
    assert (after.content_hash, after.previous_hash) == (None, "0" * 64)
    assert made.hashes == {"0" * 64}  # until it is read
    made.set_content(after, "1" * 64)
    assert made.hashes == {"1" * 64}


def test_they_appear_and_disappear_with_their_files(folder):
    made = catalogue(folder)
    shutil.copytree(folder / "tone", folder / "new")
    assert made.look_up("new").failure is None  # before any scan
    shutil.rmtree(folder / "tone")
    with pytest.raises(AdapterNameError):
        made.look_up("tone")
    shutil.rmtree(folder / "topic")
    look_at_all(made)
    assert names_in(made) == ["new"]
    shutil.rmtree(folder)
    look_at_all(made)
    assert names_in(made) == []


def test_an_unknown_name_gets_the_nearest(folder):
    made = catalogue(folder)
    with pytest.raises(AdapterNameError, match="There is no adapter 'topik', expected 'topic'"):
        made.look_up("topik")
    with pytest.raises(AdapterNameError, match="expected 'tone', 'topic'"):
        made.look_up("zzzzzzzzzz")
    with pytest.raises(AdapterNameError, match="expected none, as the server has no adapters"):
        catalogue(None).look_up("topic")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../adapters/tone", "tone/", "/tmp", "a\0b", "\x1b[31m", "é" * 9999]
)
def test_odd_names_lead_nowhere(folder, name):
    with pytest.raises(AdapterNameError, match="There is no adapter") as caught:
        catalogue(folder).look_up(name)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def test_folders_with_odd_names_are_listed_with_the_problem(folder):
    os.rename(folder / "tone", folder / "to\x1bne")
    os.rename(folder / "topic", folder / "base")
    made = catalogue(folder)
    failures = {entry.name: str(entry.failure) for entry in made}
    assert "control character" in failures["to\x1bne"] and "\x1b" not in failures["to\x1bne"]
    assert "the name of the base" in failures["base"]


def test_wrong_names_and_folders_are_refused_at_the_start(folder, tmp_path):
    tone = folder / "tone"
    with pytest.raises(ConfigError, match="the name of the base"):
        catalogue(folder, {"base": tone})
    with pytest.raises(ConfigError, match=r"'a\\x1b'.*control"):
        catalogue(folder, {"a\x1b": tone})
    with pytest.raises(ConfigError, match=r"'topic' is given twice: got .*tone and .*topic"):
        catalogue(folder, {"topic": tone})
    assert names_in(catalogue(folder, {"tone": tone})) == ["tone", "topic"]
    with pytest.raises(MissingFileError, match="There is no directory"):
        catalogue(folder, {"x": tmp_path / "absent"})
    with pytest.raises(MissingFileError, match="There is no folder"):
        catalogue(tmp_path / "absent")


def test_a_name_that_appears_twice_later_stays_the_named_one(folder, tmp_path, caplog):
    other = shutil.copytree(folder / "tone", tmp_path / "other")
    made = catalogue(folder, {"other": other})
    shutil.copytree(folder / "tone", folder / "other")
    with caplog.at_level(logging.WARNING, "lorakit.serving"):
        look_at_all(made)
        look_at_all(made)
    assert made.look_up("other").path == other
    assert len(caplog.records) == 1 and "'other'" in caplog.text


def test_links_out_of_the_root_are_not_served(folder, tmp_path):
    outside = shutil.copytree(folder / "tone", tmp_path / "outside")
    (folder / "linked").symlink_to(outside)
    shutil.copytree(folder / "tone", folder / "half")
    weights = folder / "half" / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(outside / "adapter_model.safetensors")
    made = catalogue(folder)
    for name in ("linked", "half"):
        assert isinstance(made.look_up(name).failure, ConfigError)
        assert "leads out of" in str(made.look_up(name).failure)
    assert made.look_up("tone").failure is None
    assert all(entry.failure is None for entry in catalogue(folder, root=tmp_path))


def test_a_damaged_one_is_kept_with_its_problem_until_it_is_repaired(folder):
    weights = folder / "tone" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    made = catalogue(folder)
    entry = made.look_up("tone")
    assert "complete safetensors file" in str(entry.failure) and entry.is_final
    with pytest.raises(type(entry.failure), match="complete safetensors file") as caught:
        entry.raise_failure()
    assert caught.value is not entry.failure
    weights.write_bytes(whole)
    assert made.look_up("tone").failure is None


def test_a_problem_of_young_files_may_pass(folder, monkeypatch):
    made = catalogue(folder)
    monkeypatch.setattr(adapter_directory, "_SETTLED_S", 100.0)
    (folder / "tone" / "adapter_config.json").write_text("{")
    entry = made.look_up("tone")
    assert entry.failure is not None and not entry.is_final
    entry.raise_failure()  # not yet
    monkeypatch.setattr(adapter_directory, "_SETTLED_S", 0.0)
    assert made.look_up("tone") is entry and entry.is_final


def test_adding_and_forgetting(folder, tmp_path):
    made = catalogue(folder)
    made.add_named("mine", folder / "tone")
    assert made.look_up("mine").path == folder / "tone"
    for name, problem in (("mine", "already"), ("tone", "already"), ("base", "name of the base")):
        with pytest.raises(AdapterNameError, match=problem):
            made.add_named(name, folder / "topic")
    made.forget("mine")
    with pytest.raises(AdapterNameError):
        made.forget("mine")
    made.forget("tone")
    look_up_fails(made, "tone")
    (folder / "tone" / "lorakit.json").write_text("{}")
    assert made.look_up("tone").failure is None  # rewritten, so known again
    made.forget("tone")
    made.add_named("tone", folder / "topic")
    assert made.look_up("tone").path == folder / "topic"


def look_up_fails(made, name):
    with pytest.raises(AdapterNameError):
        made.look_up(name)


def test_one_that_a_client_named_must_stay_below_the_root(folder, tmp_path):
    made = catalogue(folder)
    outside = shutil.copytree(folder / "tone", tmp_path / "outside")
    made.add_named("mine", folder / "tone")
    assert made.look_up("mine").failure is None
    shutil.rmtree(folder / "tone")
    (folder / "tone").symlink_to(outside)
    assert "leads out of" in str(made.look_up("mine").failure)
    trusted = catalogue(folder, {"mine": outside})
    assert trusted.look_up("mine").failure is None


def test_another_catalogue_of_the_same_places_takes_the_changes(folder, tmp_path):
    extra = shutil.copytree(folder / "tone", folder / "deep" / "extra")
    changed, other = (catalogue(folder, {"mine": tmp_path}) for _ in range(2))
    changed.forget("topic")
    changed.forget("mine")
    changed.add_named("extra", extra)
    other.take_changes(changed)
    look_at_some(other, "extra", "tone")
    assert names_in(other) == ["extra", "tone"]
    (folder / "topic" / "lorakit.json").write_text("{}")
    assert other.knows("topic")
