"""predictions.jsonl and confusion.png of whole runs, from the evaluations of training."""

import json
from pathlib import Path

import pytest

from fixtures.data import write_jsonl
from fixtures.runs import SHORT
from lorakit import load_run
from lorakit.analysis.plots import confusion as confusion_plot
from lorakit.inference import classify, tag
from lorakit.runs.predictions import read_predictions
from lorakit.training import Recipe, RunDirectory, train
from lorakit.training.trainers.kept_predictions import KeptPredictionsMixin
from lorakit.training.validation_predictions import write_predictions

NASTY = 'quote " back\\slash\ttab\u2028separator <b> émoji 😀'
REVIEWS = [
    (f"the film was {word} " + "and long " * (number % 5), label)
    for number in range(8)
    for word, label in (("good", "positive"), ("awful", "negative"))
]


@pytest.fixture
def run_of(tmp_path):
    """Train: run_of(task, model, examples, validation examples, **training)."""

    def run(task, model, train_rows, validation_rows, output="run", **training):
        data = {"train": write_jsonl(tmp_path / "train.jsonl", train_rows)}
        data["validation_fraction"] = 0
        if validation_rows:
            data["validation"] = write_jsonl(tmp_path / "validation.jsonl", validation_rows)
        columns = training.pop("data", {})
        values = {
            "model": model,
            "task": task,
            "data": {**data, **columns},
            "lora": {"r": 2},
            "output": str(tmp_path / output),
            "training": {**SHORT, **training},
        }
        return train(Recipe.check(values, "the test"))

    return run


