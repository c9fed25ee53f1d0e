"""OpenAI's own client against a server on loopback: every call, streaming, usage and errors."""

import asyncio
import base64
import struct

import openai
import pytest

MESSAGES = [{"role": "user", "content": "what colour is the sky"}]
GREEDY = {"temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(served):
    with served.client() as made:
        yield made


def test_models_have_their_parent_root_rank_task_and_hash(client, served):
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["base", "french", "german", "mood", "pairs", "tags"]
    german = client.models.retrieve("german").model_dump()
    client.chat.completions.create(model="german", messages=MESSAGES, max_tokens=1)
    german = client.models.retrieve("german").model_dump()
    assert german["parent"] == "base" and german["task"] == "CAUSAL_LM" and german["rank"] == 2
    assert german["root"] == str(served.folder / "german")
    assert len(german["hash"]) == 64 and german["in_memory"]
    assert found["base"].model_dump()["parent"] is None


def test_a_chat_answers_with_usage(client):
    made = client.chat.completions.create(model="german", messages=MESSAGES, **GREEDY)
    assert made.object == "chat.completion" and made.model == "german"
    (choice,) = made.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    usage = made.usage
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_is_the_same_answer_in_pieces_with_its_usage(client):
    whole = client.chat.completions.create(model="german", messages=MESSAGES, **GREEDY)
    stream = client.chat.completions.create(
        model="german",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert sum(bool(text) for text in texts) > 2
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_each_model_has_its_answer(client):
    answers = {
        name: client.chat.completions.create(model=name, messages=MESSAGES, **GREEDY)
        .choices[0]
        .message.content
        for name in ("base", "german", "french")
    }
    assert len(set(answers.values())) == 3


def test_logprobs_are_those_of_the_tokens(client):
    made = client.chat.completions.create(
        model="french", messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY
    )
    tokens = made.choices[0].logprobs.content
    assert len(tokens) == 8
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert token.bytes == token.top_logprobs[0].bytes
    joined = bytes(byte for token in tokens for byte in token.bytes)
    assert joined.decode(errors="replace") == made.choices[0].message.content


def test_a_stream_has_logprobs_too(client):
    options = {"model": "french", "messages": MESSAGES, "logprobs": True, **GREEDY}
    whole = client.chat.completions.create(**options)
    chunks = client.chat.completions.create(**options, stream=True)
    streamed = [
        token.logprob
        for chunk in chunks
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    expected = [token.logprob for token in whole.choices[0].logprobs.content]
    assert streamed == pytest.approx(expected, abs=1e-4)


def test_several_answers_differ_and_a_seed_repeats_them(client):
    options = {"model": "german", "messages": MESSAGES, "n": 3, "max_tokens": 8, "seed": 7}
    first = client.chat.completions.create(**options)
    again = client.chat.completions.create(**options)
    other = client.chat.completions.create(**options | {"seed": 8})
    texts = [[choice.message.content for choice in made.choices] for made in (first, again, other)]
    assert len(set(texts[0])) == 3
    assert texts[0] == texts[1] != texts[2]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.prompt_tokens == other.usage.prompt_tokens


def test_an_answer_ends_before_a_stop_text(client):
    whole = client.chat.completions.create(model="german", messages=MESSAGES, **GREEDY)
    text = whole.choices[0].message.content
    stop = text[3:5]
    cut = client.chat.completions.create(model="german", messages=MESSAGES, stop=[stop], **GREEDY)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_an_answer_keeps_to_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["blue", "grey"]}, "sure": {"type": "boolean"}},
        "required": ["sky", "sure"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}}
    made = client.chat.completions.create(
        model="german", messages=MESSAGES, response_format=wanted, max_tokens=60, n=2
    )
    for choice in made.choices:
        assert choice.message.content.startswith('{"sky":"')
        assert choice.message.content.endswith("e}")
        assert choice.finish_reason == "stop"


