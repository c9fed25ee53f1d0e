"""The verdict of numbers, several labels, preferences and reward models, in whole runs."""

import json
import random

import numpy as np
import pytest

from fixtures.data import write_jsonl
from fixtures.preferences import PAIRS, VOTES, preference_recipe
from fixtures.runs import SHORT
from fixtures.tasks import make_recipe
from lorakit.errors import ConfigError
from lorakit.inference.merge_checkpoint import merge_to_checkpoint
from lorakit.quickstart.model_files import base_model_path
from lorakit.training import Recipe, RunDirectory, evaluate, train


@pytest.fixture
def run_of(tmp_path):
    """Train on texts: run_of(task, model, training examples, validation examples, ...)."""

    def run(task, model, rows, validation, *, data=None, **training):
        recipe = make_recipe(
            *(task, str(model), write_jsonl(tmp_path / "train.jsonl", rows)),
            validation=write_jsonl(tmp_path / "validation.jsonl", validation),
            training={**SHORT, **training},
            **(data or {}),
        )
        return train(recipe.with_changes({"output": str(tmp_path / "texts")}, "the test"))

    return run


def report_of(result):
    return (result.run_dir / "report.md").read_text(encoding="utf-8")


def shades(count, seed=0):
    generator = random.Random(seed)
    numbers = {"bright": 3.0, "dim": 1.0, "dark": 0.0}
    words = [generator.choice([*numbers]) for _ in range(count)]
    return [
        {"text": f"a {word} room, number {n}", "label": numbers[word] + n % 2 / 10}
        for n, word in enumerate(words)
    ]


def test_numbers_are_compared_with_their_mean(run_of, tiny_distilbert_dir):
    result = run_of(
        *("SEQ_CLS", tiny_distilbert_dir, shades(60), shades(40, 1)),
        data={"problem_type": "regression"},
        max_steps=60,
        learning_rate=2e-2,
    )
    verdict = result.verdict
    found, (further,) = verdict.comparison, verdict.further
    assert (found.metric, further.metric) == ("RMSE", "MAE")
    assert found.baseline == "predicting the mean" and found.outcome == "better"
    assert found.after == pytest.approx(result.metrics["eval_rmse"], rel=1e-5)
    assert further.after == pytest.approx(result.metrics["eval_mae"], rel=1e-5)
    expected = [row["label"] for row in shades(40, 1)]
    mean = np.mean([row["label"] for row in shades(60)])
    assert found.before == pytest.approx(np.sqrt(np.mean((np.array(expected) - mean) ** 2)))
    assert found.gain.value == pytest.approx(100 * (1 - found.after / found.before))
    assert verdict.sentence.startswith("Better than predicting the mean by ")
    assert verdict.sentence.endswith("% of RMSE.")
    report = report_of(result)
    assert "its numbers would be noise" in report and "| MAE |" in report
    lines = (result.run_dir / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    errors = sorted(rows, key=lambda row: -abs(row["prediction"] - row["label"]))
    section = report.split("### The largest errors")[1].split("### Random examples")[0]
    shown = [line for line in section.split("\n") if "a " in line and line.startswith("| example")]
    assert len(shown) == 10
    assert [row["text"] in line for row, line in zip(errors[:10], shown, strict=True)] == [
        True
    ] * 10


def topics(count, seed=0):
    generator = random.Random(seed)
    words = {"price": "cost", "late": "delivery", "rude": "staff"}
    rows = []
    for _ in range(count):
        chosen = [word for word in words if generator.random() < 0.5]
        text = f"it was {' and '.join(chosen) or 'fine'}"
        rows.append({"text": text, "label": [words[word] for word in chosen]})
    return rows


def test_several_labels_are_compared_with_the_commonest_set(run_of, tiny_distilbert_dir):
    result = run_of(
        *("SEQ_CLS", tiny_distilbert_dir, topics(80), topics(40, 1)),
        max_steps=60,
        learning_rate=2e-2,
    )
    found, (further,) = result.verdict.comparison, result.verdict.further
    assert (found.metric, further.metric) == ("micro F1", "macro F1")
    assert found.after == pytest.approx(result.metrics["eval_micro_f1"])
    assert further.after == pytest.approx(result.metrics["eval_macro_f1"])
    assert found.baseline == "guessing the commonest labels" and found.outcome == "better"
    report = report_of(result)
    assert "| label | examples | precision | recall | F1 |" in report
    (line,) = [line for line in report.split("\n") if line.startswith("| cost |")]
    f1 = float(line.split("|")[5])
    assert f1 == pytest.approx(result.metrics["eval_f1_cost"], abs=1e-3)
    assert "confusion.png" not in report and not (result.run_dir / "confusion.png").exists()
    assert "blame" not in report.split("## Data")[0]


RIGHT = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS * 2]


def train_preferences(folder, model, rows, objective, *, evaluation=None, **options):
    training = {"use_cpu": True, "per_device_train_batch_size": 4, "num_train_epochs": 2}
    recipe = preference_recipe(
        *(folder, str(model), rows, objective),
        training=training | options.pop("training", {}),
        **options,
    )
    changes = {"output": str(folder / "run"), "evaluation": evaluation or {}}
    return train(recipe.with_changes(changes, "the test"))


