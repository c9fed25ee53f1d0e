"""Text from trained adapters, in the format that they were trained on."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from lorakit.data.text_formats import alpaca_prompt
from lorakit.errors import DataError
from lorakit.inference import generate_text, generation, load_for_inference
from tiny_models.adapted import save_adapter_of


@pytest.fixture(scope="module")
def chat_run(run, tiny_llama_dir, chat_jsonl):
    return run(
        "CAUSAL_LM",
        tiny_llama_dir,
        chat_jsonl,
        training={"num_train_epochs": 25, "eos_token": "</s>"},
    )


@pytest.fixture(scope="module")
def chat(chat_run):
    return load_for_inference(chat_run)


@pytest.fixture(scope="module")
def summary_run(run, tiny_t5_dir, summary_parquet):
    keys = {"source_prefix": "tell me ", "max_target_length": 4}
    return run(
        "SEQ_2_SEQ_LM", tiny_t5_dir, summary_parquet, training={"num_train_epochs": 16}, **keys
    )


def test_chat_adapter_answers_and_stops(chat):
    prompts = [
        "what colour is the grass?",
        [{"role": "user", "content": "what colour is the snow?"}],
    ]

    assert generate_text(chat, prompts) == ["green", "white"]


def test_at_a_tiny_temperature_the_likeliest_tokens_are_taken(chat):
    prompt = ["what colour is the grass?"]
    assert generate_text(chat, prompt, temperature=1e-40) == generate_text(chat, prompt)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_what_the_files_of_the_base_prefer_does_not_change_an_answer(
    chat, monkeypatch, temperature
):
    prompt = ["what colour is the grass and the snow and the sky?"]
    expected = generate_text(chat, prompt, temperature=temperature)
    preferred = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_beams": 3}
    preferred |= {"top_k": 1, "top_p": 0.1, "min_p": 0.9} if temperature else {}
    for name, value in preferred.items():
        monkeypatch.setattr(chat.model.generation_config, name, value, raising=False)
    assert generate_text(chat, prompt, temperature=temperature) == expected


def test_a_system_message_that_the_template_leaves_out_is_refused(chat, monkeypatch):
    template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    question = {"role": "user", "content": "what colour is the grass?"}
    assert len(generate_text(chat, [[question]])) == 1
    with pytest.raises(DataError, match="A system message would have no effect"):
        generate_text(chat, [[{"role": "system", "content": "sing"}, question]])


def test_answer_stops_at_the_templates_end_of_turn(chat):
    # The tokenizer's end token is another one, which conversations never end with.
    end = chat.tokenizer.convert_tokens_to_ids("<|end|>")

    assert chat.tokenizer.eos_token == "</s>"
    assert chat.settings.stop_token_ids == (end,)
    end_before, chat.model.generation_config.eos_token_id = end, chat.tokenizer.eos_token_id
    try:
        assert generate_text(chat, ["what colour is the sun?"]) == ["yellow"]
    finally:
        chat.model.generation_config.eos_token_id = end_before


@pytest.fixture
def seen(chat, monkeypatch):
    """Collect the prompts that the chat model gets; it answers nothing."""
    texts = []
    monkeypatch.setattr(
        generation,
        "continue_tokens",
        lambda loaded, ids, *rest, **options: texts.extend(map(chat.tokenizer.decode, ids)) or [""],
    )
    return texts


def test_prompts_are_read_as_in_training(chat, seen):
    parts = [{"type": "text", "text": "what?"}]
    generate_text(
        chat, [[{"from": "human", "value": "what?"}], [{"role": "user", "content": parts}]]
    )
    assert seen == ["<|user|>what?<|end|><|assistant|>"] * 2
    with pytest.raises(DataError, match="not a conversation: got a message without content"):
        generate_text(chat, [[{"role": "user"}]])

    settings = chat.settings.model_copy(update={"format": "alpaca"})
    generate_text(replace(chat, settings=settings), [("name it", "grass"), "sing"])
    assert seen[2:] == [alpaca_prompt("name it", "grass"), alpaca_prompt("sing")]


def test_a_prompt_without_system_message_gets_that_of_the_training(chat, seen):
    settings = chat.settings.model_copy(update={"system_prompt": "answer"})
    with_system = replace(chat, settings=settings)

    generate_text(with_system, ["what?", [{"role": "system", "content": "sing"}]])

    assert seen == [
        "<|system|>answer<|end|><|user|>what?<|end|><|assistant|>",
        "<|system|>sing<|end|><|assistant|>",
    ]


def test_base_generates_something_else(chat):
    prompt = ["what colour is the grass?"]

    assert generate_text(chat, prompt, use_base=True, max_new_tokens=4) != ["green"]
    assert generate_text(chat, prompt) == ["green"]


def test_sampled_tokens_repeat_with_their_seed(chat):
    def sampled(seed):
        options = {"temperature": 5.0, "max_new_tokens": 8, "top_k": 0}
        return generate_text(chat, ["what colour is the sky?"], seed=seed, **options)

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert torch.rand(1) == expected  # the caller's random state is left alone


def test_prompts_of_different_lengths_do_not_disturb_each_other(chat):
    prompts = [
        "what colour is the sky?",
        [
            {"role": "system", "content": "answer"},
            {"role": "user", "content": "what colour is the sun?"},
        ],
    ]

    assert generate_text(chat, prompts) == [generate_text(chat, [prompt])[0] for prompt in prompts]


def test_prompt_that_leaves_no_room(chat):
    with pytest.raises(DataError) as caught:
        generate_text(chat, ["snow " * 100], max_new_tokens=40)

    assert str(caught.value).startswith("The prompt is too long: got ")
    assert str(caught.value).endswith(
        "and 40 new ones, expected at most 128 together, the positions of this LlamaForCausalLM. "
        "Shorten the prompt or ask for fewer tokens."
    )


def test_summaries_are_searched_with_the_beams_of_the_evaluation(summary_run, monkeypatch):
    loaded = load_for_inference(summary_run)
    settings = loaded.settings.model_copy(update={"num_beams": 3})
    seen, generate = [], loaded.model.generate

    def watched(num_beams=None, **inputs):
        seen.append(num_beams)
        return generate(num_beams=num_beams, **inputs)

    monkeypatch.setattr(loaded.model, "generate", watched)
    for temperature in (0.0, 1.0):
        generate_text(replace(loaded, settings=settings), ["the red cat"], temperature=temperature)
    assert seen == [3, 1]


def test_summaries_get_the_prefix_of_the_training(summary_run, monkeypatch):
    loaded = load_for_inference(summary_run)
    seen, generate = [], loaded.model.generate

    def watched(**inputs):
        seen.append(loaded.tokenizer.decode(inputs["input_ids"][0]))
        return generate(**inputs)

    monkeypatch.setattr(loaded.model, "generate", watched)

    written = generate_text(loaded, ["the red cat on the hill", "the white bird on the hill"])

    assert loaded.settings.source_prefix == "tell me "
    assert seen == ["tell me the red cat on the hill</s>"]
    assert written == ["a cat", "a bird"]
    with pytest.raises(DataError, match="A sequence-to-sequence model takes a text"):
        generate_text(loaded, [[{"role": "user", "content": "a"}]])


def test_plain_prompts_of_a_plain_adapter(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    loaded = load_for_inference(save_adapter_of(tmp_path, model, task_type="CAUSAL_LM"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)

    written = generate_text(loaded, ["the grass is", ""], max_new_tokens=5)

    ids = tokenizer("the grass is", return_tensors="pt")["input_ids"]
    made = model.eval().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=3
    )
    assert written[0] == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    with pytest.raises(DataError) as caught:
        generate_text(loaded, [[{"role": "user", "content": "hi"}]])
    assert str(caught.value) == (
        "A conversation cannot be rendered: the tokenizer used with the adapter (base "
        f"'{tiny_gpt2_dir}') has no chat template. Give the prompt as one text."
    )
