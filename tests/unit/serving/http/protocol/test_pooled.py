import json

import pytest
from openai.types import EmbeddingCreateParams

from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.pooled import ClassifyBody, EmbeddingsBody, ScoreBody
from lorakit.serving.refusals import RequestError


def parsed(kind, **fields):
    return parse_body(kind, json.dumps({"model": "m"} | fields).encode())


def test_every_field_of_openai_is_either_done_or_refused_by_name():
    known = set(EmbeddingCreateParams.__annotations__)
    assert known <= set(EmbeddingsBody.model_fields) | set(EmbeddingsBody.unsupported)
    with pytest.raises(RequestError, match="'dimensions' is not supported"):
        parsed(EmbeddingsBody, input="a", dimensions=3)


def test_inputs_to_classify_are_texts_pairs_or_words():
    for given in ("a", ["a", "b"], [["a", "b"]]):
        assert parsed(ClassifyBody, input=given).input == given
    for given in ([], [[]], 3, [3]):
        with pytest.raises(RequestError) as caught:
            parsed(ClassifyBody, input=given)
        assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
    ],
)
def test_pairs_are_one_against_many_or_many_against_as_many(first, second, pairs):
    assert parsed(ScoreBody, text_1=first, text_2=second).pairs == pairs


def test_texts_that_make_no_pairs_are_refused():
    with pytest.raises(RequestError, match="got 2 and 3 texts"):
        parsed(ScoreBody, text_1=["a", "b"], text_2=["c", "d", "e"])