@pytest.mark.parametrize(
    "objective",
    [{"type": "dpo"}, {"type": "dpo", "length_normalized": True}, {"type": "orpo"}],
    ids=["sums", "means", "orpo"],
)
def test_pairs_are_compared_by_the_likelier_answer(tmp_path, tiny_llama_dir, objective):
    result = train_preferences(
        *(tmp_path, tiny_llama_dir, PAIRS * 4, objective),
        validation_fraction=0.5,
        training={"learning_rate": 2e-2, "num_train_epochs": 3},
    )
    verdict = result.verdict
    found = verdict.comparison
    assert (found.metric, found.baseline, found.examples) == ("preference accuracy", "the base", 24)
    assert found.after == pytest.approx(result.metrics["eval_preference_accuracy"])
    base = evaluate(result.run_dir, use_base=True)
    assert found.before == pytest.approx(base["eval_preference_accuracy"])
    assert verdict.divergence == pytest.approx(result.metrics["eval_kl"]) and verdict.divergence > 0
    assert base["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert verdict.forgetting is not None and verdict.forgetting.texts >= 4
    report = report_of(result)
    assert "| KL divergence from the reference, per token | 0 |" in report
    assert "| input | expected | adapter | base |" in report
    kept = json.loads((result.run_dir / "verdict.json").read_text())
    assert kept["comparison"]["metric"] == "preference accuracy" and kept["divergence"] > 0


def test_what_pairs_make_a_model_forget_is_measured_as_for_right_answers(run_of, tmp_path):
    """Both adapters hardly learn, so both find the base as good as the other does."""
    hardly = {"learning_rate": 1e-9, "max_steps": 1}
    plain = run_of("CAUSAL_LM", base_model_path(), RIGHT[:8], RIGHT, **hardly)
    pairs = train_preferences(tmp_path, base_model_path(), PAIRS, {"type": "dpo"}, training=hardly)
    found, expected = pairs.verdict.forgetting, plain.verdict.forgetting
    assert (found.texts, found.tokens) == (expected.texts, expected.tokens)
    assert found.before == pytest.approx(expected.before, rel=1e-5)
    assert pairs.verdict.sentence.endswith(", forgets nothing measurable.")


def test_votes_are_compared_with_the_commonest(tmp_path, tiny_llama_dir):
    result = train_preferences(
        tmp_path, tiny_llama_dir, VOTES * 2, {"type": "kto"}, validation_fraction=0.5
    )
    found = result.verdict.comparison
    assert (found.metric, found.baseline) == ("accuracy", "guessing the commonest vote")
    assert found.before == 0.5 and found.examples == 24
    assert found.after == pytest.approx(result.metrics["eval_accuracy"])
    assert result.verdict.forgetting is not None
    assert "preference_accuracy" not in "".join(result.metrics)


def test_a_reward_model_is_compared_with_chance_or_a_base_with_a_head(tmp_path, tiny_llama_dir):
    result = train_preferences(
        *(tmp_path, tiny_llama_dir, PAIRS * 4, {"type": "reward"}),
        validation_fraction=0.5,
        training={"learning_rate": 2e-2, "num_train_epochs": 4},
    )
    found = result.verdict.comparison
    assert (found.metric, found.baseline, found.before) == ("accuracy", "chance", 0.5)
    assert found.after == pytest.approx(result.metrics["eval_accuracy"])
    assert found.outcome == "better" and result.verdict.forgetting is None
    merge_to_checkpoint(result.run_dir, tmp_path / "merged")
    (tmp_path / "second").mkdir()
    again = train_preferences(
        *(tmp_path / "second", tmp_path / "merged", PAIRS * 4, {"type": "reward"}),
        validation_fraction=0.5,
    )
    assert again.verdict.comparison.baseline == "the base"
    assert again.verdict.comparison.before == pytest.approx(found.after)


def test_a_second_round_is_compared_with_the_base_and_diverges_from_the_first(
    tmp_path, tiny_llama_dir
):
    first = train_preferences(
        *(tmp_path, tiny_llama_dir, PAIRS * 4, {"type": "dpo"}),
        validation_fraction=0.5,
        training={"learning_rate": 2e-2},
    )
    values = RunDirectory(first.run_dir).recipe().model_dump(mode="json")
    del values["lora"]
    training = {**values["training"], "learning_rate": 1e-12, "max_steps": 1}
    changes = {"start_from": str(first.run_dir), "output": str(tmp_path / "second")}
    again = train(Recipe.check({**values, **changes, "training": training}, "the test"))
    found, before = again.verdict, first.verdict
    assert found.comparison.before == before.comparison.before
    assert found.comparison.after == before.comparison.after
    assert found.divergence == pytest.approx(0, abs=1e-5) and before.divergence > 1e-3


def test_the_base_of_preferences_is_shown_no_examples(tmp_path, tiny_llama_dir):
    with pytest.raises(ConfigError, match="beside `objective`"):
        train_preferences(
            *(tmp_path, tiny_llama_dir, PAIRS, {"type": "dpo"}),
            evaluation={"examples_in_prompt": 2},
        )
