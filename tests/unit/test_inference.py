"""Adapters are trained by whole runs, once for each task, and then used in every way."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

from lorakit.adapters import load_adapter
from lorakit.errors import ConfigError, DataError
from lorakit.inference import classify, generate_text, load_for_inference, tag
from lorakit.recipes.recipe import Recipe
from lorakit.training.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def run(task, model, data, *, training=None, **data_keys):
        output = tmp_path_factory.mktemp(task) / "run"
        train(
            Recipe.check(
                {
                    "model": model,
                    "task": task,
                    "data": {"train": data, "validation_fraction": 0, **data_keys},
                    "lora": {"r": 8, "lora_alpha": 16},
                    "training": {
                        "learning_rate": 1e-2,
                        "num_train_epochs": 6,
                        "save_strategy": "no",
                        **(training or {}),
                    },
                    "output": str(output),
                },
                "the test",
            )
        )
        return output

    return run


@pytest.fixture(scope="module")
def classifier_run(run, tiny_bert_dir, cls_csv):
    # A BERT without a pooler: the adapter has to carry the one it was trained with.
    return run("SEQ_CLS", tiny_bert_dir, cls_csv, max_length=16)


@pytest.fixture(scope="module")
def chat_run(run, tiny_llama_dir, chat_jsonl):
    return run(
        "CAUSAL_LM",
        tiny_llama_dir,
        chat_jsonl,
        training={"num_train_epochs": 25, "eos_token": "</s>"},
    )


@pytest.fixture(scope="module")
def summary_run(run, tiny_t5_dir, summary_parquet):
    keys = {"source_prefix": "tell me ", "max_target_length": 4}
    return run(
        "SEQ_2_SEQ_LM", tiny_t5_dir, summary_parquet, training={"num_train_epochs": 16}, **keys
    )


@pytest.fixture(scope="module")
def tagger_run(run, tiny_bert_dir, ner_jsonl):
    return run("TOKEN_CLS", tiny_bert_dir, ner_jsonl)


@pytest.fixture(scope="module")
def classifier(classifier_run):
    return load_for_inference(classifier_run)


@pytest.fixture(scope="module")
def chat(chat_run):
    return load_for_inference(chat_run)


def test_texts_get_their_label_with_its_probability(classifier):
    good, bad = classify(classifier, ["the film was great", "the dog was awful and bad"])

    assert (good.label, bad.label) == ("positive", "negative")
    assert 0.5 < good.probability <= 1
    assert good.probabilities[good.label] == good.probability
    assert sum(bad.probabilities.values()) == pytest.approx(1)


def test_run_and_adapter_directory_give_the_same(classifier, classifier_run):
    assert classifier.labels == ("negative", "positive")
    texts = ["the film was great", "snow"]

    other = load_for_inference(classifier_run / "adapter")

    assert classify(other, texts) == classify(classifier, texts)


def test_batches_change_nothing(classifier):
    texts = ["good", "the film was awful very much", "snow is white", "great cat"]

    together = classify(classifier, texts)
    one_by_one = classify(classifier, texts, batch_rows=1)

    for one, other in zip(together, one_by_one, strict=True):
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_base_answers_without_the_adapter(classifier, classifier_run, tiny_bert_dir):
    text = ["the film was great"]

    with_adapter, base = classify(classifier, text), classify(classifier, text, use_base=True)

    assert base[0].probability != pytest.approx(with_adapter[0].probability, abs=1e-3)
    assert classify(classifier, text) == with_adapter  # the adapter is back
    # The base's head is the one the training started from, whoever loads it.
    again = load_for_inference(classifier_run, base=tiny_bert_dir)
    assert classify(again, text, use_base=True) == base


def test_inputs_are_cut_as_in_training(classifier):
    assert classifier.max_length == 16
    text = "the film was great " + "snow " * 12

    assert classify(classifier, [text]) == classify(classifier, [text + "awful " * 40])


def test_words_get_their_tags(tagger_run):
    loaded = load_for_inference(tagger_run)

    by_text, by_words = tag(loaded, ["Bob lives in Rome today", ["Anna", "visits", "Oslo"]])

    assert [(word.word, word.tag) for word in by_text] == [
        ("Bob", "B-PER"),
        ("lives", "O"),
        ("in", "O"),
        ("Rome", "B-LOC"),
        ("today", "O"),
    ]
    assert [word.tag for word in by_words] == ["B-PER", "O", "B-LOC"]
    assert all(0 < word.probability <= 1 for word in by_text)
    assert tag(loaded, ["", []]) == [[], []]
    assert [w.word for w in tag(loaded, ["Rome, today."])[0]] == ["Rome", ",", "today", "."]


def test_text_with_too_many_words_to_tag(tagger_run):
    loaded = load_for_inference(tagger_run)

    with pytest.raises(DataError) as caught:
        tag(loaded, [["snow"] * 70])

    assert str(caught.value) == (
        "A text is too long to be tagged: got 70 words, expected at most the 62 that fit into 64 "
        "tokens. Split the text."
    )


def test_chat_adapter_answers_and_stops(chat):
    prompts = [
        "what colour is the grass?",
        [{"role": "user", "content": "what colour is the snow?"}],
    ]

    assert generate_text(chat, prompts) == ["green", "white"]


def test_answer_stops_at_the_templates_end_of_turn(chat):
    # The tokenizer's own end token is another one, which conversations never end with.
    end = chat.tokenizer.convert_tokens_to_ids("<|end|>")

    assert chat.tokenizer.eos_token == "</s>"
    assert chat.settings.stop_token_ids == (end,)
    end_before, chat.model.generation_config.eos_token_id = end, chat.tokenizer.eos_token_id
    try:
        assert generate_text(chat, ["what colour is the sun?"]) == ["yellow"]
    finally:
        chat.model.generation_config.eos_token_id = end_before


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


def test_other_task(classifier, chat):
    with pytest.raises(ConfigError) as caught:
        generate_text(classifier, ["good"])
    assert str(caught.value) == (
        "This adapter cannot generate text: got task SEQ_CLS, expected CAUSAL_LM or "
        "SEQ_2_SEQ_LM. Use an adapter that was trained for it."
    )
    with pytest.raises(ConfigError, match="cannot classify: got task CAUSAL_LM"):
        classify(chat, ["good"])
    with pytest.raises(ConfigError, match="cannot tag words: got task CAUSAL_LM"):
        tag(chat, ["good"])


def test_pairs_are_wanted_as_in_training(classifier, run, tiny_bert_dir, tmp_path):
    rows = [
        {"a": "the cat", "b": ["the cat", "a dog"][i % 2], "label": i % 2 == 0} for i in range(24)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load_for_inference(run("SEQ_CLS", tiny_bert_dir, str(path), text="a", text_pair="b"))

    same, other = classify(loaded, [("the cat", "the cat"), ("the cat", "a dog")])

    assert (same.label, other.label) == ("True", "False")
    with pytest.raises(DataError) as caught:
        classify(loaded, ["the cat"])
    assert str(caught.value) == (
        "The adapter was trained on pairs of texts: got a single text, expected pairs of texts "
        "only. Give the input as the training examples had it."
    )
    with pytest.raises(DataError, match="trained on texts: got a pair, expected texts only"):
        classify(classifier, [("a", "b")])


def test_base_and_dtype_can_be_given(tmp_path, tiny_llama_dir, chat_run):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_llama_dir, moved)

    loaded = load_for_inference(chat_run, base=str(moved), dtype="bfloat16")

    assert loaded.base == str(moved)
    assert loaded.model.dtype == torch.bfloat16
    assert load_for_inference(chat_run).model.dtype == torch.float32


def test_checkpoint_is_used_with_the_tokenizer_and_labels_of_its_run(classifier_run):
    checkpoint = classifier_run / "checkpoint-1"
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(classifier_run / "adapter" / name, checkpoint)

    loaded = load_for_inference(checkpoint)

    assert loaded.labels == ("negative", "positive")
    assert loaded.max_length == 16
    assert loaded.tokenizer.name_or_path == str(classifier_run / "adapter")


def test_logits_are_those_of_the_adapter_loaded_by_hand(chat, chat_run, tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    load_adapter(model, chat_run / "adapter")
    ids = torch.tensor([[5, 20, 30, 7, 6]])

    with torch.no_grad():
        torch.testing.assert_close(chat.model(ids).logits, model(ids).logits, rtol=0, atol=0)
