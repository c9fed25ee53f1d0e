import pytest

from fixtures.preferences import PAIRS, VOTES


def test_a_preview_has_both_answers_beside_each_other(prepare_preferences, tiny_llama_dir):
    first, *_ = prepare_preferences(tiny_llama_dir).preview_examples()
    assert first.rejected is not None and not any(first.counted[: first.prompt])
    assert all(first.counted[first.prompt :]) and all(first.rejected.counted)
    assert "".join(first.tokens[: first.prompt]) == PAIRS[0]["prompt"]
    vote, *_ = prepare_preferences(tiny_llama_dir, VOTES, {"type": "kto"}).preview_examples()
    assert vote.rejected is None and vote.note.split(",")[0] in ("good", "bad")


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_settings_say_what_inference_needs(prepare_preferences, tiny_llama_dir, objective):
    made = prepare_preferences(tiny_llama_dir, objective={"type": objective}).encoded
    assert made.settings["format"] == "prompt_completion" and made.settings["max_length"] > 0
    assert ("stop_token_ids" in made.settings) == (objective == "dpo")
    assert made.cut_examples == 0 and made.validation is not None
