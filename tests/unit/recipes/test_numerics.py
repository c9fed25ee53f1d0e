import json

import pytest
import torch

from lorakit.ops.native import compiled_library
from lorakit.recipes import numerics
from lorakit.recipes.numerics import KEY, cpu_notes, note_changed_numerics, numerics_facts

CPU = torch.device("cpu")


@pytest.fixture
def environment_file(tmp_path):
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({KEY: numerics_facts()}), encoding="utf-8")
    return path


def test_the_facts_are_those_of_this_process():
    facts = numerics_facts()
    assert facts["threads"] == str(torch.get_num_threads()) and facts["torch"] == torch.__version__
    assert facts["processor"] and facts["instructions"]


def test_nothing_is_said_where_nothing_has_changed(environment_file):
    assert note_changed_numerics(environment_file) is None


def test_another_library_for_products_is_said(environment_file, monkeypatch):
    before = numerics_facts()["float32 products"]
    now = {"oneDNN": "torch", "torch": "oneDNN"}[before]
    monkeypatch.setattr(numerics, "onednn_is_quicker", lambda: now == "oneDNN")
    assert f"float32 products {now} (was {before})" in note_changed_numerics(environment_file)


def test_other_threads_and_missing_products_are_said(environment_file, monkeypatch):
    before = numerics_facts()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(compiled_library, "unavailable", lambda: "there is no gcc")
    said = note_changed_numerics(environment_file)
    assert "will differ in its last bits" in said
    assert f"threads 64 (was {before['threads']})" in said
    assert f"compiled products off: there is no gcc (was {before['compiled products']})" in said
    assert "torch" not in said and "processor" not in said


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"numerics": 3}', '{"numerics": {}}'])
def test_a_record_that_says_nothing_is_passed_over(environment_file, text):
    environment_file.write_text(text, encoding="utf-8")
    assert note_changed_numerics(environment_file) is None


def test_notes_are_about_cpus(monkeypatch):
    monkeypatch.setattr(compiled_library, "unavailable", lambda: "the disk is full")
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    (note,) = cpu_notes(CPU)
    assert note.startswith("The compiled low-rank products are off (the disk is full): ")
    assert cpu_notes(torch.device("cuda")) == ()


def test_one_thread_has_nobody_to_wait_for(monkeypatch):
    monkeypatch.setattr(compiled_library, "unavailable", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert cpu_notes(CPU) == ()
