"""Adapters that pass every check, and adapters that fail one each."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.errors import MissingFileError
from lorakit.inference import (
    Classification,
    LabelSet,
    Numbers,
    TaggedWord,
    classify,
    verification,
    verify_adapter,
)
from lorakit.inference.verification import _difference
from tiny_models import randomize_
from tiny_models.adapted import save_adapter_of

TEXTS = ["the film was great", "the dog was awful and bad", "great cat"]


@pytest.fixture
def recorded(classifier_run, classifier, tmp_path):
    """A copy of a run whose predictions are in its file."""
    copy = shutil.copytree(classifier_run, tmp_path / "run")
    rows = [
        {"text": text, "label": "positive", "prediction": one.label, "probability": one.probability}
        for text, one in zip(TEXTS, classify(classifier, TEXTS), strict=True)
    ]
    write_rows(copy, rows)
    return copy


def write_rows(run, rows):
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def outcomes(*given):
    return {check.name: check.outcome for check in verify_adapter(*given)}


def failure(path):
    """Return the name and the finding of the check that fails, which ends the others."""
    *others, last = verify_adapter(path)
    assert all(check.outcome == "passed" for check in others) and last.outcome == "failed"
    return last.name, last.finding


def change_tensors(directory, change):
    path = directory / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: change(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)


def test_a_run_passes_every_check(recorded):
    checks = list(verify_adapter(recorded))
    assert [check.name for check in checks] == [*("files", "base", "fit", "effect", "predictions")]
    assert {check.outcome for check in checks} == {"passed"}, checks
    assert "the first 3 of predictions.jsonl come out again" in checks[-1].finding


def test_predictions_that_do_not_come_out_again_are_found(recorded):
    rows = [json.loads(line) for line in (recorded / "predictions.jsonl").read_text().splitlines()]
    rows[1]["probability"] -= 0.01
    write_rows(recorded, rows)
    name, finding = failure(recorded)
    assert name == "predictions" and finding.startswith(
        "row 2 of predictions.jsonl differs by 0.01"
    )
    of_another_task = {"text": "a", "prediction": ["b"], "probability": {"b": 0.5}}
    for others in (
        [{"text": "a"}],
        [{"other": "a", "prediction": "b"}, {"more": 1}],
        [of_another_task],
        [{"text": "a", "prediction": "positive"}],
        [],
    ):
        write_rows(recorded, others)
        assert outcomes(recorded)["predictions"] == "not checked"
    (recorded / "predictions.jsonl").write_text('{"text": ')
    assert outcomes(recorded)["predictions"] == "not checked"


def test_a_prediction_that_is_no_number_is_a_difference(recorded, monkeypatch):
    monkeypatch.setattr(verification, "_difference", lambda output, row: float("nan"))
    name, finding = failure(recorded)
    assert name == "predictions" and finding.startswith("row 1 of predictions.jsonl differs by nan")


def test_a_classifier_that_reads_the_end_of_a_text(tmp_path, tiny_t5_dir):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_t5_dir, num_labels=2)
    directory = save_adapter_of(tmp_path, model, task_type="SEQ_CLS")
    InferenceSettings(task_type="SEQ_CLS", max_length=4).save(directory)
    assert outcomes(directory)["effect"] == "passed"


def test_other_weights_of_the_base_are_found(recorded):
    settings = InferenceSettings.load(recorded / "adapter")
    lineage = settings.lineage.model_copy(update={"base_digest": "0" * 64})
    settings.model_copy(update={"lineage": lineage}).save(recorded / "adapter")
    name, finding = failure(recorded)
    assert name == "base" and "other weights than in training" in finding


def test_damaged_files_and_numbers_that_are_not_finite_are_found(recorded):
    adapter = recorded / "adapter"
    change_tensors(adapter, lambda name, t: t * torch.nan if name.endswith("lora_B.weight") else t)
    name, finding = failure(recorded)
    assert name == "files" and "has NaN" in finding and not finding.endswith(".")
    (adapter / "adapter_model.safetensors").write_bytes(b"no tensors")
    assert failure(recorded)[0] == "files"
    with pytest.raises(MissingFileError):
        list(verify_adapter(recorded / "tensorboard"))


def test_an_adapter_of_another_tool_and_one_that_does_nothing(tmp_path, tiny_gpt2_dir):
    model = randomize_(AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir))
    directory = save_adapter_of(tmp_path / "one", model, task_type="CAUSAL_LM")
    found = outcomes(directory)
    assert found.pop("base") == "not checked" and set(found.values()) == {"passed"}
    change_tensors(directory, lambda name, t: 0 * t if ".h.0." in name else t)
    (effect,) = (check for check in verify_adapter(directory) if check.name == "effect")
    assert effect.outcome == "passed" and "updates are zero: " in effect.finding
    change_tensors(directory, lambda name, tensor: 0 * tensor)
    assert outcomes(directory)["effect"] == "failed"
    with pytest.raises(MissingFileError, match="gone"):
        outcomes(directory, str(tmp_path / "gone"))
    file = directory / "adapter_config.json"
    file.write_text(file.read_text().replace(tiny_gpt2_dir, str(tmp_path / "gone")))
    assert outcomes(directory)["fit"] == "not checked"


@pytest.mark.parametrize(
    ("output", "row"),
    [
        (Classification("a", 0.6, {"a": 0.6, "b": 0.4}), {"prediction": "b", "probability": 0.5}),
        (
            LabelSet((), {"a": 0.1, "b": 0.4}),
            {"prediction": ["b"], "probability": {"a": 0.1, "b": 0.5}},
        ),
        (Numbers({"x": 0.1}), {"prediction": 0.2}),
        (Numbers({"x": 1.0, "y": 9.0}), {"prediction": [1.0, 10.0]}),
        ([TaggedWord("a", "O", 0.6)], {"prediction": ["O"], "probability": [0.5]}),
    ],
)
def test_each_kind_of_prediction_is_compared(output, row):
    assert _difference(output, row) == pytest.approx(0.1)


def test_another_tag_is_a_difference():
    row = {"prediction": ["B-PER"], "probability": [0.5]}
    assert _difference([TaggedWord("a", "O", 0.5)], row) == 1.0