def test_completions_continue_texts_and_tokens(client, served):
    tokens = served.post("/tokenize", {"model": "german", "prompt": "the sky"})["tokens"]
    made = client.completions.create(
        model="german", prompt=["the sky", "the grass"], logprobs=2, **GREEDY
    )
    by_ids = client.completions.create(model="german", prompt=tokens, **GREEDY)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.choices[0].text == by_ids.choices[0].text
    logprobs = made.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 8
    assert all(len(each) == 2 for each in logprobs.top_logprobs)
    streamed = client.completions.create(model="german", prompt="the sky", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in streamed) == made.choices[0].text


def test_embeddings_are_vectors_of_length_one_as_numbers_and_as_bytes(client):
    texts = ["a good film", "the sky is blue and the grass is green"]
    made = client.embeddings.create(model="german", input=texts, encoding_format="float")
    assert made.usage.prompt_tokens > 5
    first, second = (each.embedding for each in made.data)
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-5)
    assert first != second
    alone = client.embeddings.create(model="german", input=texts[0])  # the client asks for base64
    assert alone.data[0].embedding == pytest.approx(first, abs=1e-5)
    raw = client.embeddings.with_raw_response.create(
        model="german", input=texts[0], encoding_format="base64"
    )
    packed = base64.b64decode(raw.http_response.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(first)}f", packed) == pytest.approx(first, abs=1e-5)


def test_calls_beyond_openais_go_through_its_client(client):
    made = client.post("/classify", cast_to=dict, body={"model": "mood", "input": ["a film"]})
    assert set(made["data"][0]["probabilities"]) == {"bad", "good", "mixed"}


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"model": "germen"}, openai.NotFoundError, "model"),
        ({"model": "mood"}, openai.BadRequestError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10_000}, openai.BadRequestError, "max_tokens"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
        ({"stop": ["a"] * 17}, openai.BadRequestError, "stop"),
        ({"n": 17}, openai.BadRequestError, "n"),
        ({"logit_bias": {"100000": 1}}, openai.BadRequestError, "logit_bias"),
        (
            {"messages": [{"role": "user", "content": "sky " * 200}]},
            openai.BadRequestError,
            "messages",
        ),
    ],
)
def test_a_mistake_is_the_clients_error_with_its_parameter(client, options, kind, param):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "german", "messages": MESSAGES} | options)
    assert caught.value.param == param
    assert caught.value.request_id


def test_adapters_are_loaded_and_unloaded_by_the_administrator(served):
    from fixtures.serving import ADMIN_KEY

    with served.client() as plain, pytest.raises(openai.PermissionDeniedError):
        plain.post(
            "/load_lora_adapter", cast_to=str, body={"lora_name": "x", "lora_path": "french"}
        )
    with served.client(ADMIN_KEY) as admin:
        body = {"lora_name": "more", "lora_path": "french"}
        admin.post("/load_lora_adapter", cast_to=str, body=body)
        texts = [
            admin.chat.completions.create(model=name, messages=MESSAGES, **GREEDY)
            .choices[0]
            .message.content
            for name in ("more", "french")
        ]
        assert texts[0] == texts[1]
        admin.post("/unload_lora_adapter", cast_to=str, body={"lora_name": "more"})
        with pytest.raises(openai.NotFoundError):
            admin.chat.completions.create(model="more", messages=MESSAGES)


def test_the_asynchronous_client_asks_many_models_at_once(served):
    async def ask_all():
        async with openai.AsyncOpenAI(
            base_url=f"{served.server.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def ask(name, stream):
                made = await client.chat.completions.create(
                    model=name, messages=MESSAGES, stream=stream, **GREEDY
                )
                if not stream:
                    return name, made.choices[0].message.content
                texts = [chunk.choices[0].delta.content or "" async for chunk in made]
                return name, "".join(texts)

            names = ["base", "german", "french"] * 4
            return await asyncio.gather(*(ask(name, i % 2 == 1) for i, name in enumerate(names)))

    assert len(set(asyncio.run(ask_all()))) == 3
