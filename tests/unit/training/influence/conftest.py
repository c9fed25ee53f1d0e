"""A tiny classifier of which one label in twenty is wrong."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.data import write_jsonl

WORDS = {"good": ("fine", "good", "great"), "bad": ("bad", "sad", "poor")}
PLACES = ("film", "cat", "dog", "grass", "sky")


@dataclass(frozen=True)
class Flipped:
    run: Path
    data: Path
    indices: frozenset
    """Indices of the rows of the file whose label is wrong, from 0."""


def texts(count, first=0):
    for n in range(first, first + count):
        label = ("good", "bad")[n % 2]
        word, place = WORDS[label][n % 3], PLACES[n // 2 % 5]
        yield {"text": f"the {place} was {word} {n % 7}", "label": label}


@pytest.fixture(scope="session")
def flipped(tiny_distilbert_dir, tmp_path_factory):
    from lorakit.training import Recipe, train

    folder = tmp_path_factory.mktemp("flipped")
    rows = list(texts(120))
    indices = frozenset(range(7, 120, 20))  # 6 of 120
    for index in indices:
        rows[index]["label"] = {"good": "bad", "bad": "good"}[rows[index]["label"]]
    data = write_jsonl(folder / "train.jsonl", rows)
    clean = write_jsonl(folder / "validation.jsonl", list(texts(40, first=200)))
    values = {
        "model": tiny_distilbert_dir,
        "task": "SEQ_CLS",
        "data": {"train": data, "validation": clean},
        "lora": {"r": 4, "lora_alpha": 16},
        "training": {
            "num_train_epochs": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "eval_strategy": "no",
            "save_strategy": "no",
            "use_cpu": True,
        },
        "output": str(folder / "run"),
    }
    recipe = Recipe.load(_written(folder / "recipe.yaml", values))
    return Flipped(train(recipe).run_dir, Path(data), indices)


@pytest.fixture(scope="session")
def shares():
    """How far `mistakes` had come, each time that it told."""
    return []


@pytest.fixture(scope="session")
def mistakes(flipped, shares):
    """What is behind the mistakes of `flipped`."""
    from lorakit.training.influence import blame

    return blame(flipped.run, on_share=shares.append)


def _written(path, values):
    path.write_text(json.dumps(values))  # JSON is YAML
    return path
