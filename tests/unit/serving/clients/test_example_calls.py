"""Lines that call a served model."""

import json
import shlex

import pytest

from lorakit.config import TaskType
from lorakit.serving.clients.candidates import Candidate, Question
from lorakit.serving.clients.example_calls import curl_call, python_call
from lorakit.serving.clients.talking import AnswerOptions

URL, KEY = "http://127.0.0.1:8800/v1", "a-key"
OPTIONS = AnswerOptions(7, 0.5, 0.9, 3)
CHAT = Candidate("runs/german", False, TaskType.CAUSAL_LM, "conversation")
TEXT = Candidate("poems", False, TaskType.CAUSAL_LM, "text")
SHORTER = Candidate("shorter", False, TaskType.SEQ_2_SEQ_LM)
MOOD = Candidate("mood", False, TaskType.SEQ_CLS, labels=("bad", "good"))
PAIRS = Candidate("pairs", False, TaskType.SEQ_CLS, takes_pairs=True)
QUESTION = Question("It's 5 o'clock, \"Jürgen\" $HOME\n`x`", "second", "Be brief.")


@pytest.mark.parametrize(
    ("candidate", "path", "field", "value"),
    [
        (CHAT, "chat/completions", "messages", QUESTION.messages),
        (TEXT, "completions", "prompt", QUESTION.text),
        (SHORTER, "completions", "prompt", QUESTION.text),
        (MOOD, "classify", "input", [QUESTION.text]),
        (PAIRS, "classify", "input", [[QUESTION.text, "second"]]),
    ],
)
def test_both_ask_the_same_whatever_is_in_the_question(candidate, path, field, value):
    words = shlex.split(curl_call(URL, KEY, candidate, QUESTION, OPTIONS))
    assert words[:2] == ["curl", f"{URL}/{path}"] and f"Authorization: Bearer {KEY}" in words
    body = json.loads(words[-1])
    assert body["model"] == candidate.name and body[field] == value
    if path != "classify":
        sampling = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3}
        assert body == body | sampling
    lines = python_call(URL, KEY, candidate, QUESTION, OPTIONS)
    compile(lines, "lines", "exec")
    assert repr(value) in lines and repr(candidate.name) in lines and KEY in lines
