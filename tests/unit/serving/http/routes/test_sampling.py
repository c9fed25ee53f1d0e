import json
from types import SimpleNamespace

import pytest

from lorakit.serving.http.limits import Limits
from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.completions import SamplingFields
from lorakit.serving.http.routes.sampling import check_counts, choice_samplings, most_new_tokens
from lorakit.serving.refusals import RequestError

TEXT = SimpleNamespace(stop_token_ids=frozenset({2}))


def fields(**values):
    return parse_body(SamplingFields, json.dumps({"model": "m"} | values).encode())


@pytest.mark.parametrize(
    ("wanted", "default", "prompt", "limits", "most"),
    [
        (None, None, 10, {}, 90),
        (None, 16, 10, {}, 16),
        (None, 16, 95, {}, 5),
        (None, None, 10, {"output_tokens": 20}, 20),
        (50, 16, 10, {}, 50),
    ],
)
def test_an_answer_may_have_what_is_asked_for_or_what_fits(wanted, default, prompt, limits, most):
    model = SimpleNamespace(limit=100, most_tokens=100)
    assert most_new_tokens(wanted, default, prompt, model, Limits(**limits)) == most


@pytest.mark.parametrize(
    ("wanted", "prompt", "limits", "param", "words"),
    [
        (30, 10, {"output_tokens": 20}, "max_tokens", "expected at most 20, the limit"),
        (91, 10, {}, "max_tokens", "got 10 tokens and 91 new ones, expected at most 100"),
        (None, 100, {}, "prompt", "got 100 tokens and 1 new ones"),
        (None, 101, {}, "prompt", "got 101 tokens, expected at most 100"),
        (1, 60, {"prompt_tokens": 50}, "prompt", "got 60 tokens, expected at most 50"),
    ],
)
def test_what_does_not_fit_is_refused(wanted, prompt, limits, param, words):
    model = SimpleNamespace(limit=100, most_tokens=100)
    with pytest.raises(RequestError, match=words) as caught:
        most_new_tokens(wanted, None, prompt, model, Limits(**limits))
    assert caught.value.param == param


def test_a_model_without_a_limit_has_one_for_answers_all_the_same():
    model = SimpleNamespace(limit=None, most_tokens=None)
    assert most_new_tokens(None, None, 10**6, model, Limits()) == 1024


def test_an_answer_of_no_given_length_fits_into_the_memory_for_keys_and_values():
    model = SimpleNamespace(limit=100, most_tokens=40)
    assert most_new_tokens(None, None, 10, model, Limits()) == 30
    assert most_new_tokens(50, None, 10, model, Limits()) == 50  # which the engine refuses
    assert most_new_tokens(None, None, 60, model, Limits()) == 1


def test_answers_differ_in_their_seed_alone():
    first, second = choice_samplings(fields(n=2, seed=5, top_k=-1, stop="x"), TEXT, 8, None)
    assert (first.seed, second.seed) == (5, 6)
    assert (first.temperature, first.top_k, first.stop) == (1.0, 0, ("x",))
    assert first.stop_token_ids == {2}
    (later,) = choice_samplings(fields(seed=5, ignore_eos=True), TEXT, 8, 3, first_choice=2)
    assert (later.seed, later.stop_token_ids, later.logprobs) == (7, frozenset(), 3)
    drawn = {choice_samplings(fields(), TEXT, 8, None)[0].seed for _ in range(5)}
    assert len(drawn) == 5
    (negative,) = choice_samplings(fields(seed=-1), TEXT, 8, None)
    assert negative.seed >= 0


@pytest.mark.parametrize(
    ("values", "prompts", "param"),
    [
        ({"n": 17}, 1, "n"),
        ({"n": 16}, 17, "n"),
        ({}, 257, "prompt"),
        ({"stop": ["a"] * 17}, 1, "stop"),
        ({"stop": "a" * 257}, 1, "stop"),
    ],
)
def test_more_than_a_request_may_have_is_refused(values, prompts, param):
    with pytest.raises(RequestError) as caught:
        check_counts(fields(**values), prompts, Limits())
    assert caught.value.param == param


def test_a_request_has_at_most_as_many_answers_as_may_wait():
    limits = Limits(waiting=2)
    check_counts(fields(n=2), 1, limits)
    for values, prompts in (({"n": 3}, 1), ({}, 3)):
        with pytest.raises(RequestError, match="expected at most 2"):
            check_counts(fields(**values), prompts, limits)
