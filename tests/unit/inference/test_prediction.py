"""Classes of texts and tags of words from trained adapters."""

import json

import pytest

from lorakit.errors import DataError
from lorakit.inference import classify, load_for_inference, tag
from lorakit.models.padded_lengths import length_multiple


@pytest.fixture(scope="module")
def tagger_run(run, tiny_bert_dir, ner_jsonl):
    return run("TOKEN_CLS", tiny_bert_dir, ner_jsonl)


def test_texts_get_their_label_with_its_probability(classifier):
    good, bad = classify(classifier, ["the film was great", "the dog was awful and bad"])

    assert (good.label, bad.label) == ("positive", "negative")
    assert 0.5 < good.probability <= 1
    assert good.probabilities[good.label] == good.probability
    assert sum(bad.probabilities.values()) == pytest.approx(1)


def test_batches_change_nothing(classifier):
    texts = ["good", "the film was awful very much", "snow is white", "great cat"]

    together = classify(classifier, texts)
    one_by_one = classify(classifier, texts, batch_rows=1)

    for one, other in zip(together, one_by_one, strict=True):
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_in_bfloat16_on_a_cpu_texts_are_padded_to_multiples(classifier_run, tagger_run):
    texts = ["good", "the film was awful very much"]
    for path, predict in ((classifier_run, classify), (tagger_run, tag)):
        loaded = load_for_inference(path, dtype="bfloat16")
        widths = []
        loaded.model.register_forward_pre_hook(
            lambda *args, seen=widths: seen.append(args[2]["input_ids"].shape[1]), with_kwargs=True
        )
        assert len(predict(loaded, texts)) == 2
        assert widths == [length_multiple(loaded.model)]


def test_base_answers_without_the_adapter(classifier, classifier_run, tiny_bert_dir):
    text = ["the film was great"]

    with_adapter, base = classify(classifier, text), classify(classifier, text, use_base=True)

    assert base[0].probability != pytest.approx(with_adapter[0].probability, abs=1e-3)
    assert classify(classifier, text) == with_adapter  # the adapter is back
    # The base's head is the one the training started from, whoever loads it.
    again = load_for_inference(classifier_run, base=tiny_bert_dir)
    assert classify(again, text, use_base=True) == base


def test_inputs_are_cut_as_in_training(classifier):
    assert classifier.max_length == 16
    text = "the film was great " + "snow " * 12

    assert classify(classifier, [text]) == classify(classifier, [text + "awful " * 40])


def test_words_get_their_tags(tagger_run):
    loaded = load_for_inference(tagger_run)

    by_text, by_words = tag(loaded, ["Bob lives in Rome today", ["Anna", "visits", "Oslo"]])

    assert [(word.word, word.tag) for word in by_text] == [
        ("Bob", "B-PER"),
        ("lives", "O"),
        ("in", "O"),
        ("Rome", "B-LOC"),
        ("today", "O"),
    ]
    assert [word.tag for word in by_words] == ["B-PER", "O", "B-LOC"]
    assert all(0 < word.probability <= 1 for word in by_text)
    assert tag(loaded, ["", []]) == [[], []]
    assert [w.word for w in tag(loaded, ["Rome \u200b today \u200b"])[0]] == ["Rome", "today"]
    assert [w.word for w in tag(loaded, ["Rome, today."])[0]] == ["Rome", ",", "today", "."]


def test_text_with_too_many_words_to_tag(tagger_run):
    loaded = load_for_inference(tagger_run)

    with pytest.raises(DataError) as caught:
        tag(loaded, [["snow"] * 70])

    assert str(caught.value) == (
        "A text is too long to be tagged: got 70 words, expected at most the 62 that fit into 64 "
        "tokens. Split the text."
    )


def test_pairs_are_wanted_as_in_training(classifier, run, tiny_bert_dir, tmp_path):
    rows = [
        {"a": "the cat", "b": ["the cat", "a dog"][i % 2], "label": i % 2 == 0} for i in range(24)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load_for_inference(run("SEQ_CLS", tiny_bert_dir, str(path), text="a", text_pair="b"))

    same, other = classify(loaded, [("the cat", "the cat"), ("the cat", "a dog")])

    assert (same.label, other.label) == ("True", "False")
    with pytest.raises(DataError) as caught:
        classify(loaded, ["the cat"])
    assert str(caught.value) == (
        "The adapter was trained on pairs of texts: got a single text, expected pairs of texts "
        "only. Give the input as the training examples had it."
    )
    with pytest.raises(DataError, match="trained on texts: got a pair, expected texts only"):
        classify(classifier, [("a", "b")])
