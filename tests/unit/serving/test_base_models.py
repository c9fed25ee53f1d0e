from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorakit import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.lineage import Lineage
from lorakit.config import TaskType
from lorakit.errors import AdapterMismatchError
from lorakit.models.base_digest import base_digest
from lorakit.serving.base_models import (
    BaseSource,
    ModelKind,
    kind_of_base,
    load_base,
    needs_adapter,
    share_weights,
)
from tiny_models import logits
from tiny_models.adapted import save_adapter_of


@pytest.fixture
def source(tiny_llama_dir):
    return BaseSource(tiny_llama_dir, device="cpu")


def test_a_base_is_of_the_kind_it_was_saved_as(tiny_llama_dir, tiny_t5_dir, tmp_path):
    assert kind_of_base(BaseSource(tiny_llama_dir)) == ModelKind(TaskType.CAUSAL_LM)
    assert kind_of_base(BaseSource(tiny_t5_dir)) == ModelKind(TaskType.SEQ_2_SEQ_LM)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama_dir, num_labels=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path)
    source = BaseSource(str(tmp_path), device="cpu")
    kind = kind_of_base(source)
    assert kind == ModelKind(TaskType.SEQ_CLS, 3) and str(kind) == "SEQ_CLS with 3 labels"
    base = load_base(source, kind)
    assert base.labels == ("bad", "fair", "good") and base.answers_alone
    other = load_base(source, ModelKind(TaskType.SEQ_CLS, 2))
    assert len(other.labels) == 2 and not other.answers_alone


def test_a_base_that_fills_gaps_has_no_task_alone(
    tiny_bert_dir, tiny_distilbert_dir, tiny_gpt2_dir, tiny_t5_dir, tmp_path
):
    assert all(needs_adapter(BaseSource(name)) for name in (tiny_bert_dir, tiny_distilbert_dir))
    assert not any(needs_adapter(BaseSource(name)) for name in (tiny_gpt2_dir, tiny_t5_dir))
    continues = load_base(BaseSource(tiny_bert_dir, device="cpu"), ModelKind(TaskType.CAUSAL_LM))
    assert not continues.answers_alone
    AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path)
    assert not needs_adapter(BaseSource(str(tmp_path)))


def test_an_adapter_that_names_the_base_was_trained_on_its_weights(
    source, tiny_llama_dir, tmp_path, caplog
):
    base = load_base(source, ModelKind(TaskType.CAUSAL_LM))
    assert base.digest == base_digest(tiny_llama_dir)
    adapter = Adapter.load(save_adapter_of(tmp_path / "adapter", base.model))
    same = InferenceSettings(lineage=Lineage(base_digest=base.digest))
    other = InferenceSettings(lineage=Lineage(base_digest="0" * 64))
    for settings in (InferenceSettings(), InferenceSettings(lineage=Lineage()), same):
        base.require_weights_of_training("a", adapter, settings, tmp_path)
    with pytest.raises(AdapterMismatchError, match="other weights than in training"):
        base.require_weights_of_training("a", adapter, other, tmp_path)
    elsewhere = replace(adapter, base_model="another")  # the user chose this base for it
    base.require_weights_of_training("a", elsewhere, same, tmp_path)
    assert not caplog.messages
    base.require_weights_of_training("a", elsewhere, other, tmp_path)
    assert "other weights than the base of the training" in caplog.text


def test_tasks_share_the_weights_of_the_base(source):
    first = load_base(source, ModelKind(TaskType.CAUSAL_LM))
    assert first.answers_alone
    before = logits(first.model)
    kind = ModelKind(TaskType.SEQ_CLS, 2)
    second = load_base(source, kind, labels=("a", "b"), loaded=[first.model])
    assert second.labels == ("a", "b") and not second.answers_alone
    weights = dict(first.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert (parameter is weights.get(name)) == name.startswith("model.")
    body = sum(p.nbytes for n, p in weights.items() if n.startswith("model."))
    assert second.shared_bytes == body
    assert torch.equal(logits(first.model), before)
    assert not any(p.requires_grad for p in second.model.parameters())


def test_weights_that_differ_are_not_shared():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert share_weights(first, second) == 0
    with torch.no_grad():
        second.bias.copy_(first.bias)
    assert share_weights(second, first) == 8
    assert second.bias is first.bias and second.weight is not first.weight
