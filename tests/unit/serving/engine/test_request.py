"""A request's answer and what its caller is told."""

import pytest

from fixtures.engines import Heard, request_of
from lorakit.errors import GenerationError
from lorakit.serving.engine.request import Answer
from lorakit.serving.engine.settings import EngineHooks
from lorakit.serving.requests import Failed, Finished, NewText, TokenLogprob
from tiny_models.tokenizers import byte_bpe

TOKENIZER = byte_bpe()


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def answer_of(max_tokens=10, grammar=None, **settings):
    heard = Heard()
    request = request_of([5, 6], None, max_tokens, grammar=grammar, **settings)
    return Answer(request, heard, 0, TOKENIZER, EngineHooks()), heard


def test_an_answer_ends_at_its_length():
    answer, heard = answer_of(max_tokens=2)
    report = TokenLogprob(40, -0.5)
    answer.add(40, report)
    answer.add(41, None)
    assert heard.events[0] == NewText((40,), TOKENIZER.decode([40]), (report,))
    assert heard.end == Finished("length", 2, 0, 2)
    assert answer.tokens == [5, 6, 40, 41] and answer.answered == 2


def test_a_token_that_stops_is_not_part_of_the_answer():
    answer, heard = answer_of(stop_token_ids=frozenset({7}))
    answer.add(40, None)
    answer.add(7, None)
    assert heard.end == Finished("stop", 2, 0, 1) and heard.tokens == [40]


def test_a_stop_text_ends_the_answer_before_it():
    answer, heard = answer_of(stop=("b c",))
    for token in ids_of("a b c d"):
        if not answer.handle.is_over:
            answer.add(token, None)
    assert (heard.text, heard.end.reason) == ("a ", "stop")


def test_text_that_was_held_back_comes_at_the_end():
    answer, heard = answer_of(max_tokens=1, stop=("ab",))
    answer.add(ids_of("a")[0], None)
    assert [event for event in heard.events if isinstance(event, NewText)][-1] == NewText((), "a")
    assert heard.text == "a"


def test_the_end_is_told_once():
    answer, heard = answer_of()
    answer.finish("cancelled")
    answer.fail(GenerationError("too late"))
    answer.finish("stop")
    assert heard.end == Finished("cancelled", 2, 0, 0)
    answer, heard = answer_of()
    answer.fail(GenerationError("first"))
    assert isinstance(heard.end, Failed) and answer.has_failed


def test_a_seed_gives_the_same_numbers():
    one, other, third = (answer_of(seed=seed)[0] for seed in (1, 1, 2))
    numbers = [[each.draw() for _ in range(100)] for each in (one, other, third)]
    assert numbers[0] == numbers[1] != numbers[2]
    assert all(0 <= number < 1 for number in numbers[0])


def test_a_receiver_that_raises_cancels_its_request(caplog):
    def gone(event):
        raise ConnectionError("gone")

    answer = Answer(request_of([5]), gone, 0, TOKENIZER, EngineHooks())
    answer.add(40, None)
    assert answer.handle.is_cancelled and answer.handle.is_over
    assert "gone" in caplog.text


class Grammar:
    def __init__(self, takes, most=1):
        self.takes, self.most, self.taken = takes, most, 0

    def consume_token(self, token):
        self.taken += 1
        return self.takes

    def is_stopped(self):
        return self.taken >= self.most

    def get_error(self):
        return "no such token"


@pytest.mark.parametrize("takes", [True, False])
def test_a_grammar_ends_the_answer(takes):
    answer, heard = answer_of(grammar=Grammar(takes))
    answer.add(40, None)
    if takes:
        assert heard.end.reason == "stop" and heard.tokens == [40]
    else:
        assert "The grammar refused a token: no such token" in str(heard.end.error)
