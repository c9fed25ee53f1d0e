"""The next token of each row."""

import random
from collections import Counter

import pytest
import torch

from fixtures.engines import Heard, request_of
from lorakit.serving.engine.request import Answer
from lorakit.serving.engine.sampling import Sampler
from lorakit.serving.engine.settings import EngineHooks
from tiny_models.tokenizers import byte_bpe

VOCABULARY = 600
TOKENIZER = byte_bpe()


def answer_of(**settings):
    settings = {"temperature": 1.0} | settings
    return Answer(request_of([5], None, 50, **settings), Heard(), 0, TOKENIZER, EngineHooks())


def logits_of(rows, seed=0):
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def drawn(answer, logits, count):
    """Return how often each token is drawn."""
    sampler = Sampler([answer], logits.device)
    return Counter(sampler.sample(logits[None].clone())[0][0] for _ in range(count))


def test_without_temperature_the_likeliest_token_is_taken():
    logits = logits_of(3)
    answers = [answer_of(temperature=0.0) for _ in range(3)]
    tokens, reports, failures = Sampler(answers, logits.device).sample(logits.clone())
    assert tokens == logits.argmax(-1).tolist()
    assert (reports, failures) == ([None] * 3, [None] * 3)


@pytest.mark.parametrize("temperature", [1e-20, 1e-40, 1e-300])  # logits / 1e-40 are infinite
def test_at_a_tiny_temperature_the_likeliest_token_is_taken(temperature):
    logits = logits_of(3)
    answers = [answer_of(temperature=temperature) for _ in range(3)]
    tokens, _, _ = Sampler(answers, logits.device).sample(logits.clone())
    assert tokens == logits.argmax(-1).tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.full((VOCABULARY,), -torch.inf)
    logits[[3, 9, 500]] = torch.tensor([0.6, 0.3, 0.1]).log()
    counts = drawn(answer_of(seed=1), logits, 4000)
    assert set(counts) == {3, 9, 500}
    for token, share in ((3, 0.6), (9, 0.3), (500, 0.1)):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)
    sharper = drawn(answer_of(seed=1, temperature=0.5), logits, 4000)
    assert sharper[3] / 4000 == pytest.approx(0.36 / 0.46, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 0.4}, {0}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 0.3, "top_p": 0.95}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
        ({"top_k": VOCABULARY + 5}, {0, 1, 2, 3}),
        ({"top_p": 1.0, "logit_bias": {0: -100.0}}, {1, 2, 3}),
    ],
)
def test_cuts(settings, kept):
    logits = torch.full((VOCABULARY,), -torch.inf)
    logits[:4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(drawn(answer_of(**settings), logits, 400)) == kept


def test_a_flat_distribution_needs_more_than_the_first_sorted():
    counts = drawn(answer_of(top_p=0.9), torch.zeros(VOCABULARY), 3000)
    assert len(counts) > 500


def test_a_row_is_drawn_as_if_alone():
    draw = random.Random(2)
    settings = [
        {
            "seed": n,
            "temperature": draw.choice([0.0, 0.7, 1.3]),
            "top_p": draw.choice([1.0, 0.8]),
            "top_k": draw.choice([0, 5, 40]),
            "min_p": draw.choice([0.0, 0.02]),
            "frequency_penalty": draw.choice([0.0, 0.4]),
        }
        for n in range(24)
    ]
    together = [answer_of(**each) for each in settings]
    alone = [answer_of(**each) for each in settings]
    for step in range(10):
        logits = logits_of(len(settings), seed=step)
        tokens, _, _ = Sampler(together, logits.device).sample(logits.clone())
        for row, answer in enumerate(alone):
            one, _, _ = Sampler([answer], logits.device).sample(logits[row : row + 1].clone())
            assert one == [tokens[row]]
            answer.add(one[0], None)
            together[row].add(one[0], None)


def test_penalties_count_the_tokens_of_the_answer():
    answer = answer_of(temperature=0.0, presence_penalty=1.0, frequency_penalty=0.5)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [7, 8]] = torch.tensor([3.0, 1.2])
    taken = []
    for _ in range(4):
        (token,), _, _ = Sampler([answer], logits.device).sample(logits.clone())
        taken.append(token)
        answer.add(token, None)
    assert taken == [7, 7, 8, 7]  # 3, 3 - 1.5, then 3 - 2 is below 1.2, then 1.0 above -0.3


def test_log_probabilities_are_of_the_logits_before_changes():
    logits = logits_of(2)
    answers = [answer_of(temperature=0.0, logprobs=2, logit_bias={4: 99.0}), answer_of()]
    tokens, reports, _ = Sampler(answers, logits.device).sample(logits.clone())
    expected = logits[0].log_softmax(-1)
    assert tokens[0] == reports[0].token_id == 4 and reports[1] is None
    assert reports[0].logprob == pytest.approx(expected[4].item(), abs=1e-5)
    values, likeliest = expected.topk(2)
    assert reports[0].likeliest == tuple(zip(likeliest.tolist(), values.tolist(), strict=True))
    (token,), (report,), _ = Sampler(
        [answer_of(temperature=0.0, logprobs=0)], logits.device
    ).sample(logits[:1].clone())
    assert (report.token_id, report.likeliest) == (token, ())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_rows_that_are_not_numbers_are_told(wrong):
    logits = logits_of(3)
    logits[1, 5] = wrong
    logits[2, :100] = -torch.inf  # tokens that a model rules out
    answers = [answer_of(), answer_of(), answer_of()]
    first, failure, last = Sampler(answers, logits.device).sample(logits)[2]
    assert first is last is None
    assert "the base stopped after 0 tokens: got logits that are infinite" in str(failure)


def test_a_grammar_that_raises_harms_its_row_alone():
    class Broken:
        def compute_bitmask(self):
            raise ValueError("lexer")

    answers = [answer_of(temperature=0.0), answer_of(temperature=0.0)]
    object.__setattr__(answers[1].request, "grammar", Broken())
    logits = logits_of(2)
    tokens, _, failures = Sampler(answers, logits.device).sample(logits.clone())
    assert tokens[0] == logits[0].argmax() and failures[0] is None
    assert isinstance(failures[1], ValueError)


class Digits:
    """A grammar as llguidance has it, of the tokens 40 to 49 and of the end, 2."""

    def __init__(self, most):
        self.most, self.taken = most, []

    def compute_bitmask(self):
        allowed = range(40, 50) if len(self.taken) < self.most else [2]
        bits = bytearray(420 // 8 + 1)
        for token in allowed:
            bits[token // 8] |= 1 << token % 8
        return bytes(bits)

    def consume_token(self, token):
        self.taken.append(token)
        return True

    def is_stopped(self):
        return len(self.taken) >= self.most


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_grammar_allows_its_tokens_alone(temperature):
    answer = answer_of(temperature=temperature)
    object.__setattr__(answer.request, "grammar", Digits(30))
    for step in range(30):
        logits = logits_of(1, seed=step)
        logits[0, 500] = 50.0  # beyond the tokenizer
        (token,), _, _ = Sampler([answer], logits.device).sample(logits)
        assert 40 <= token < 50
        answer.add(token, None)
    assert answer.handle.is_over
