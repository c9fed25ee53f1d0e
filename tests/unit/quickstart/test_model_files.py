import csv
import hashlib
import json

import pytest

from lorakit.errors import MissingFileError
from lorakit.quickstart.model_files import (
    MODEL_FILES,
    base_model_path,
    base_name,
    require_model_files,
    short_base_name,
)

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "\t tabs,  two  spaces   and a trailing one ",
    "naïve façade, Ελλάδα, Москва, 漢字かな, עברית, हिन्दी",
    "emoji 👩‍🔬🏳️‍🌈 and a lone combining ◌́ mark",
    "\x00\x07\x7f control \r\n\r characters  ",
    "12345 0x1F 3.14e-10",
    "<|not a token|> <| end |> don't we'll",
]


@pytest.fixture(scope="module")
def folder():
    return base_model_path()


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "PRETRAINING.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_folder_without_the_model_is_refused_and_its_missing_files_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingFileError, match=r"model\.safetensors, tokenizer\.json") as caught:
        require_model_files(tmp_path)
    assert "no config.json" not in str(caught.value)
    for name in MODEL_FILES:
        (tmp_path / name).touch()
    require_model_files(tmp_path)


def test_weights_are_small_and_those_of_the_record(folder, record):
    weights = folder / "model.safetensors"
    assert weights.stat().st_size == record["model_bytes"] < 10_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["model_sha256"]


def test_the_causal_model_loads_whole_and_predicts_english_and_code(folder, record, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values())
    assert model.num_parameters() == record["parameters"]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    text = 'def close(self):\n    """Close the file."""\n    self.file.close()\n'
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss.item()
        shuffled = tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator())]
        assert loss < 4.0 < model(input_ids=shuffled, labels=shuffled).loss.item()


def test_a_padded_batch_classifies_as_its_rows_do_alone(folder, tokenizer):
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=10, dtype=torch.float32
    ).eval()
    texts = ["Return the name.", "Open a URL and return a response, or raise URLError."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert together.shape == (2, 10)
    # float32; a padded row goes through matrix products of another shape
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_pads_on_the_right_and_knows_the_longest_input(folder, tokenizer):
    batch = tokenizer(["a", "a longer text"], padding=True)
    assert batch["input_ids"][0][-1] == tokenizer.pad_token_id
    assert batch["attention_mask"][0][0] == 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert tokenizer.model_max_length == config["max_position_embeddings"] == 512
    assert len(tokenizer) == config["vocab_size"]


def test_the_chat_template_masks_all_but_the_assistants_words(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a list?"},
        {"role": "assistant", "content": "A sequence."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|begin|><|system|>\nBe brief.<|end|>\n<|user|>\nWhat is a list?<|end|>\n"
        "<|assistant|>\nA sequence.<|end|>\n"
    )
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|end|>\n<|assistant|>\n")
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    kept = [
        token
        for token, is_assistant in zip(
            encoded["input_ids"], encoded["assistant_masks"], strict=True
        )
        if is_assistant
    ]
    assert tokenizer.decode(kept) == "A sequence.<|end|>"


def test_the_chat_template_refuses_an_unknown_role(tokenizer):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="Unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_validation_loss_falls_and_agrees_with_the_record(folder, record):
    with (folder / "validation_loss.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["validation_loss"]) for row in rows]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == record["steps"]
    assert int(rows[-1]["tokens"]) == record["tokens_seen"]
    assert min(losses) == losses[-1] < 0.5 * losses[0]
    # the curve is measured on a part of the held-out documents, the record on all of them
    assert losses[-1] == pytest.approx(record["validation"]["loss_window_256"], abs=0.2)


def test_the_files_say_nothing_of_the_machine_that_made_them(folder):
    for path in folder.iterdir():
        if path.suffix in {".json", ".md", ".csv", ".jinja"}:
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ("/root", "/home", "/tmp", "/work")), path


def test_the_base_that_comes_along_has_a_short_name():
    packaged = str(base_model_path())
    assert (base_name(packaged), base_name("/a/b"), base_name("a/b")) == (
        "quickstart",
        "/a/b",
        "a/b",
    )
    assert (short_base_name(packaged), short_base_name("/a/b/"), short_base_name("a/b")) == (
        "quickstart",
        "b",
        "a/b",
    )
