"""Adapters below a directory: what their files and their analysis say."""

import json
import shutil
import subprocess
import sys

import pytest

from lorakit.adapters import Adapter
from lorakit.analysis import analyze_adapter, write_report
from lorakit.errors import AdapterFileError
from lorakit.runs.adapters import find_adapters, read_adapter, read_analysis


@pytest.fixture
def root(adapter_folder, tmp_path):
    """A run with its adapter, and adapters outside of runs."""
    shutil.copytree(adapter_folder / "german", tmp_path / "runs" / "german" / "adapter")
    (tmp_path / "runs" / "german" / "recipe.yaml").write_text("model: x\n")
    shutil.copytree(adapter_folder / "german", tmp_path / "runs" / "german" / "checkpoint-5")
    shutil.copytree(adapter_folder / "mood", tmp_path / "mood")
    shutil.copytree(adapter_folder / "mood", tmp_path / ".lorakit" / "trash" / "mood")
    (tmp_path / "elsewhere").symlink_to(adapter_folder)
    return tmp_path


def test_adapters_of_runs_and_others_are_found(root):
    found = {each.name: each for each in find_adapters(root)}
    assert set(found) == {"runs/german", "mood"}
    german, mood = found["runs/german"], found["mood"]
    assert german.run == german.place == root / "runs" / "german"
    assert mood.run is None and mood.place == root / "mood"
    assert (german.task, mood.task) == ("CAUSAL_LM", "SEQ_CLS")
    assert mood.labels and german.problem is None


def test_what_the_header_says_is_what_loading_gives(root):
    loaded = Adapter.load(root / "mood")
    facts = read_adapter(root, root / "mood")
    assert facts.parameters == loaded.count_parameters()
    assert facts.modules == len(loaded.factors)
    assert facts.ranks == (loaded.config.r,)
    assert facts.base == loaded.base_model


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("adapter_model.safetensors", None, "No such file"),
        ("adapter_model.safetensors", b"\xff" * 40, "not a safetensors file, or was cut"),
        ("adapter_model.safetensors", b"\x02" + b"\0" * 7 + b"[]", "got a list"),
        ("adapter_config.json", b"{", "Expecting"),
        ("lorakit.json", b"\xff", "not UTF-8"),
    ],
)
def test_a_damaged_adapter_is_listed_with_its_problem(root, file, content, problem):
    path = root / "mood" / file
    path.unlink() if content is None else path.write_bytes(content)
    (mood,) = [each for each in find_adapters(root) if each.name == "mood"]
    assert "its files cannot be read" in mood.problem and problem in mood.problem


def test_an_analysis_is_read_from_its_files(root):
    german = read_adapter(root, root / "runs" / "german" / "adapter")
    assert read_analysis(german) is None
    analysis = analyze_adapter(Adapter.load(german.directory))
    write_report(german.analysis_folder, analysis)
    found = read_analysis(german)
    assert found.folder == root / "runs" / "german" / "analysis"
    assert [row.module for row in found.modules] == [one.path for one in analysis.updates]
    assert {row.kind: row.count for row in found.kinds} == {
        kind: len(updates) for kind, updates in analysis.kinds.items()
    }
    largest = found.largest(2)
    assert [row.norm for row, _ in largest] == sorted(
        (row.norm for row in found.modules), reverse=True
    )[:2]
    assert 0 < largest[1][1] <= largest[0][1] < 1
    assert {"energy.png", "layers.png"} <= {picture.name for picture in found.pictures}
    assert not found.is_outdated


def test_an_analysis_older_than_its_adapter_and_a_damaged_one(root):
    mood = read_adapter(root, root / "mood")
    write_report(mood.analysis_folder, analyze_adapter(Adapter.load(mood.directory)))
    assert mood.analysis_folder == root / "mood-analysis"
    (root / "mood" / "adapter_config.json").write_text(
        json.dumps(json.loads((root / "mood" / "adapter_config.json").read_text()))
    )
    assert read_analysis(read_adapter(root, root / "mood")).is_outdated
    (mood.analysis_folder / "layers.csv").write_text("module,kind\nx,y\n")
    with pytest.raises(AdapterFileError, match=r"Cannot read the analysis .*layers\.csv"):
        read_analysis(mood)


def test_neither_torch_nor_the_models_library_is_imported():
    code = (
        "import sys, lorakit.runs.adapters, lorakit.runs.base_memory, lorakit.runs.votes\n"
        "print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
