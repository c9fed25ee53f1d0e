"""Who is read next, and who gives way."""

import pytest

from fixtures.engines import Heard, request_of
from lorakit.serving.engine.request import Answer
from lorakit.serving.engine.scheduler import Scheduler
from lorakit.serving.engine.settings import EngineHooks
from tiny_models.tokenizers import byte_bpe

TOKENIZER = byte_bpe()


def waiting(*lengths, chunk=64):
    scheduler = Scheduler(chunk)
    for number, length in enumerate(lengths):
        request = request_of([5] * length)
        scheduler.waiting.append(Answer(request, Heard(), number, TOKENIZER, EngineHooks()))
    return scheduler


def admitted(scheduler, fits=lambda lengths: True, is_cached=lambda answer: False):
    return [answer.number for answer in scheduler.admit(fits, is_cached)]


@pytest.mark.parametrize(
    ("lengths", "first"),
    [
        ((10, 10, 10), [0, 1, 2]),
        ((10, 12, 60, 10), [0, 1]),  # a long one would be mostly padding for the others
        ((40, 40), [0]),  # more than a chunk
        ((500, 10), [0]),
        ((20, 20, 20, 20), [0, 1, 2]),
    ],
)
def test_prompts_of_like_length_are_read_together_up_to_a_chunk(lengths, first):
    scheduler = waiting(*lengths)
    assert admitted(scheduler) == first
    assert [each.number for each in scheduler.waiting] == list(range(len(first), len(lengths)))


def test_nobody_overtakes_one_that_does_not_fit():
    scheduler = waiting(10, 30, 10)
    assert admitted(scheduler, lambda lengths: sum(lengths) < 25) == [0]
    assert admitted(scheduler, lambda lengths: sum(lengths) < 25) == []
    assert [each.number for each in scheduler.waiting] == [1, 2]


def test_one_whose_beginning_is_cached_is_read_alone():
    scheduler = waiting(10, 10, 10)
    assert admitted(scheduler, is_cached=lambda answer: answer.number == 1) == [0]
    assert admitted(scheduler, is_cached=lambda answer: answer.number == 1) == [1]
    assert admitted(scheduler) == [2]


def test_one_that_failed_is_read_alone():
    scheduler = waiting(10, 10)
    scheduler.waiting[0].failures = 1
    assert admitted(scheduler) == [0]


def test_the_youngest_gives_way_and_waits_before_those_that_came_later():
    scheduler = waiting(10, 10, 10, 10)
    answers = list(scheduler.waiting)
    scheduler.running = [answers[2], answers[0], answers[1]]
    scheduler.waiting.clear()
    scheduler.waiting.append(answers[3])
    assert scheduler.youngest() == 0
    left = scheduler.leave(0)
    assert left is answers[2]
    assert scheduler.running == [answers[1], answers[0]]
    scheduler.put_back(left)
    scheduler.put_back(scheduler.leave(0))
    assert [each.number for each in scheduler.waiting] == [1, 2, 3]
