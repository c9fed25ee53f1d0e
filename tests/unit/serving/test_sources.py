import json
import shutil

import pytest
from transformers import AutoModelForSequenceClassification

from lorakit.config import TaskType
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    ConfigError,
    MissingFileError,
)
from lorakit.serving.base_models import ModelKind
from lorakit.serving.sources import find_source
from lorakit.serving.store.adapter_directory import read_facts
from tiny_models.adapted import save_adapter_of

CHAT, MOOD, TAGS = (
    ModelKind(TaskType.CAUSAL_LM),
    ModelKind(TaskType.SEQ_CLS, 3),
    ModelKind(TaskType.TOKEN_CLS, 3),
)


@pytest.fixture
def folder(tmp_path, adapter_folder):
    shutil.copytree(adapter_folder, tmp_path / "adapters")
    return tmp_path / "adapters"


def change(directory, file="adapter_config.json", **values):
    path = directory / file
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def test_an_adapter_tells_its_kind_labels_and_base(folder, tiny_llama_dir):
    needs = read_facts(folder / "mood")
    assert needs.kind == MOOD and needs.settings.labels == ("bad", "good", "mixed")
    assert needs.base == tiny_llama_dir and needs.trained_in_full == ("score",)
    (folder / "mood" / "lorakit.json").unlink()
    assert read_facts(folder / "mood").kind == MOOD


def test_a_base_with_a_folder(folder, tiny_llama_dir):
    source = find_source([tiny_llama_dir], folder=folder)
    assert source.base.name == tiny_llama_dir
    assert source.base_name == tiny_llama_dir.rpartition("/")[2]
    assert source.places.folder == source.places.root == folder
    assert set(source.kinds) == {CHAT, MOOD, TAGS, ModelKind(TaskType.SEQ_CLS, 2)}
    assert source.kinds[MOOD].labels == ("bad", "good", "mixed")


def test_a_base_that_fills_gaps_has_the_kinds_of_its_adapters_alone(tiny_distilbert_dir, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_distilbert_dir, num_labels=3)
    directory = save_adapter_of(tmp_path, model, task_type="SEQ_CLS", target_modules=["q_lin"])
    source = find_source([tiny_distilbert_dir], adapters={"mood": directory})
    assert list(source.kinds) == [MOOD]


def test_a_base_alone_has_its_own_kind(tiny_t5_dir):
    assert list(find_source([tiny_t5_dir]).kinds) == [ModelKind(TaskType.SEQ_2_SEQ_LM)]


def test_runs_tell_their_base_and_are_named_after_their_directories(folder, tiny_llama_dir):
    source = find_source([folder / "german", folder / "mood"], base_name="small")
    assert source.base.name == tiny_llama_dir and source.base_name == "small"
    assert source.places.named == {"german": folder / "german", "mood": folder / "mood"}
    assert set(source.kinds) == {CHAT, MOOD}


def test_a_run_is_served_as_it_was_trained(done, tiny_llama_dir):
    result, _ = done
    source = find_source([result.run_dir])
    assert list(source.places.named) == ["done"]
    assert source.base.name == tiny_llama_dir and source.base.dtype == "float32"


def test_adapters_have_names(folder):
    source = find_source([], adapters={"de": folder / "german"})
    assert source.places.named == {"de": folder / "german"} and source.places.root is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "Nothing to serve: got no base"),
        (["base", "german"], "got 1 of them without an adapter"),
        (["base", "base"], "got 2 of them without an adapter"),
        (["german", "copy/german"], "Two adapters are named 'german'"),
    ],
)
def test_what_cannot_be_served_together_is_refused(folder, tiny_llama_dir, names, words):
    shutil.copytree(folder / "german", folder / "copy" / "german")
    given = [tiny_llama_dir if name == "base" else folder / name for name in names]
    with pytest.raises(ConfigError, match=words):
        find_source(given)


def test_adapters_of_different_bases_are_refused(folder, tiny_llama_dir):
    change(folder / "french", base_model_name_or_path="/other/base")
    with pytest.raises(ConfigError) as caught:
        find_source([folder / "german", folder / "french"])
    assert str(caught.value) == (
        "The adapters cannot share one base: they differ in the base model, got "
        f"{tiny_llama_dir} (german), /other/base (french), expected one value. Start one server "
        "for each base, or name the base."
    )
    assert find_source([tiny_llama_dir], adapters={"a": folder / "french"}).base.name


def test_trainings_that_differ_ask_for_a_choice(folder, tiny_llama_dir):
    change(folder / "mood", "lorakit.json", dtype="float32")
    change(folder / "pairs", "lorakit.json", dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"float32 \(mood\), bfloat16 \(pairs\).*--dtype"):
        find_source([tiny_llama_dir], folder=folder)
    assert find_source([tiny_llama_dir], folder=folder, dtype="float32").base.dtype == "float32"
    change(folder / "pairs", "lorakit.json", dtype=None, quantization={"bits": 8})
    with pytest.raises(ConfigError, match=r"differ in the quantization .* --unquantized"):
        find_source([tiny_llama_dir], folder=folder)
    source = find_source([tiny_llama_dir], folder=folder, unquantized=True)
    assert source.base.quantization is None


def test_what_is_missing_or_damaged_is_told(folder, tiny_llama_dir):
    with pytest.raises(MissingFileError, match="No folder of adapters at"):
        find_source([tiny_llama_dir], folder=folder / "gone")
    with pytest.raises(MissingFileError):
        find_source([], adapters={"a": folder / "gone"})
    (folder / "german" / "adapter_model.safetensors").write_bytes(b"12")
    with pytest.raises(AdapterFileError):
        find_source([folder / "german"])
    assert CHAT in find_source([tiny_llama_dir], folder=folder).kinds


def test_a_folder_in_the_place_of_a_base_names_the_adapters_inside(folder):
    with pytest.raises(MissingFileError, match="with runs or adapters inside") as refused:
        find_source([folder])
    assert str(folder / "french") in str(refused.value) and "--adapters" in str(refused.value)


def test_a_named_adapter_was_trained_on_the_weights_of_its_base(folder, tiny_llama_dir, tmp_path):
    change(folder / "german", "lorakit.json", lineage={"base_digest": "0" * 64})
    with pytest.raises(AdapterMismatchError, match="other weights than in training"):
        find_source([folder / "german", folder / "mood"])
    with pytest.raises(AdapterMismatchError, match="other weights than in training"):
        find_source([tiny_llama_dir], adapters={"one": folder / "german"})
    copied = tmp_path / "copy"  # another base on purpose
    shutil.copytree(tiny_llama_dir, copied)
    assert find_source([copied], adapters={"one": folder / "german"}).base.name == str(copied)
