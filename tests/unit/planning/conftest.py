"""Recipes on tiny models and data."""

import pytest


@pytest.fixture
def recipe(tmp_path, request):
    """Makes a recipe of a task; its model and data are those of the tests."""
    places = {
        "CAUSAL_LM": ("tiny_llama_dir", "prompt_jsonl"),
        "SEQ_CLS": ("tiny_distilbert_dir", "cls_csv"),
        "TOKEN_CLS": ("tiny_bert_dir", "ner_jsonl"),
        "SEQ_2_SEQ_LM": ("tiny_t5_dir", "summary_parquet"),
    }

    def make(task="CAUSAL_LM", **changes):
        from lorakit.training import Recipe

        model, data = (request.getfixturevalue(name) for name in places[task])
        values = {
            "model": model,
            "task": task,
            "data": {"train": data, "validation_fraction": 0.25},
            "lora": {"r": 4},
            "training": {"use_cpu": True, "per_device_train_batch_size": 4},
            "output": str(tmp_path / "run"),
        }
        return Recipe.check(values, "the test").with_changes(changes, "the test")

    return make
