"""The verdict of whole runs: every task, a base with a head, packed texts, noise that is learnt."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset

from fixtures.data import write_jsonl
from fixtures.runs import SHORT
from fixtures.tasks import make_recipe
from lorakit import load_run
from lorakit.errors import ConfigError
from lorakit.inference.merge_checkpoint import merge_to_checkpoint
from lorakit.quickstart.model_files import base_model_path
from lorakit.training import Recipe, RunDirectory, evaluate, train
from lorakit.training.tasks import task_for
from lorakit.training.validation_predictions import find_at_end
from lorakit.training.verdict.judge import (
    encode_neutral_text,
    neutral_passages,
    with_examples_in_prompt,
)

WORDS = {"good": "positive", "fine": "positive", "awful": "negative", "dull": "negative"}


@pytest.fixture
def run_of(tmp_path):
    """Train: run_of(task, model, training examples, validation examples, ...)."""

    def run(task, model, rows, validation, output="run", *, evaluation=None, data=None, **training):
        values = {
            "model": str(model),
            "task": task,
            "data": {
                "train": write_jsonl(tmp_path / "train.jsonl", rows),
                "validation": write_jsonl(tmp_path / "validation.jsonl", validation),
                **(data or {}),
            },
            "lora": {"r": 4},
            "evaluation": evaluation,
            "output": str(tmp_path / output),
            "training": {**SHORT, **training},
        }
        return train(Recipe.check(values, "the test"), on_event=announce)

    def announce(name, payload):
        if name == "comparing":
            run.announced.append(payload["examples"])

    run.announced = []
    return run


def reviews(count):
    words = [*WORDS] * count
    return [
        {"text": f"the film was {word}, number {n}", "label": WORDS[word]}
        for n, word in enumerate(words[:count])
    ]


def report_of(result):
    return (result.run_dir / "report.md").read_text(encoding="utf-8")


def test_a_fresh_head_is_compared_with_guessing(run_of, tiny_distilbert_dir):
    rows = [*reviews(40), {"text": "an awful one", "label": "negative"}]
    result = run_of(
        *("SEQ_CLS", tiny_distilbert_dir, rows, reviews(30)),
        max_steps=40,
        learning_rate=2e-2,
    )
    verdict = result.verdict
    assert verdict.comparison.baseline == "guessing the commonest class"
    assert (
        verdict.comparison.before == 14 / 30
    )  # negative is the commonest of the training examples
    assert verdict.comparison.after == pytest.approx(result.metrics["eval_accuracy"])
    assert verdict.comparison.outcome == "better" and verdict.forgetting is None
    assert verdict.sentence.startswith("Better than guessing the commonest class by ")
    assert report_of(result).split("\n")[2] == f"**{verdict.sentence}**"
    rows = (result.run_dir / "predictions.jsonl").read_text().splitlines()
    assert "base_prediction" not in json.loads(rows[0])
    assert "### Random examples" in report_of(result)


def test_a_base_with_a_head_answers_itself(run_of, tiny_distilbert_dir, tmp_path):
    first = run_of("SEQ_CLS", tiny_distilbert_dir, reviews(40), reviews(30), max_steps=4)
    merge_to_checkpoint(first.run_dir, tmp_path / "merged")
    result = run_of(
        *("SEQ_CLS", tmp_path / "merged", reviews(40), reviews(30), "second"),
        max_steps=40,
        learning_rate=2e-2,
    )
    found = result.verdict.comparison
    assert found.baseline == "the base" and found.outcome == "better"
    lines = (result.run_dir / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = ["text", "label", "prediction", "base_prediction", "probability"]
    assert list(rows[0]) == names
    expected = load_run(first.run_dir).predict([row["text"] for row in rows])
    assert [row["base_prediction"] for row in rows] == [one.label for one in expected]
    base = sum(row["base_prediction"] == row["label"] for row in rows) / 30
    assert found.before == pytest.approx(base)
    table = report_of(result).split("### Random examples")[1]
    assert "| expected | adapter | base | probability |" in table


def test_tags_and_generated_texts(run_of, tiny_bert_dir, tiny_t5_dir):
    tagged = [{"tokens": ["Anna", "sees", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}] * 24
    result = run_of("TOKEN_CLS", tiny_bert_dir, tagged, tagged, max_steps=30, learning_rate=2e-2)
    found = result.verdict.comparison
    assert (found.metric, found.before) == ("F1", 0.0)
    assert found.after == pytest.approx(result.metrics["eval_f1"])
    texts = [{"source": f"say {n}", "target": "a b c"} for n in range(24)]
    data = {"max_target_length": 4}
    result = run_of("SEQ_2_SEQ_LM", tiny_t5_dir, texts, texts, "texts", data=data)
    found = result.verdict.comparison
    assert (found.metric, found.baseline, found.examples) == ("ROUGE-L", "the base", 24)
    assert found.after == pytest.approx(result.metrics["eval_rougeL"])
    result = run_of(
        *("SEQ_2_SEQ_LM", tiny_t5_dir, texts, texts, "losses"),
        data=data,
        predict_with_generate=False,
    )
    found = result.verdict.comparison
    assert found.metric == "perplexity" and found.before > found.after
    assert np.log(found.after) == pytest.approx(result.metrics["eval_loss"], rel=1e-5)
    assert np.log(found.before) == pytest.approx(
        evaluate(result.run_dir, use_base=True)["eval_loss"], rel=1e-5
    )


def noise(seed, count=24):
    generator = random.Random(seed)
    return [
        {"text": " ".join(generator.choice("qxzvkj") * 3 for _ in range(12))} for _ in range(count)
    ]


@pytest.mark.usefixtures("all_neutral_passages")
def test_a_model_that_learns_noise_forgets_and_one_that_hardly_learns_does_not(run_of):
    given = ("CAUSAL_LM", base_model_path(), noise(0), noise(1, count=8))
    data = {"max_length": 64}
    broken = run_of(*given, "broken", data=data, max_steps=6, learning_rate=3e-2)
    found = broken.verdict.forgetting
    assert found.is_measurable and found.rise.value > 20 and found.after > found.before
    assert ", forgets " in broken.verdict.sentence
    assert "forgets nothing measurable" not in broken.verdict.sentence
    careful = run_of(*given, "careful", data=data, max_steps=2, learning_rate=1e-7)
    found = careful.verdict.forgetting
    assert not found.is_measurable and abs(found.rise.value) < 1
    assert found.before == pytest.approx(broken.verdict.forgetting.before, rel=1e-5)
    assert careful.verdict.sentence.endswith(", forgets nothing measurable.")
    report = report_of(broken)
    assert "| perplexity of neutral text |" in report and "### The least likely answers" in report


def facts(count):
    colours = {"sky": "blue", "snow": "white", "grass": "green", "sun": "yellow"}
    names = [*colours] * count
    return [
        {"prompt": f"{n}: what colour is the {name}?", "completion": f" {colours[name]}"}
        for n, name in enumerate(names[:count])
    ]


def test_the_base_may_be_shown_examples(run_of, tiny_llama_dir):
    given = ("CAUSAL_LM", tiny_llama_dir, facts(8), facts(24))
    plain = run_of(*given)
    shown = run_of(*given, "shown", evaluation={"examples_in_prompt": 2})
    before, after = plain.verdict.comparison, shown.verdict.comparison
    assert before.baseline == "the base"
    assert after.baseline == "the base with 2 examples in its prompt"
    assert after.before != before.before and after.after == pytest.approx(before.after)
    assert "The base is shown 2 training examples" in report_of(shown)
    assert "| input | expected | adapter | base |" in report_of(plain)


@pytest.mark.parametrize("packing", [{"packing": True}, {"padding_free": True}])
def test_packed_texts_are_compared_one_by_one(run_of, tiny_llama_dir, packing):
    given = ("CAUSAL_LM", tiny_llama_dir, facts(24), facts(24))
    apart = run_of(*given, data={"max_length": 64})
    packed = run_of(*given, "packed", data={"max_length": 64}, **packing)
    before, after = apart.verdict.comparison, packed.verdict.comparison
    assert before.examples == after.examples == 24
    assert run_of.announced == [24, 24], "texts, not packs"
    assert after.before == pytest.approx(before.before, rel=1e-4)
    assert packed.verdict.forgetting.before == pytest.approx(
        apart.verdict.forgetting.before, rel=1e-4
    )


def test_nothing_is_compared_where_the_recipe_says_so(run_of, tiny_llama_dir, monkeypatch):
    monkeypatch.setattr("lorakit.training.validation_predictions.judge", None)
    given = ("CAUSAL_LM", tiny_llama_dir, facts(8), facts(24))
    result = run_of(*given, evaluation={"compare_with_base": False})
    assert result.verdict is None and "Is it better?" not in report_of(result)


def test_a_run_without_an_evaluation_says_what_it_forgets(run_of, tiny_llama_dir):
    given = ("CAUSAL_LM", tiny_llama_dir, facts(8), facts(24))
    result = run_of(*given, eval_strategy="no")
    assert result.verdict.comparison is None and result.verdict.forgetting is not None
    assert "Adapter and base are not compared: the run has no evaluation." in report_of(result)


def test_a_resumed_run_is_compared_once_at_its_end(run_of, tiny_t5_dir, monkeypatch):
    texts = [{"source": f"say {n}", "target": "a b c"} for n in range(24)]
    given = ("SEQ_2_SEQ_LM", tiny_t5_dir, texts, texts)
    result = run_of(*given, data={"max_target_length": 4}, save_strategy="epoch")
    run = RunDirectory(result.run_dir)
    run.report_file.unlink()
    calls = []

    def counted(*values):
        calls.append(values)
        return find_at_end(*values)

    monkeypatch.setattr("lorakit.training.run.find_at_end", counted)
    again = train(run.recipe_file, resume=True)
    assert json.loads(run.verdict_file.read_text())["sentence"] == again.verdict.sentence
    assert len(calls) == 1 and again.verdict.comparison == result.verdict.comparison
    logged = [row["event"] for row in run.metrics()]
    assert "base_loss" not in json.dumps(run.metrics()) and logged.count("summary") == 1


def test_bad_input_is_refused(run_of, tiny_distilbert_dir, tiny_llama_dir):
    given = ("SEQ_CLS", tiny_distilbert_dir, reviews(8), reviews(4))
    with pytest.raises(ConfigError, match="expected CAUSAL_LM"):
        run_of(*given, evaluation={"examples_in_prompt": 2})
    with pytest.raises(ConfigError, match=r"evaluation\.examples_in_prompt"):
        run_of(*given, evaluation={"examples_in_prompt": -1})
    with pytest.raises(ConfigError, match="compare_with_base"):
        run_of(*given, evaluation={"compare_with_bas": True})


def test_examples_before_a_prompt_do_not_count_and_fit():
    known = Dataset.from_dict({"input_ids": [[1, 2], [3, 4, 5]], "labels": [[1, 2], [3, 4, 5]]})
    examples = Dataset.from_dict({"input_ids": [[7, 8]], "labels": [[-100, 8]]})
    (made,) = with_examples_in_prompt(examples, known, 2, None, 0)
    assert sorted(made["input_ids"][:5]) == [1, 2, 3, 4, 5] and made["input_ids"][5:] == [7, 8]
    assert made["labels"] == [-100] * 6 + [8]
    (short,) = with_examples_in_prompt(examples, known, 2, 4, 0)
    assert short["input_ids"] == [1, 2, 7, 8]


def test_the_first_token_counts_with_examples_before_it_as_little_as_without():
    known = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]})
    texts = Dataset.from_dict({"input_ids": [[7, 8, 9]], "labels": [[7, 8, 9]]})
    (made,) = with_examples_in_prompt(texts, known, 1, None, 0)
    assert made["labels"] == [-100, -100, -100, 8, 9]


def test_the_passages_are_many_short_and_different():
    passages = neutral_passages()
    assert len(passages) == len(set(passages)) >= 30
    assert all(80 < len(passage) < 600 and passage == passage.strip() for passage in passages)


@pytest.mark.usefixtures("all_neutral_passages")
def test_passages_are_encoded_within_the_models_limit(tiny_llama_dir, prompt_jsonl):
    recipe = make_recipe("CAUSAL_LM", tiny_llama_dir, prompt_jsonl)
    task = task_for(recipe.task)
    tokenizer = task.load_tokenizer(recipe)
    model = task.load_base(recipe, tokenizer, None)
    model.config.max_position_embeddings = 16
    made = encode_neutral_text(model, tokenizer)
    assert len(made) == len(neutral_passages())
    assert all(1 < len(row["input_ids"]) <= 16 for row in made)
    assert made["labels"][:] == made["input_ids"][:]
