"""What models take, and finding one by its name."""

import pytest

from lorakit.errors import ConfigError
from lorakit.serving.clients.talking import Listed, find_listed, form_of, last_question

MODELS = [
    Listed("base", True),
    Listed("german", False, "CAUSAL_LM"),
    Listed("odd", False, None, "NaN"),
]


def test_a_model_takes_what_it_was_trained_on():
    assert form_of("alpaca") == "instruction"
    assert form_of("messages", has_template=False) == "conversation"
    assert form_of("text") == form_of("prompt_completion") == "text"


def test_the_last_question_is_the_users():
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert last_question(messages) == "user"


def test_a_model_is_found_or_the_nearest_is_named():
    assert find_listed(MODELS, "german") is MODELS[1]
    with pytest.raises(ConfigError, match=r"one of base, german, odd\. Did you mean 'german'\?"):
        find_listed(MODELS, "germen")
    with pytest.raises(ConfigError, match="'odd' cannot be used: NaN"):
        find_listed(MODELS, "odd")
