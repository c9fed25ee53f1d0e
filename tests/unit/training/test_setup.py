"""Preparing a run: cheap checks first, events, and an adapter that only the seed determines."""

import pytest
import torch

from lorakit.errors import ConfigError, DataError
from lorakit.training.setup import prepare, require_known_labels
from lorakit.training.tasks.causal_lm import CausalLM


def ignore(name, payload):
    """Ignore an event."""


def test_the_check_comes_before_anything_heavy_and_sees_every_argument(recipe, monkeypatch):
    monkeypatch.setattr(CausalLM, "load_tokenizer", lambda *args: pytest.fail("loaded"))

    def refuse(resolved):
        assert resolved.training["metric_for_best_model"] == "eval_loss"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        prepare(recipe(), ignore, check=refuse)


def test_events_and_objects_are_those_of_the_recipe(recipe, tmp_path):
    events = []
    setup = prepare(recipe(), lambda *event: events.append(event))
    (first, injected), (second, data) = events
    assert (first, second) == ("injected", "data")
    assert injected["injection"] is setup.injection
    assert (data["train_examples"], data["validation_examples"]) == (18, 6)
    assert (data["task_type"], data["labels"]) == ("CAUSAL_LM", None)
    assert len(setup.encoded.train) == 18
    assert setup.arguments.output_dir == str(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_adapter_is_determined_by_the_seed(recipe):
    def factor_of(**training):
        torch.rand(3)
        model = prepare(recipe(training=training), ignore).model
        return model.model.layers[0].self_attn.q_proj.updates["default"].lora_A.detach()

    assert torch.equal(factor_of(seed=1), factor_of(seed=1))
    assert not torch.equal(factor_of(seed=1), factor_of(seed=2))


def test_a_run_without_a_full_batch_is_refused_where_others_are_left_out(recipe):
    arguments = {"dataloader_drop_last": True, "per_device_train_batch_size": 19}
    with pytest.raises(ConfigError) as caught:
        prepare(recipe(training=arguments), ignore)
    assert str(caught.value) == (
        "No batch is left to train on: got 18 training examples and "
        "training.dataloader_drop_last=true, expected at least the 19 of a batch. Leave "
        "dataloader_drop_last out, or lower training.per_device_train_batch_size."
    )
    prepare(recipe(training={**arguments, "per_device_train_batch_size": 18}), ignore)


def test_numbers_of_another_column_are_those_of_the_adapter():
    require_known_labels(("stars",), ("score",), "x", None)
    with pytest.raises(DataError, match="got stars_1, stars_2, expected 1: score"):
        require_known_labels(("stars_1", "stars_2"), ("score",), "x", None)


def test_labels_that_an_adapter_was_not_trained_on_are_refused(
    recipe_of, tiny_distilbert_dir, cls_csv
):
    recipe = recipe_of("SEQ_CLS", tiny_distilbert_dir, cls_csv, training={"use_cpu": True})
    known = ("negative", "neutral", "positive")
    setup = prepare(recipe, ignore, labels=known)
    assert setup.labels == known and setup.model.config.num_labels == 3
    with pytest.raises(DataError) as caught:
        prepare(recipe, ignore, labels=("positive", "negativ"))
    assert str(caught.value) == (
        f"The examples of '{cls_csv}' have labels that the adapter was not trained on: got "
        "negative, expected positive, negativ in 'label'. Did you mean 'negativ'? Correct the "
        "labels, leave those examples out, or train a new adapter."
    )


def test_a_stream_in_several_processes_is_refused_at_once(recipe, prompt_jsonl, monkeypatch):
    monkeypatch.setattr("lorakit.training.setup.process_count", lambda: 2)
    data = {"train": prompt_jsonl, "streaming": True}
    with pytest.raises(ConfigError, match=r"^A stream is read by one process: got .* in 2 proc"):
        prepare(recipe(data=data), ignore)
