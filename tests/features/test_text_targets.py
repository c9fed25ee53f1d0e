"""Several labels and numbers for a text: trained, measured, saved, predicted."""

import json

import pytest

from fixtures.data import write_jsonl
from lorakit import load_run
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.errors import LorakitError
from lorakit.inference import LabelSet, Numbers, PredictionSettings, predict_file
from lorakit.recipes.recipe import Recipe
from lorakit.training import dry_run, evaluate, train

WORDS = ("good", "bad", "film", "cat")


def rows_of(count, target):
    rows = []
    for number in range(count):
        words = [word for at, word in enumerate(WORDS) if number >> at & 1]
        rows.append({"text": " ".join(words or ["the"]), "label": target(words)})
    return rows


def recipe_of(tmp_path, model, rows, held_out=None, epochs=12, **data):
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    other = write_jsonl(tmp_path / "other.jsonl", held_out or rows[:16])
    return Recipe.check(
        {
            "model": model,
            "task": "SEQ_CLS",
            "data": {"train": path, "validation": other, **data},
            "lora": {"r": 4, "lora_alpha": 8},
            "training": {
                "use_cpu": True,
                "learning_rate": 2e-2,
                "num_train_epochs": epochs,
                "per_device_train_batch_size": 16,
                "eval_strategy": "no",
            },
            "output": str(tmp_path / "run"),
        },
        "the test",
    )


def with_evaluation(recipe):
    return recipe.with_changes({"training.eval_strategy": "epoch"}, "the test")


