"""Predictions of many inputs, whatever the task."""

import pytest

import lorakit
from lorakit.inference import classify, generate_text, load_for_inference, predict

TEXTS = ["the film was great", "snow is white", "the dog was awful and bad " * 3, "great cat"]


def test_predictions_come_in_the_order_of_inputs(classifier):
    found = predict(classifier, TEXTS, batch_rows=2)
    for one, other in zip(found, classify(classifier, TEXTS), strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_a_loaded_run_predicts(classifier_run, classifier):
    loaded = lorakit.load_run(classifier_run)
    assert loaded.task_type == "SEQ_CLS"
    assert loaded.labels == classifier.labels
    assert loaded.predict("the film was great")[0].label == "positive"


def test_texts_are_continued(run, tiny_llama_dir, prompt_jsonl):
    loaded = load_for_inference(run("CAUSAL_LM", tiny_llama_dir, prompt_jsonl))
    prompts = ["the film", "snow is white and", "a"]
    alone = [generate_text(loaded, [prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert predict(loaded, prompts, max_new_tokens=5) == alone
