import json

import pytest
import torch
from safetensors.torch import save_file

from lorakit.errors import AdapterFileError, MissingFileError
from lorakit.files import checkpoint_weights
from lorakit.files.checkpoint_weights import CheckpointWeights
from tiny_models import llama

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two files with two tensors each."""
    files = {}
    for number in (1, 2):
        file = f"model-0000{number}-of-00002.safetensors"
        tensors = {f"{letter}{number}": torch.full((2,), float(number)) for letter in "ab"}
        save_file(tensors, tmp_path / file)
        files |= dict.fromkeys(tensors, file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    names = []
    original = checkpoint_weights.safe_open

    def spy(file, **options):
        names.append(file.name)
        return original(file, **options)

    monkeypatch.setattr(checkpoint_weights, "safe_open", spy)
    return names


def test_each_file_is_opened_once(sharded, opened):
    weights = CheckpointWeights(sharded)
    assert [*weights.names()] == ["a1", "b1", "a2", "b2"]
    for _ in range(2):
        for name in weights.names():
            assert torch.equal(weights.read(name), torch.full((2,), float(name[1])))
    assert len(opened) == 2


def test_one_file_is_opened_once_for_its_names_and_its_tensors(tmp_path, opened):
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    weights = CheckpointWeights(tmp_path)
    assert torch.equal(weights.read("a"), torch.ones(2)) and {*weights.names()} == {"a", "b"}
    assert len(opened) == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_called_so(sharded, text):
    (sharded / INDEX).write_text(text)
    said = f"Cannot read .*{INDEX}: .*, expected JSON with a weight_map"
    with pytest.raises(AdapterFileError, match=said):
        CheckpointWeights(sharded)


def test_damaged_and_missing_files_are_named(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))
    weights = CheckpointWeights(sharded)
    first.unlink()
    with pytest.raises(AdapterFileError, match=f"Cannot read .*{first.name}"):
        weights.read("a1")
    second.write_bytes(b"\0" * 9)
    with pytest.raises(AdapterFileError, match=f"Cannot read .*{second.name}"):
        weights.read("a2")
    second.unlink()
    save_file({"a2": torch.ones(1)}, second)
    with pytest.raises(AdapterFileError, match="Cannot read b2 in"):
        weights.read("b2")
    (sharded / INDEX).unlink()
    second.rename(sharded / "model.safetensors")
    (sharded / "model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterFileError, match="expected a complete safetensors file"):
        CheckpointWeights(sharded)


def test_a_configuration_that_cannot_be_read_is_named(tmp_path):
    llama().save_pretrained(tmp_path)
    weights = CheckpointWeights(tmp_path)
    assert type(weights.skeleton()).__name__ == "LlamaForCausalLM"
    for text in ("{", '{"model_type": "no_such_model"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(AdapterFileError, match=r"Cannot read .*config\.json"):
            weights.skeleton()
    (tmp_path / "config.json").unlink()
    for source in (weights, CheckpointWeights(llama())):
        with pytest.raises(MissingFileError, match=r"No config\.json in "):
            source.skeleton()


def test_of_a_hub_repository_only_the_model_s_own_files_are_fetched(sharded, monkeypatch):
    asked = []

    def fetch(repository, files, revision, **_):
        asked.append((repository, files, revision))
        return sharded

    monkeypatch.setattr(checkpoint_weights, "fetch_from_hub", fetch)
    CheckpointWeights("some/model", "abc")
    ((repository, files, revision),) = asked
    assert (repository, revision) == ("some/model", "abc")
    assert set(files) == {"config.json", INDEX, "model*.safetensors"}
