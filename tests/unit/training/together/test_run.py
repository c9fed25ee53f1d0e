"""Runs that train together have the losses and the adapters of runs that train alone."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lorakit.errors import ConfigError
from lorakit.training import RunDirectory, train
from lorakit.training.together import train_together

TOLERANCE = 1e-5
"""Sums of other shapes round differently; over 50 steps, relative to the largest entry."""


def require_equal_runs(together, alone):
    """Compare the logged losses, the evaluations and the adapters of two finished runs."""
    ours, theirs = (
        [row for row in RunDirectory.open(result.run_dir).metrics() if row["event"] != "guessing"]
        for result in (together, alone)
    )
    assert len(ours) == len(theirs)
    for got, expected in zip(ours, theirs, strict=True):
        assert (got["event"], got["step"]) == (expected["event"], expected["step"])
        for key in expected.keys() & {"loss", "eval_loss", "learning_rate", "grad_norm"}:
            assert got[key] == pytest.approx(expected[key], rel=2 * TOLERANCE), (key, got["step"])
    ours, theirs = (
        load_file(result.adapter_path / "adapter_model.safetensors") for result in (together, alone)
    )
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE, (name, error)


def both_ways(make, changes):
    """Train each recipe alone and all together; return the results of both."""
    alone = [train(make(f"alone-{n}", **each)) for n, each in enumerate(changes)]
    together = train_together([make(f"together-{n}", **each) for n, each in enumerate(changes)])
    for result in together:
        if isinstance(result, BaseException):
            raise result
    return together, alone


def lora(r, *targets, **more):
    return {"r": r, "lora_alpha": 2 * r, "target_modules": list(targets), **more}


def test_two_runs_are_those_of_alone(recipe):
    together, alone = both_ways(
        recipe,
        [
            {"lora": lora(2, "q_proj", "v_proj")},
            {"lora": lora(4, "q_proj", "down_proj"), "training": {"learning_rate": 1e-3, "seed": 7}},
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_eight_features_in_one_group(recipe):
    together, alone = both_ways(
        recipe,
        [
            {"lora": lora(2, "q_proj", "v_proj", lora_dropout=0.1), "training": {"max_steps": 50}},
            {
                "lora": lora(4, "all-linear", lora_dropout=0.3, use_dora=True),
                "training": {"max_steps": 30, "learning_rate": 1e-3, "seed": 7},
            },
            {
                "lora": lora(3, "down_proj", "up_proj", lora_dropout=0.5, bias="lora_only"),
                "training": {
                    "max_steps": 20,
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 3,
                    "label_smoothing_factor": 0.1,
                },
            },
            {
                "lora": lora(2, "q_proj", "k_proj", "v_proj", "lm_head", "embed_tokens"),
                "training": {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 5},
            },
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def classify(recipe_of, model, data, output, **changes):
    return recipe_of(output, **changes)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_classifiers_with_heads_and_the_dropout_of_their_base(kind, request, cls_csv, tmp_path):
    from lorakit.training import Recipe

    model = request.getfixturevalue(f"tiny_{kind}_dir")

    def make(output, **changes):
        training = {
            "use_cpu": True,
            "max_steps": 20,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            **changes.pop("training", {}),
        }
        return Recipe.check(
            {
                "model": model,
                "task": "SEQ_CLS",
                "data": {"train": cls_csv, "validation_fraction": 0.25},
                "lora": {"r": 2, "lora_dropout": 0.1},
                "output": str(tmp_path / output),
                "training": training,
                **changes,
            },
            "the recipe",
        )

    together, alone = both_ways(
        make,
        [
            {},
            {"lora": {"r": 4}, "training": {"seed": 3, "learning_rate": 3e-3}},
            {"training": {"per_device_train_batch_size": 3, "eval_strategy": "steps", "eval_steps": 7}},
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)
        assert ours.metrics.keys() == theirs.metrics.keys()
        for key, value in theirs.metrics.items():
            if "loss" in key or "accuracy" in key:
                assert ours.metrics[key] == pytest.approx(value, rel=1e-4), key