def test_several_labels_are_learned_and_thresholds_saved(tmp_path, tiny_distilbert_dir):
    rows = rows_of(48, lambda words: [w for w in words if w in ("good", "film")])
    recipe = with_evaluation(recipe_of(tmp_path, tiny_distilbert_dir, rows))

    result = train(recipe)

    assert result.metrics["eval_macro_f1"] > 0.9
    assert result.metrics["eval_ranking_average_precision"] > 0.9
    settings = InferenceSettings.load(result.adapter_path)
    assert settings.problem_type == "multi_label_classification"
    assert settings.labels == ("film", "good") and len(settings.thresholds) == 2
    assert evaluate(result.run_dir) == pytest.approx(result.metrics, abs=1e-6)
    run = load_run(result.run_dir)
    assert run.loaded.model.config.problem_type == "multi_label_classification"
    found = run.predict(["good film", "cat"])
    assert all(isinstance(one, LabelSet) for one in found)
    assert set(found[0].labels) == {"good", "film"} and found[1].labels == ()
    lines = (result.run_dir / "predictions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert list(first) == ["text", "label", "prediction", "probability"]
    expected = load_run(result.run_dir).predict([json.loads(line)["text"] for line in lines])
    assert [json.loads(line)["prediction"] for line in lines] == [
        list(one.labels) for one in expected
    ]


def test_a_file_is_predicted_with_labels(tmp_path, tiny_distilbert_dir):
    rows = rows_of(48, lambda words: [f"a {w}" for w in words if w in ("good", "film")])
    result = train(recipe_of(tmp_path, tiny_distilbert_dir, rows, epochs=1))
    loaded = load_run(result.run_dir).loaded

    made = predict_file(loaded, tmp_path / "other.jsonl", tmp_path / "made.jsonl")

    assert made.columns == ("prediction", "probability")
    first = json.loads((tmp_path / "made.jsonl").read_text().splitlines()[0])
    assert isinstance(first["prediction"], list)
    notes, table, none = [], tmp_path / "made.csv", tmp_path / "none.jsonl"
    settings = PredictionSettings(prefix="its_")
    predict_file(loaded, tmp_path / "made.jsonl", table, settings, on_note=notes.append)
    assert notes[-1] == "Labels in a cell are separated by '|' (data.label_separator)."
    changes = {"data.label": "its_prediction", "data.label_separator": "|"}
    read = Recipe.load(result.run_dir / "recipe.yaml").with_changes(changes, "the test")
    assert evaluate(result.run_dir, read, data=str(table))["eval_micro_f1"] == 1
    none.write_text('{"text": "cat", "label": []}\n' * 2)
    assert evaluate(result.run_dir, data=str(none))["eval_macro_f1"] == 0


def test_numbers_are_learned(tmp_path, tiny_distilbert_dir):
    rows = rows_of(48, lambda words: 0.5 + ("good" in words) - ("bad" in words))
    recipe = with_evaluation(recipe_of(tmp_path, tiny_distilbert_dir, rows))

    result = train(recipe)

    assert result.metrics["eval_rmse"] < 0.4
    assert result.metrics["eval_rmse"] ** 2 == pytest.approx(result.metrics["eval_loss"], rel=1e-4)
    assert result.metrics["eval_pearson"] > 0.8
    assert evaluate(result.run_dir) == pytest.approx(result.metrics, abs=1e-6)
    run = load_run(result.run_dir)
    assert run.labels == ("label",) and run.loaded.model.config.problem_type == "regression"
    good, bad = run.predict(["good", "bad"])
    assert isinstance(good, Numbers) and good.values["label"] > bad.values["label"]
    predict_file(run.loaded, tmp_path / "other.jsonl", tmp_path / "made.csv")
    assert (tmp_path / "made.csv").read_text().splitlines()[0] == "text,label,prediction"
    assert Recipe.load(result.run_dir / "recipe.yaml").data.problem_type == "regression"


def test_several_numbers_each_have_their_metrics(tmp_path, tiny_distilbert_dir):
    rows = rows_of(32, lambda words: ["good" in words, 0.5 * ("bad" in words)])
    for row in rows:
        row["label"] = list(map(float, row["label"]))
    recipe = with_evaluation(recipe_of(tmp_path, tiny_distilbert_dir, rows, epochs=1))

    result = train(recipe)

    assert {"eval_rmse", "eval_rmse_label_1", "eval_spearman_label_2"} <= set(result.metrics)
    assert list(load_run(result.run_dir).predict(["good"])[0].values) == ["label_1", "label_2"]


def test_whole_numbers_are_numbers_where_the_recipe_says_so(tmp_path, tiny_distilbert_dir):
    rows = rows_of(24, len)
    dry = dry_run(recipe_of(tmp_path, tiny_distilbert_dir, rows, problem_type="regression"))

    assert dry.labels == ("label",)
    assert dry.preview_examples[0].note == "target: 0"
    assert "The labels are read as a number to predict" in " ".join(dry.notes)


def test_labels_in_one_cell_are_split(tmp_path, tiny_distilbert_dir):
    text = "text,label\ngood film,a|b\nbad,b\ncat,\nfilm,a | c\n"
    (tmp_path / "labels.csv").write_text(text)
    recipe = recipe_of(tmp_path, tiny_distilbert_dir, rows_of(4, lambda words: ["a"]))
    data = {"train": str(tmp_path / "labels.csv"), "validation_fraction": 0}
    data |= {"validation": None, "label_separator": "|"}
    changes = {f"data.{key}": value for key, value in data.items()}

    dry = dry_run(recipe.with_changes(changes, "the test"))

    assert dry.labels == ("a", "b", "c")
    assert dry.preview_examples[0].note == "labels: a, b"


@pytest.mark.parametrize(
    ("rows", "held_out", "data", "said"),
    [
        (
            [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y"]}],
            [{"text": "a", "label": ["z"]}],
            {},
            "Labels unseen in training",
        ),
        (
            [{"text": "a", "label": 0.5}, {"text": "b", "label": 0.75}],
            [{"text": "a", "label": "much"}],
            {},
            "Not numbers in the validation examples",
        ),
        (
            [{"text": "a", "label": 1.0}, {"text": "b", "label": 2.0}],
            None,
            {},
            "Labels can be read in two ways",
        ),
        (
            [{"text": "a", "label": [0.5, 1.0]}, {"text": "b", "label": [0.5]}],
            None,
            {},
            "Lists of numbers differ",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": ["y"]}],
            None,
            {"problem_type": "multi_label_classification"},
            "Not lists of labels",
        ),
        (
            [{"text": "a", "label": []}, {"text": "b", "label": []}],
            None,
            {"problem_type": "multi_label_classification"},
            "got no label in any example",
        ),
        (
            [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y"]}],
            None,
            {"class_weights": "balanced"},
            "Only classes have weights",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
            None,
            {"class_weights": {"z": 2}},
            "No such class in data.class_weights",
        ),
    ],
)
def test_bad_targets_are_refused(tmp_path, tiny_distilbert_dir, rows, held_out, data, said):
    recipe = recipe_of(tmp_path, tiny_distilbert_dir, rows, held_out, **data)
    with pytest.raises(LorakitError) as caught:
        dry_run(recipe)
    assert said in str(caught.value)


def test_an_unknown_label_at_evaluation_is_refused(tmp_path, tiny_distilbert_dir):
    rows = rows_of(16, lambda words: [w for w in words if w in ("good", "film")])
    recipe = recipe_of(tmp_path, tiny_distilbert_dir, rows)
    result = train(recipe.with_changes({"training.max_steps": 1}, "the test"))
    other = write_jsonl(tmp_path / "unknown.jsonl", [{"text": "good", "label": ["good", "new"]}])

    for gone in (False, True):
        if gone:
            (tmp_path / "train.jsonl").unlink()
        with pytest.raises(LorakitError, match="new"):
            evaluate(result.run_dir, data=other)


def test_label_smoothing_is_for_classes(tmp_path, tiny_distilbert_dir):
    recipe = recipe_of(tmp_path, tiny_distilbert_dir, rows_of(8, lambda words: 0.25 * len(words)))
    smoothed = recipe.with_changes({"training.label_smoothing_factor": 0.1}, "the test")

    with pytest.raises(LorakitError, match="Only classes can be smoothed"):
        train(smoothed)


def test_balanced_weights_raise_the_rare_class(tmp_path, tiny_distilbert_dir):
    rows = [{"text": "film", "label": "common"}] * 28 + [{"text": "film", "label": "rare"}] * 4
    recipe = recipe_of(tmp_path, tiny_distilbert_dir, rows)
    weighted = recipe.with_changes(
        {"data.class_weights": "balanced", "output": str(tmp_path / "weighted")}, "the test"
    )

    shares = []
    for one in (recipe, weighted):
        (found,) = load_run(train(one).run_dir).predict(["film"])
        shares.append(found.probabilities["rare"])

    assert shares[0] < 0.3 < shares[1]
    assert shares[1] == pytest.approx(0.5, abs=0.15)
