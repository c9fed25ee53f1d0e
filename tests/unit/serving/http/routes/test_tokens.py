from lorakit.data.tokenizers import token_ids
from lorakit.serving.http.routes.tokens import distinct_text, token_bytes, token_text
from tiny_models.tokenizers import byte_bpe, one_piece_per_word


def test_a_text_becomes_tokens_and_back(served):
    body = {"model": "german", "prompt": "the sky is blue", "return_token_strs": True}
    made = served.post("/tokenize", body)
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert made["max_model_len"] == 128
    back = served.post("/detokenize", {"model": "german", "tokens": made["tokens"]})
    assert back == {"prompt": "the sky is blue"}


def test_a_conversation_becomes_tokens(served):
    messages = [{"role": "user", "content": "sky"}]
    body = {"model": "german", "messages": messages}
    opened = served.post("/tokenize", body)["tokens"]
    closed = served.post("/tokenize", body | {"add_generation_prompt": False})["tokens"]
    assert opened[: len(closed)] == closed and len(opened) == len(closed) + 1


def test_tokens_outside_the_vocabulary_are_refused(served):
    error = served.post("/detokenize", {"model": "base", "tokens": [10**6]}, 400)
    assert error["param"] == "tokens"
    assert served.post("/detokenize", {"model": "base", "tokens": []}) == {"prompt": ""}


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
