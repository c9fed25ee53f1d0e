from lorakit.data.tokenizers import token_ids
from lorakit.serving.http.routes.token_texts import distinct_text, token_bytes, token_text
from tiny_models.tokenizers import byte_bpe, one_piece_per_word


def test_parts_of_a_character_have_their_bytes():
    tokenizer = byte_bpe()
    ids = token_ids(tokenizer, "é sky")
    assert bytes(byte for one in ids for byte in token_bytes(tokenizer, one)) == "é sky".encode()
    assert token_text(tokenizer, ids[0]) == "\ufffd"
    assert distinct_text(tokenizer, ids[0]) == "bytes:\\xc3"
    assert distinct_text(tokenizer, ids[-1]) == " sky"


def test_a_word_has_the_space_before_it():
    tokenizer = one_piece_per_word()
    first, second, _ = token_ids(tokenizer, "the sky")
    assert token_text(tokenizer, first) == " the"
    assert token_text(tokenizer, second) == " sky"
    assert token_bytes(tokenizer, second) == list(b" sky")
