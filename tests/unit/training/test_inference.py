"""Adapters are trained by whole runs, once for each task, and then used in every way."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lorakit.adapters import load_adapter, save_adapter
from lorakit.config import LoraConfig
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.injection import add_adapter
from lorakit.training.inference import (
    classify,
    generate_text,
    load_for_inference,
    tag,
)
from lorakit.training.recipe import Recipe
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
        "tokens. Give it in parts."
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
    own, chat.model.generation_config.eos_token_id = end, chat.tokenizer.eos_token_id
    try:
        assert generate_text(chat, ["what colour is the sun?"]) == ["yellow"]
    finally:
        chat.model.generation_config.eos_token_id = own


def test_base_generates_something_else(chat):
    prompt = ["what colour is the grass?"]

    assert generate_text(chat, prompt, use_base=True, max_new_tokens=4) != ["green"]
    assert generate_text(chat, prompt) == ["green"]


def test_drawn_tokens_repeat_with_their_seed(chat):
    def drawn(seed):
        options = {"temperature": 5.0, "max_new_tokens": 8, "top_k": 0}
        return generate_text(chat, ["what colour is the sky?"], seed=seed, **options)

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
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
        "This adapter cannot generate text: got one of task SEQ_CLS, expected CAUSAL_LM or "
        "SEQ_2_SEQ_LM. Use one that was trained for it."
    )
    with pytest.raises(ConfigError, match="cannot classify: got one of task CAUSAL_LM"):
        classify(chat, ["good"])
    with pytest.raises(ConfigError, match="cannot tag words: got one of task CAUSAL_LM"):
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
        "only. Give the input as the training rows had it."
    )
    with pytest.raises(DataError, match="trained on texts: got a pair, expected texts only"):
        classify(classifier, [("a", "b")])


def plain_adapter(directory, model, **config):
    """Save an adapter as another tool would: without lorakit.json and without a tokenizer."""
    add_adapter(model, LoraConfig(r=2, init_lora_weights=False, **config))
    save_adapter(model, directory)
    return directory


def test_adapter_of_another_tool(tmp_path, tiny_distilbert_dir):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_distilbert_dir, num_labels=3)
    directory = plain_adapter(tmp_path, model.eval(), task_type="SEQ_CLS")

    loaded = load_for_inference(directory)

    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loaded.tokenizer.name_or_path == tiny_distilbert_dir
    encoded = loaded.tokenizer("good film", return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits.softmax(-1)[0].tolist()
    assert list(classify(loaded, ["good film"])[0].probabilities.values()) == pytest.approx(
        expected, rel=1e-5
    )


def test_base_and_dtype_can_be_given(tmp_path, tiny_llama_dir, chat_run):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_llama_dir, moved)

    loaded = load_for_inference(chat_run, base=str(moved), dtype="bfloat16")

    assert loaded.base == str(moved)
    assert loaded.model.dtype == torch.bfloat16
    assert load_for_inference(chat_run).model.dtype == torch.float32


def test_plain_prompts_of_a_plain_adapter(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    loaded = load_for_inference(plain_adapter(tmp_path, model, task_type="CAUSAL_LM"))
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


def changed_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_adapter_without_base_or_task(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    directory = plain_adapter(tmp_path, model, task_type="CAUSAL_LM")

    changed_config(directory, base_model_name_or_path=None)
    with pytest.raises(ConfigError) as caught:
        load_for_inference(directory)
    assert str(caught.value) == (
        f"No base model in {directory}/adapter_config.json: got null in base_model_name_or_path, "
        "expected a hub id or a directory. Give the base yourself (--base-model on the command "
        "line)."
    )

    changed_config(directory, base_model_name_or_path=tiny_gpt2_dir, task_type=None)
    with pytest.raises(ConfigError) as caught:
        load_for_inference(directory)
    assert str(caught.value) == (
        f"No task in {directory}/adapter_config.json: got null in task_type, expected one of "
        "CAUSAL_LM, SEQ_CLS, TOKEN_CLS, SEQ_2_SEQ_LM. Write it into the file."
    )


def test_base_that_is_gone(tmp_path, tiny_gpt2_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    directory = plain_adapter(tmp_path, model, task_type="CAUSAL_LM")
    changed_config(directory, base_model_name_or_path="/gone/away")

    with pytest.raises(MissingFileError) as caught:
        load_for_inference(directory)

    assert str(caught.value) == (
        f"No model in base_model_name_or_path of {directory}/adapter_config.json: got "
        "'/gone/away', which is not there. There is no folder '/gone' either. Check the path; it "
        "is taken from the current directory."
    )


def test_checkpoint_is_used_with_the_tokenizer_and_labels_of_its_run(classifier_run):
    checkpoint = classifier_run / "checkpoint-1"
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(classifier_run / "adapter" / name, checkpoint)

    loaded = load_for_inference(checkpoint)

    assert loaded.labels == ("negative", "positive")
    assert loaded.max_length == 16
    assert loaded.tokenizer.name_or_path == str(classifier_run / "adapter")


def test_no_adapter_there(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        load_for_inference("some/adapter")
    message = str(caught.value)
    assert message.startswith(
        "No adapter at 'some/adapter': it is no directory here, and asking the Hugging Face hub "
        "for it failed ("
    )
    assert message.endswith("Check the name and the network, or name a local directory.")

    with pytest.raises(MissingFileError, match="it has no adapter_config"):
        load_for_inference(tmp_path)


def test_logits_are_those_of_the_adapter_loaded_by_hand(chat, chat_run, tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    load_adapter(model, chat_run / "adapter")
    ids = torch.tensor([[5, 20, 30, 7, 6]])

    with torch.no_grad():
        torch.testing.assert_close(chat.model(ids).logits, model(ids).logits, rtol=0, atol=0)
