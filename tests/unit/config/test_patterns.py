import re
import time

import pytest

from lorakit import LoraConfig
from lorakit.config import matching_pattern, patterns
from lorakit.config.patterns import match_pattern, pattern_problem
from lorakit.errors import ConfigError
from lorakit.injection.selection.targets import layer_index, match_targets, name_matches

PATHS = [f"model.layers.{n}.self_attn.{k}_proj" for n in range(20) for k in "qkvo"]
LONG = "model.language_model.layers.10.self_attn.q_proj_of_something_long"
ENDLESS = [
    r"([a-z_.0-9]+)+[!?]",
    r"(([a-z]|_|\.|[0-9])+)+[!?]",
    r"(.*)*[!?]",
    r"(.|[a-z])*[!?]",
    r".*.*.*.*.*.*.*.*.*.*.*[!?]",
    r"^(\w+\.?)*[!?]$",
    r"(?:(?:[a-z]+[._]?)+)+[!?]",
]


class Stopped:
    """A compiled pattern whose matches reach their bound."""

    def match(self, text, timeout):
        raise TimeoutError

    fullmatch = match


@pytest.fixture
def endless(monkeypatch):
    """A pattern that reaches the bound on any name."""
    known = patterns._compile_pattern
    stopped = patterns._Pattern("any")
    stopped.compiled = Stopped()
    monkeypatch.setattr(
        patterns, "_compile_pattern", lambda p: stopped if "endless" in p else known(p)
    )
    return "endless"


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_repeats_what_repeats_ends_soon(monkeypatch, pattern):
    monkeypatch.setattr(patterns, "_MOST_S", 0.3)
    began = time.monotonic()
    for call in (
        lambda: name_matches(pattern, LONG),
        lambda: matching_pattern([pattern], LONG),
        lambda: layer_index(LONG, [pattern]),
    ):
        try:
            assert not call()
        except ConfigError as error:
            assert "takes too long" in str(error)
    assert time.monotonic() - began < 5


def test_slow_matches_are_stopped_together(monkeypatch):
    monkeypatch.setattr(patterns, "_SLOW_S", 0.0)
    monkeypatch.setattr(patterns, "_MOST_S", 0.01)
    with pytest.raises(ConfigError, match="takes too long"):
        for n in range(100_000):
            name_matches(r"(?:[a-z.]*[0-9]*)(?:[a-z.]*[0-9]*)[!?]", f"{LONG}.{n}")


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": "endless"},
        {"target_modules": ["q_proj"], "exclude_modules": "endless"},
        {"target_modules": ["q_proj"], "rank_pattern": {"endless": 4}},
        {"target_modules": ["q_proj"], "alpha_pattern": {"endless": 4}},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "endless"},
    ],
)
def test_every_place_where_a_pattern_meets_names(endless, values):
    with pytest.raises(ConfigError) as caught:
        match_targets(LoraConfig(**values), PATHS, [])
    assert re.match("The regular expression .*endless.* takes too long: got", str(caught.value))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k)_proj",
        r".*self_attn\.[qv]_proj",
        r"model\.layers\.([0-9]|1[0-5])\..*(?<!o)_proj",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:\bq_proj\b|\bk_proj\b))",
        r"(?i)MODEL.*Q_PROJ",
        "q_proj",
        "|".join(re.escape(path) for path in PATHS[:10]),
        r"(.*)\.\1",
        r"[^.]+\.[^.]+\.\d{1,2}\.\w+\.[qkvo]_proj",
    ],
)
def test_ordinary_patterns_mean_what_they_mean_to_python(pattern):
    for path in PATHS:
        assert (match_pattern(pattern, path, whole=True) is None) == (
            re.fullmatch(pattern, path) is None
        )
        assert (match_pattern(pattern, path) is None) == (re.match(pattern, path) is None)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(q", "missing )"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a{99999999999999999999}", "nested too deeply or repeats too often"),
        ("((a{1000}){1000}){1000}", "it repeats too often"),
        ("(a{,100}){101,}", "it repeats too often"),
        ("a" * 600_000, "it has 600,000 characters, more than 524,288"),
        (r"\p{L}", "bad escape"),
    ],
)
def test_what_is_no_pattern(pattern, problem):
    assert problem in pattern_problem(pattern)
    with pytest.raises(ConfigError, match="is not a valid regular expression") as caught:
        LoraConfig(target_modules=pattern)
    assert len(str(caught.value)) < 1200
