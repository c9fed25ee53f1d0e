"""Text while tokens arrive."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lorakit.serving.engine.text_stream import TextStream
from tiny_models.tokenizers import byte_bpe, one_piece_per_word

MANY_BYTES = "Grüße, 你好 — 👍🏽 ñ \n\n  done"


def streamed(tokenizer, ids, prompt=(), stop=()):
    """Return the pieces of text of each token, with what was held back at the end."""
    stream = TextStream(tokenizer, prompt, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.is_stopped:
            return pieces
    return [*pieces, stream.end()]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def sentencepiece_like():
    """Words with the mark of a space before them, and single bytes for all else."""
    pieces = ["<unk>", "</s>", "▁Hello", "▁world", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def test_no_piece_has_half_a_character():
    tokenizer = byte_bpe()
    pieces = streamed(tokenizer, ids_of(tokenizer, MANY_BYTES))
    assert "".join(pieces) == MANY_BYTES
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces


def test_a_long_text_is_the_text_of_all_tokens():
    tokenizer = byte_bpe()
    text = (MANY_BYTES + " and so on, ") * 20
    assert "".join(streamed(tokenizer, ids_of(tokenizer, text))) == text


def test_bytes_that_are_no_character_come_in_the_end():
    tokenizer = byte_bpe()
    ids = ids_of(tokenizer, "a👍")[:-1]
    pieces = streamed(tokenizer, ids)
    assert pieces[0] == "a" and "".join(pieces) == tokenizer.decode(ids)


def test_bytes_that_never_become_a_character_do_not_hold_the_rest_back():
    tokenizer = byte_bpe()
    ids = [ids_of(tokenizer, "é")[0]] * 100
    pieces = streamed(tokenizer, ids)
    assert sum(map(len, pieces[:50])) > 40


def test_a_word_after_a_prompt_keeps_its_space():
    tokenizer = sentencepiece_like()
    hello, world, mark = 2, 3, 4
    assert streamed(tokenizer, [world, mark], prompt=[hello]) == [" world", "!", ""]
    assert streamed(tokenizer, [hello, world], prompt=[]) == ["Hello", " world", ""]
    assert streamed(tokenizer, [hello], prompt=[hello, 1]) == [" Hello", ""]


def test_characters_of_single_bytes_come_whole():
    tokenizer = sentencepiece_like()
    ids = [2, *(5 + byte for byte in "你é".encode()), 3]
    assert streamed(tokenizer, ids) == ["Hello", "", "", "你", "", "é", " world", ""]


@pytest.mark.parametrize("prompt", ["", "👍👍", "Hello"])
def test_characters_of_single_bytes_may_stand_side_by_side(prompt):
    tokenizer = sentencepiece_like()
    text = "🇩🇪👍🏽 你好!é" * 9
    ids, before = ([5 + byte for byte in each.encode()] for each in (text, prompt))
    pieces = streamed(tokenizer, ids, before)
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) == len(text)


def test_special_tokens_are_left_out():
    tokenizer = byte_bpe()
    ids = [*ids_of(tokenizer, "a b"), tokenizer.eos_token_id, *ids_of(tokenizer, "c")]
    assert "".join(streamed(tokenizer, ids)) == "a bc"
    words = one_piece_per_word()
    assert "".join(streamed(words, [1, 3, 1, 4])) == words.decode([3, 4])


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "wo t"], "one t"),
        ("one two three", ["four"], "one two three"),
        ("aaab", ["aab"], "a"),
        ("end", ["d"], "en"),
        ("almost STO", ["STOP"], "almost STO"),
        ("x\n\ny", ["\n\n"], "x"),
        ("ab你c", ["你"], "ab"),
    ],
)
def test_stop_texts_cross_tokens_and_are_never_part_of_the_text(text, stop, expected):
    tokenizer = byte_bpe()
    pieces = streamed(tokenizer, ids_of(tokenizer, text), stop=stop)
    assert "".join(pieces) == expected
    seen = ""
    for piece in pieces:
        seen += piece
        assert expected.startswith(seen)


def test_a_stop_text_may_be_held_until_the_end():
    tokenizer = byte_bpe()
    stream = TextStream(tokenizer, (), ["\ufffd"])
    (first, *_) = ids_of(tokenizer, "👍")
    assert stream.add(first) == ""
    assert stream.end() == "" and stream.is_stopped
