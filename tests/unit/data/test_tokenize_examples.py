"""Examples as tokens, and tokens as text."""

import pytest
from datasets import Dataset, Value
from transformers import AutoTokenizer

from lorakit.data import chunks
from lorakit.data.table_cache import TableCache
from lorakit.data.tokenize_examples import (
    cut_note,
    map_examples,
    naming_examples,
    probe_tokens,
    readable,
    require_texts,
    tokenize_texts,
)
from lorakit.data.tokenizers import batch_columns
from lorakit.errors import DataError


@pytest.mark.parametrize(("length", "cut"), [(4, 1), (5, 0), (16, 0)])
def test_a_text_that_loses_only_its_second_beginning_is_not_cut(tiny_bert_dir, length, cut):
    bert = AutoTokenizer.from_pretrained(tiny_bert_dir)
    columns, count = tokenize_texts(bert, ["[CLS] the cat"], None, length)

    assert count == cut
    assert columns["input_ids"][0][:2] == batch_columns(bert, ["the cat"])["input_ids"][0][:2]


def test_examples_that_were_cut_are_counted(tiny_bert_dir):
    bert = AutoTokenizer.from_pretrained(tiny_bert_dir)
    texts = ["the cat", "the cat was good", "dog"]
    columns, count = tokenize_texts(bert, texts, ["the dog", "the dog", "the dog was good"], 7)

    assert count == 2 and [len(ids) for ids in columns["input_ids"]] == [7, 7, 7]
    note = "2 of 3 training examples were cut to 7 tokens (data.max_length)."
    assert cut_note(2, 3, 7, "training") == [note]
    assert cut_note(0, 3, 7, "training") == []


def test_mapped_examples_have_the_new_columns_alone_and_no_cache(tmp_path):
    examples = Dataset.from_dict({"text": ["a", "bc"]})
    function = lambda batch, numbers: ({"n": [len(t) for t in batch["text"]]}, (1,))  # noqa: E731
    cache = TableCache(tmp_path, 10**9)

    made, counts = map_examples(examples, function, {"n": Value("int32")}, str, cache)

    assert counts == (1,) and not list(tmp_path.iterdir())
    assert made.to_list() == [{"n": 1}, {"n": 2}] and made.features == {"n": Value("int32")}
    assert made.cache_files == []
    assert probe_tokens([{"ids": list(range(40))}], "ids").tolist() == [list(range(16))]


def test_texts_that_are_missing_or_none_are_listed_by_column():
    examples = Dataset.from_dict({"a": ["x", " ", None], "b": [1, 2, 3]})
    require_texts(Dataset.from_dict({"a": ["x"]}), {"data.text": "a"}, "the examples")

    with pytest.raises(DataError) as caught:
        require_texts(examples, {"data.text": "a", "data.text_pair": "b"}, "the examples")

    assert str(caught.value) == (
        "Texts are missing in the examples: 'a' (data.text) is empty in examples 2, 3; 'b' "
        "(data.text_pair) holds int in examples 1, 2, 3; expected a text in each example. Repair "
        "or remove these examples, or name another column."
    )


def test_tokens_that_are_parts_of_a_character_are_shown_as_the_character(tiny_gpt2_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)
    ids = tokenizer("the 名")["input_ids"]

    shown = readable(tokenizer, ids)

    assert "".join(shown) == "the 名"
    assert shown[-3:] == ["名", "", ""]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert readable(tokenizer, ids[:-1])[-2:] == pieces[-3:-1]  # the character is incomplete


@pytest.fixture
def all_is_large(monkeypatch):
    """Work through any data in two processes, a few examples at a time."""
    monkeypatch.setattr(chunks, "_LARGE_EXAMPLES", 10)
    monkeypatch.setattr(chunks, "_CHUNK_EXAMPLES", 7)
    monkeypatch.setattr(chunks.os, "sched_getaffinity", lambda _: {0, 1})


def _doubled(batch, numbers):
    some = [number for number in numbers if number % 10]
    texts = [text for text, number in zip(batch["text"], numbers, strict=True) if number % 10]
    return {"n": [int(text) * 2 for text in texts], "at": some}, (len(numbers) - len(some),)


_NUMBERS = {"n": Value("int64"), "at": Value("int64")}


def _double(cache, examples=None, identity="x", function=_doubled):
    examples = examples or Dataset.from_dict({"text": [str(number) for number in range(50)]})
    return map_examples(examples, function, _NUMBERS, lambda: identity, cache)


def test_large_data_is_mapped_in_processes_with_the_same_result(tmp_path, request):
    cache = TableCache(tmp_path / "kept", 10**9)
    one, (left_out,) = _double(cache)
    assert not cache.directory.exists()  # small data is not kept
    request.getfixturevalue("all_is_large")
    several, (left_out_here,) = _double(cache)

    assert one["at"][:] == several["at"][:] == [n for n in range(50) if n % 10]
    assert one["n"][:] == several["n"][:]
    assert left_out == left_out_here == 5
    assert one.features == several.features


def test_what_is_kept_is_found_by_content_and_rules(tmp_path, all_is_large):
    cache = TableCache(tmp_path / "kept", 10**9)
    first, _ = _double(cache)

    def refused(batch, numbers):
        raise DataError("This is computed again.")

    again, (left_out,) = _double(cache, function=refused)
    assert again.to_list() == first.to_list() and left_out == 5
    with pytest.raises(DataError, match="computed again"):
        _double(cache, function=refused, identity="y")
    other = Dataset.from_dict({"text": [str(number) for number in range(1, 51)]})
    with pytest.raises(DataError, match="computed again"):
        _double(cache, other, function=refused)
    # The same examples, chosen from more.
    more = Dataset.from_dict({"text": [str(number - 20) for number in range(90)]})
    chosen, _ = _double(cache, more.select(range(20, 70)), function=refused)
    assert chosen.to_list() == first.to_list()


def test_examples_whose_result_was_kept_are_not_checked_again(all_is_large, tmp_path):
    cache = TableCache(tmp_path / "kept", 10**9)
    examples = Dataset.from_dict({"text": [str(number) for number in range(50)]})
    checked = []
    for _ in range(2):
        given = (examples, _doubled, _NUMBERS, lambda: "x", cache)
        map_examples(*given, lambda: checked.append(len(examples)))
    assert checked == [50]
    refused = DataError("Example 1 is wrong.")

    def refuse():
        raise refused

    with pytest.raises(DataError, match="Example 1 is wrong"):
        map_examples(examples, _doubled, _NUMBERS, lambda: "other rules", cache, refuse)


def test_an_example_that_is_refused_among_many_is_named():
    def encode(batch, numbers):
        if "bad" in batch["text"]:
            raise DataError("Not this one.")
        return numbers

    encode_chunk = naming_examples(encode, "the examples of 'x'")

    assert encode_chunk({"text": ["a", "b"]}, [3, 4]) == [3, 4]
    with pytest.raises(DataError) as caught:
        encode_chunk({"text": ["a", "bad", "c"]}, [6, 7, 8])
    assert str(caught.value) == "In example 8 of the examples of 'x': Not this one."
