"""Runs of tiny models, trained once for all tests of inference."""

import pytest

from lorakit.inference import load_for_inference
from lorakit.recipes.recipe import Recipe
from lorakit.training.run import train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    def run(task, model, data, *, training=None, **data_keys):
        output = tmp_path_factory.mktemp(task) / "run"
        train(
            Recipe.check(
                {
                    "model": model,
                    "task": task,
                    "data": {"train": data, "validation_fraction": 0, **data_keys},
                    "lora": {"r": 8, "lora_alpha": 16},
                    "training": {
                        "learning_rate": 1e-2,
                        "num_train_epochs": 6,
                        "save_strategy": "no",
                        **(training or {}),
                    },
                    "output": str(output),
                },
                "the test",
            )
        )
        return output

    return run


@pytest.fixture(scope="session")
def classifier_run(run, tiny_bert_dir, cls_csv):
    # A BERT without a pooler: the adapter has to carry the one it was trained with.
    return run("SEQ_CLS", tiny_bert_dir, cls_csv, max_length=16)


@pytest.fixture(scope="session")
def classifier(classifier_run):
    return load_for_inference(classifier_run)
