"""`lorakit combine`: weights on the command line, and what is written."""

import json

import pytest
import torch

from lorakit import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.cli.commands.combine import parse_weights
from lorakit.errors import ConfigError
from tiny_models.adapters import layered_adapter
from tolerances import TOLERANCE, largest_error


@pytest.fixture
def pair(tmp_path):
    layered_adapter(seed=1, lora_alpha=7, base_model="x").save(tmp_path / "a")
    layered_adapter(seed=2, use_rslora=True, base_model="x").save(tmp_path / "b")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    return tmp_path / "a", tmp_path / "b"


def test_weights_stand_behind_the_names(cli, pair, tmp_path):
    a, b = pair
    output = tmp_path / "ab"
    result = cli("combine", f"{a}=0.5", f"{b}=-2", "--output", output, "--method", "cat")
    assert result.exit_code == 0, result.stderr
    made, first, second = (Adapter.load(path) for path in (output, a, b))
    for path in first.factors:
        expected = 0.5 * first.delta_weight(path) - 2 * second.delta_weight(path)
        assert largest_error(made.delta_weight(path), expected) < TOLERANCE[torch.float32]
    words = " ".join(result.stdout.split())
    assert f"{a} 0.5 4 4" in words and f"{b} -2 4 4" in words
    assert "rank 8" in words and made.base_model == "x"
    distance = words.split("exact weighted sum ")[1].split("%")[0]
    assert float(distance) < 1e-4
    assert (output / "tokenizer.json").read_text() == "{}"
    assert f"{output}/adapter_model.safetensors (" in words
    assert f"lorakit merge {output} {output}-merged" in result.stdout


def test_how_far_an_approximation_is_from_the_sum_is_reported(cli, pair, tmp_path):
    a, b = pair
    result = cli("combine", a, b, "-o", tmp_path / "ab", "--method", "svd", "--rank", 2)
    assert result.exit_code == 0, result.stderr
    made, first, second = (Adapter.load(path) for path in (tmp_path / "ab", a, b))
    exact = {p: first.delta_weight(p) + second.delta_weight(p) for p in first.factors}
    lost = sum((made.delta_weight(p) - exact[p]).norm() ** 2 for p in exact)
    whole = sum(delta.norm() ** 2 for delta in exact.values())
    expected = 100 * (lost / whole).sqrt().item()
    words = " ".join(result.stdout.split())
    assert f"exact weighted sum {expected:.3g}% of its norm" in words


def test_bad_words_are_refused_and_nothing_is_written(cli, pair, tmp_path):
    a, b = pair
    output = tmp_path / "ab"
    for words, said in (
        ((f"{a}=much", b), "got 'much', expected a number"),
        ((a, a), "is named twice"),
        ((a, b, "--method", "lineer"), "Did you mean 'linear'?"),
        ((a, b, "--method", "svd", "--rank", 99), "Use rank 24 or less"),
        ((a, b, "--density", 0.5), "prunes nothing"),
        ((a, tmp_path / "c"), "There is no adapter directory"),
    ):
        result = cli("combine", *words, "--output", output)
        assert result.exit_code == 2 and said in result.stderr, result.stderr
        assert not output.exists()
    result = cli("combine", a, b, "--output", b)
    assert result.exit_code == 2 and "it holds files already" in result.stderr


def test_adapters_of_different_bases_need_one_name(cli, pair, tmp_path):
    layered_adapter(seed=3, base_model="y").save(tmp_path / "c")
    words = ("combine", pair[0], tmp_path / "c", "--output", tmp_path / "ac")
    result = cli(*words)
    assert result.exit_code == 2 and "--base-model on the command line" in result.stderr
    assert cli(*words, "--base-model", "z").exit_code == 0
    assert Adapter.load(tmp_path / "ac").base_model == "z"


def test_an_equals_sign_in_a_path_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert parse_weights(["lr=0.1", "lr=0.1=2", "owner/name=-0.5"][1:]) == {
        "lr=0.1": 2.0,
        "owner/name": -0.5,
    }
    assert parse_weights(["lr=0.1"]) == {"lr=0.1": 1.0}
    with pytest.raises(ConfigError, match="named twice"):
        parse_weights(["a=1", "a=2"])


def test_the_head_and_the_class_names_of_a_named_adapter_are_kept(cli, tmp_path):
    for number, name in enumerate(("first run", "b")):
        one = layered_adapter(seed=number, base_model="x", modules_to_save=["classifier"])
        head = {"classifier.weight": torch.tensor([float(number)])}
        Adapter(one.config, one.factors, head, base_model="x").save(tmp_path / name)
        InferenceSettings(labels=(f"no {number}", "yes")).save(tmp_path / name)
    words = ("combine", tmp_path / "first run", tmp_path / "b", "--output", tmp_path / "ab")

    refused = cli(*words)

    assert refused.exit_code == 2
    assert f"--heads-from '{tmp_path}/first run' on the command line." in refused.stderr
    result = cli(*words, "--heads-from", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    assert Adapter.load(tmp_path / "ab").replaced["classifier.weight"].item() == 1
    assert InferenceSettings.load(tmp_path / "ab").labels == ("no 1", "yes")


def test_the_result_names_the_data_of_all(cli, pair, tmp_path):
    for place in pair:
        lineage = {"data": [{"name": f"{place.name}.csv"}]}
        values = {"system_prompt": place.name, "lineage": lineage}
        (place / "lorakit.json").write_text(json.dumps(values))
    result = cli("combine", *pair, "-o", tmp_path / "ab")
    assert result.exit_code == 0, result.stderr
    settings = InferenceSettings.load(tmp_path / "ab")
    assert [source.name for source in settings.lineage.data] == ["a.csv", "b.csv"]
    assert settings.system_prompt == "a"
