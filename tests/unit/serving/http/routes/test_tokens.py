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
