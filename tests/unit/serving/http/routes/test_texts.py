"""Embeddings, classes, tags and scores equal those of each adapter alone."""

import asyncio
import json

import httpx2
import pytest

from lorakit.inference import classify, load_for_inference, tag
from lorakit.serving.clients.over_http import parse_classes
from lorakit.serving.http.routes.texts import format_classes
from lorakit.serving.pooled.labels import TextLabel

TEXTS = ["the film was good", "a bad film", "Anna lives in Berlin and works at Acme."]


def test_classes_are_those_of_the_adapter_alone(served, tiny_llama_dir):
    loaded = load_for_inference(served.folder / "mood", tiny_llama_dir)
    expected = classify(loaded, TEXTS)
    made = served.post("/v1/classify", {"model": "mood", "input": TEXTS})
    for found, one in zip(made["data"], expected, strict=True):
        assert found["label"] == one.label
        assert found["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
        assert found["probs"] == list(found["probabilities"].values())
        assert found["probability"] == max(found["probs"])
    assert made["usage"]["prompt_tokens"] > 10
    assert [each["index"] for each in made["data"]] == [0, 1, 2]


def test_words_and_spans_have_their_place_in_the_text(served, tiny_llama_dir):
    loaded = load_for_inference(served.folder / "tags", tiny_llama_dir)
    expected = tag(loaded, TEXTS)
    made = served.post("/v1/classify", {"model": "tags", "input": TEXTS})
    for text, found, words in zip(TEXTS, made["data"], expected, strict=True):
        assert [word["label"] for word in found["words"]] == [word.tag for word in words]
        for word in found["words"]:
            assert text[word["start"] : word["end"]] == word["text"]
        for span in found["spans"]:
            assert text[span["start"] : span["end"]].split() == span["text"].split()
            assert span["label"] in ("PER",)
    assert any(found["spans"] for found in made["data"])


def test_words_may_be_given(served):
    words = TEXTS[2].rstrip(".").split()
    (found,) = served.post("/v1/classify", {"model": "tags", "input": [words]})["data"]
    assert [word["text"] for word in found["words"]] == words
    assert found["words"][0]["start"] is None


def test_pairs_are_classified_and_scored(served):
    pairs = [["a good film", "a film"], ["the sky", "blue"]]
    classes = served.post("/v1/classify", {"model": "pairs", "input": pairs})["data"]
    scores = served.post(
        "/v1/score",
        {"model": "pairs", "text_1": [a for a, _ in pairs], "text_2": [b for _, b in pairs]},
    )["data"]
    for each, score in zip(classes, scores, strict=True):
        assert score["score"] == pytest.approx(each["probabilities"]["same"], abs=1e-5)


def test_two_labels_that_may_both_apply_are_no_score(served_with):
    served = served_with()
    path = served.folder / "pairs" / "lorakit.json"
    settings = json.loads(path.read_text()) | {"problem_type": "multi_label_classification"}
    path.write_text(json.dumps(settings))
    body = {"model": "pairs", "text_1": "a", "text_2": "b"}
    assert "cannot score pairs" in served.post("/v1/score", body, 400)["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/classify", {"model": "pairs", "input": "a"}, "got a text, expected pairs of texts"),
        ("/v1/classify", {"model": "mood", "input": [["a", "b"]]}, "got a pair, expected texts"),
        ("/v1/classify", {"model": "mood", "input": [["a"]]}, "got a list of 1 texts"),
        (
            "/v1/classify",
            {"model": "german", "input": "a"},
            "it is for CAUSAL_LM, expected SEQ_CLS",
        ),
        ("/v1/classify", {"model": "base", "input": "a"}, "has no head that was trained"),
        ("/v1/classify", {"model": "tags", "input": " "}, "An input has no word"),
        ("/v1/classify", {"model": "tags", "input": "a " * 300}, "too long to be labelled"),
        ("/v1/score", {"model": "mood", "text_1": "a", "text_2": "b"}, "trained on single texts"),
        ("/v1/score", {"model": "german", "text_1": "a", "text_2": "b"}, "cannot score pairs"),
        ("/v1/embeddings", {"model": "german", "input": "sky " * 200}, "the context of the model"),
        ("/v1/embeddings", {"model": "german", "input": ["a"] * 257}, "got 257 inputs"),
        ("/v1/embeddings", {"model": "german", "input": []}, "got 0 inputs"),
        ("/v1/embeddings", {"model": "german", "input": [[]]}, "got 0 tokens"),
        ("/v1/embeddings", {"model": "german", "input": [-1]}, "got token -1"),
    ],
)
def test_what_cannot_be_read_is_refused(served, path, body, words):
    assert words in served.post(path, body, 400)["message"]


def test_every_model_has_vectors(served):
    vectors = {}
    for name in ("base", "german", "mood", "tags"):
        (found,) = served.post("/v1/embeddings", {"model": name, "input": "a film"})["data"]
        vectors[name] = tuple(found["embedding"])
    assert len(set(vectors.values())) == 4


def test_requests_for_several_adapters_share_batches_and_stay_apart(served):
    names = ["mood", "pairs", "tags"] * 10
    body = {"mood": TEXTS[0], "pairs": [["a", "b"]], "tags": TEXTS[2]}
    alone = {
        name: served.post("/v1/classify", {"model": name, "input": body[name]})["data"]
        for name in body
    }

    async def ask_all():
        async with httpx2.AsyncClient(base_url=served.server.url, timeout=60) as http:
            asked = [
                http.post("/v1/classify", json={"model": name, "input": body[name]})
                for name in names
            ]
            return [response.json()["data"] for response in await asyncio.gather(*asked)]

    for name, found in zip(names, asyncio.run(ask_all()), strict=True):
        if name != "tags":
            assert found[0]["probs"] == pytest.approx(alone[name][0]["probs"], abs=1e-5)
        else:
            assert [w["label"] for w in found[0]["words"]] == [
                w["label"] for w in alone[name][0]["words"]
            ]


def test_several_labels_and_numbers_have_their_own_keys():
    several = format_classes(TextLabel("a", {"a": 0.9, "b": 0.6, "c": 0.1}, ("a", "b")))
    assert several["labels"] == ["a", "b"] and several["label"] == "a"
    assert parse_classes(several) == ("a, b", None)
    assert parse_classes({**several, "labels": []}) == ("(none)", None)
    numbers = format_classes(TextLabel("0.5", {}, values={"score": 0.5}))
    assert numbers == {"values": {"score": 0.5}, "num_classes": 1}
    assert parse_classes(numbers) == ("0.5", None)