def rows_of(result):
    text = (result.run_dir / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def reviews(texts=REVIEWS):
    return [{"text": text, "label": label} for text, label in texts]


@pytest.fixture
def evaluations(monkeypatch):
    """The prefixes of the metrics of each evaluation so far."""
    seen = []
    whole = KeptPredictionsMixin.evaluation_loop

    def counting(self, *args, **kwargs):
        seen.append(kwargs["metric_key_prefix"])
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(KeptPredictionsMixin, "evaluation_loop", counting)
    return seen


def test_classes_are_those_of_classify_in_the_order_of_the_file(
    run_of, tiny_distilbert_dir, evaluations
):
    validation = reviews([*REVIEWS[:5], (NASTY, "positive")])
    result = run_of("SEQ_CLS", tiny_distilbert_dir, reviews(), validation)
    rows = rows_of(result)
    assert [(row["text"], row["label"]) for row in rows] == [
        (row["text"], row["label"]) for row in validation
    ]
    assert [list(row) for row in rows] == [["text", "label", "prediction", "probability"]] * 6
    expected = classify(load_run(result.run_dir).loaded, [row["text"] for row in validation])
    assert [row["prediction"] for row in rows] == [one.label for one in expected]
    assert [row["probability"] for row in rows] == pytest.approx(
        [one.probability for one in expected], rel=1e-4
    )
    right = sum(row["prediction"] == row["label"] for row in rows) / len(rows)
    assert result.metrics["eval_accuracy"] == pytest.approx(right)
    evaluated = [
        row for row in RunDirectory(result.run_dir).metrics() if row["event"] == "evaluation"
    ]
    assert evaluations == ["eval"] * len(evaluated)  # none was made for the file alone
    _as_the_studio_reads_them(result, rows)
    _named_in_report_and_result(result)


def _as_the_studio_reads_them(result, rows):
    found = read_predictions(result.run_dir / "predictions.jsonl", "label")
    assert found.problem is None and found.all[-1].text == NASTY
    assert [one.adapter for one in found.all] == [row["prediction"] for row in rows]
    assert [one.confidence for one in found.all] == [row["probability"] for row in rows]
    assert [one.expected for one in found.all] == [row["label"] for row in rows]


def _named_in_report_and_result(result):
    report = (result.run_dir / "report.md").read_text(encoding="utf-8")
    assert "`predictions.jsonl` has the predictions for all 6 validation examples." in report
    assert "![Confusion matrix of the validation examples](confusion.png)" in report
    f1 = f"{result.metrics['eval_f1_positive']:.4g}"
    (line,) = [line for line in report.splitlines() if line.startswith("| positive |")]
    assert line.startswith("| positive | 4 |") and line.endswith(f"| {f1} |")
    names = [path.name for path in result.files]
    assert "predictions.jsonl" in names and "confusion.png" in names
    assert all(path.exists() for path in result.files)


def test_predictions_are_of_the_best_checkpoint(run_of, tiny_distilbert_dir):
    result = run_of(
        "SEQ_CLS",
        tiny_distilbert_dir,
        reviews(),
        reviews(REVIEWS[:4]),
        max_steps=6,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst
        load_best_model_at_end=True,
        learning_rate=5e-2,
    )
    assert "weights of step 6," not in (result.run_dir / "report.md").read_text()
    expected = classify(load_run(result.run_dir).loaded, [row["text"] for row in rows_of(result)])
    assert [row["probability"] for row in rows_of(result)] == pytest.approx(
        [one.probability for one in expected], rel=1e-4
    )


def test_pairs_and_columns_with_the_names_of_new_ones(run_of, tiny_distilbert_dir):
    rows = [
        {"expected": text, "other": "film", "prediction": n % 2}
        for n, (text, _) in enumerate(REVIEWS)
    ]
    columns = {"text": "expected", "text_pair": "other", "label": "prediction"}
    result = run_of("SEQ_CLS", tiny_distilbert_dir, rows, rows[:3], data=columns)
    found = rows_of(result)
    assert [list(row) for row in found] == [
        ["input_expected", "other", "expected", "prediction", "probability"]
    ] * 3
    assert [row["expected"] for row in found] == ["0", "1", "0"]
    (one, *_) = read_predictions(result.run_dir / "predictions.jsonl", "prediction").all
    assert one.expected == "0" and one.text.startswith("input_expected: the film")


def test_tags_are_those_of_tag_and_cut_words_have_none(run_of, tiny_bert_dir, ner_jsonl):
    rows = [json.loads(line) for line in Path(ner_jsonl).read_text().splitlines()]
    short = [{"tokens": ["Rome"], "tags": ["B-LOC"]}, *rows[:3]]
    long = {"tokens": rows[0]["tokens"] * 4, "tags": rows[0]["tags"] * 4}
    data = {"max_length": 12}
    result = run_of("TOKEN_CLS", tiny_bert_dir, rows, [*short, long], data=data)
    found = rows_of(result)
    names = ["tokens", "tags", "prediction", "probability", "predicted_words"]
    assert [list(row) for row in found] == [names] * 5
    expected = tag(load_run(result.run_dir).loaded, [row["tokens"] for row in short])
    for row, given, words in zip(found, short, expected, strict=False):
        assert (row["tokens"], row["tags"]) == (given["tokens"], given["tags"])
        assert row["prediction"] == [word.tag for word in words]
        assert row["probability"] == pytest.approx([word.probability for word in words], rel=1e-4)
        assert row["predicted_words"] == given["tokens"]
    cut = found[-1]
    assert 0 < len(cut["prediction"]) < len(cut["tokens"]) == len(cut["tags"])
    assert cut["predicted_words"] == cut["tokens"][: len(cut["prediction"])]
    assert not (result.run_dir / "confusion.png").exists()
    (one, *_) = read_predictions(result.run_dir / "predictions.jsonl", "tags").all
    assert (one.text, one.expected) == ("Rome", "B-LOC")
    report = (result.run_dir / "report.md").read_text(encoding="utf-8")
    assert "all 5 validation examples" in report and "confusion.png" not in report


def test_generated_texts_are_written_where_an_evaluation_generates(run_of, tiny_t5_dir):
    rows = [{"source": text, "target": label} for text, label in REVIEWS]
    result = run_of("SEQ_2_SEQ_LM", tiny_t5_dir, rows, rows[:3], data={"max_target_length": 6})
    found = rows_of(result)
    names = ["source", "target", "prediction", "base_prediction"]
    assert [list(row) for row in found] == [names] * 3
    assert [row["source"] for row in found] == [row["source"] for row in rows[:3]]
    expected = load_run(result.run_dir).predict([row["source"] for row in found])
    assert [row["prediction"] for row in found] == expected
    expected = load_run(result.run_dir).predict([row["source"] for row in found], use_base=True)
    assert [row["base_prediction"] for row in found] == expected
    again = run_of("SEQ_2_SEQ_LM", tiny_t5_dir, rows, rows[:3], "loss", predict_with_generate=False)
    assert not (again.run_dir / "predictions.jsonl").exists()


def test_without_validation_there_is_neither_file(run_of, tiny_distilbert_dir):
    result = run_of("SEQ_CLS", tiny_distilbert_dir, reviews(), None)
    assert not (result.run_dir / "predictions.jsonl").exists()
    assert not (result.run_dir / "confusion.png").exists()
    assert "predictions" not in (result.run_dir / "report.md").read_text()
    assert all(path.exists() for path in result.files)


def test_a_resumed_run_has_the_same_predictions(run_of, tiny_distilbert_dir, evaluations):
    """A process that ended between its last evaluation and the report."""
    given = ("SEQ_CLS", tiny_distilbert_dir, reviews(), reviews(REVIEWS[:4]))
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    result = run_of(*given, **settings)
    run = RunDirectory(result.run_dir)
    before, metrics = rows_of(result), run.metrics()
    run.report_file.unlink()
    run.predictions_file.write_text("of another adapter\n")
    run.confusion_plot.unlink()
    evaluations.clear()
    train(run.recipe_file, resume=True)
    assert evaluations == ["test"]  # classes are predicted once more, and nothing is logged
    assert [row["prediction"] for row in rows_of(result)] == [row["prediction"] for row in before]
    assert [row["probability"] for row in rows_of(result)] == pytest.approx(
        [row["probability"] for row in before], rel=1e-4
    )
    assert run.confusion_plot.exists()
    assert [row.keys() for row in run.metrics()] == [row.keys() for row in metrics]
    assert run.recipe().training["max_steps"] == 4


def test_what_an_earlier_adapter_left_is_deleted(tmp_path):
    run = RunDirectory(tmp_path)
    run.predictions_file.write_text("old\n")
    run.confusion_plot.write_text("old")
    assert write_predictions(None, None, run) is None
    assert not list(tmp_path.iterdir())
    assert write_predictions(None, None, run) is None


def test_more_classes_than_can_be_drawn(run_of, tiny_distilbert_dir, monkeypatch):
    monkeypatch.setattr(confusion_plot, "save_png", None)  # would fail
    rows = [{"text": f"film {n}", "label": f"class {n}"} for n in range(31)]
    result = run_of("SEQ_CLS", tiny_distilbert_dir, rows, rows[:2], max_steps=1)
    assert len(rows_of(result)) == 2
    assert "predictions.jsonl" in [path.name for path in result.files]
    assert "confusion.png" not in [path.name for path in result.files]
