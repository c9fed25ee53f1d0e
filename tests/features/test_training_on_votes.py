"""Files of votes are what a recipe trains on: better answers, labels and tags."""

import pytest

from lorakit import train
from lorakit.runs.votes import add_votes, preference, right_label, right_tags, vote_file
from lorakit.training import Recipe

TRAINING = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}


def answers(prompt):
    return [
        preference(prompt(n), f"blue {n}", "green", chosen_from="user", rejected_from="base")
        for n in range(4)
    ]


def talk(n):
    return [{"role": "user", "content": f"what colour is sky {n}"}]


@pytest.mark.parametrize(
    ("subject", "task", "votes", "data"),
    [
        (
            "chat",
            "CAUSAL_LM",
            answers(talk),
            {"format": "prompt_completion", "completion": "chosen"},
        ),
        (
            "texts",
            "CAUSAL_LM",
            answers(lambda n: f"the sky {n} is "),
            {"format": "prompt_completion", "completion": "chosen"},
        ),
        (
            "labels",
            "SEQ_CLS",
            [right_label(f"text {n}", "good" if n % 2 else "bad", "bad", "m") for n in range(4)],
            {},
        ),
        (
            "tags",
            "TOKEN_CLS",
            [right_tags(["in", f"Rome{n}"], ["O", "B-X"], ["O", "O"], "m") for n in range(4)],
            {},
        ),
    ],
)
def test_a_recipe_trains_on_votes(tmp_path, tiny_llama_dir, subject, task, votes, data):
    file = vote_file(tmp_path, subject)
    assert add_votes(file, votes).total == 4
    recipe = {
        "model": str(tiny_llama_dir),
        "task": task,
        "data": {"train": str(file), "validation_fraction": 0, **data},
        "lora": {"r": 2},
        "training": TRAINING,
        "output": str(tmp_path / "run"),
    }
    assert train(Recipe.check(recipe, "the recipe")).adapter_path.is_dir()
