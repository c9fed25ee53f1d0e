import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from lorakit.inference import generate_text, load_for_inference
from lorakit.serving import serve
from tiny_models.adapted import save_adapter_of

TEXTS = ["the sky is blue", "a good film was seen today", "Anna lives"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_t5_dir):
    made = tmp_path_factory.mktemp("t5")
    for seed, name in enumerate(("short", "long")):
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5_dir)
        save_adapter_of(
            made / name, model, task_type="SEQ_2_SEQ_LM", seed=seed, target_modules=["q", "v"]
        )
        settings = {"task_type": "SEQ_2_SEQ_LM", "source_prefix": "the : ", "max_target_length": 6}
        (made / name / "lorakit.json").write_text(json.dumps(settings))
    return made


@pytest.fixture(scope="module")
def served(folder, tiny_t5_dir):
    from fixtures.serving import Served

    with serve(tiny_t5_dir, folder=folder, base_name="base", port=0) as server:
        yield Served(server, folder, folder / "none")


def ask(served, status=200, **fields):
    body = {"model": "short", "prompt": TEXTS, "temperature": 0} | fields
    return served.post("/v1/completions", body, status)


@pytest.mark.parametrize("name", ["short", "long"])
def test_answers_are_those_of_the_adapter_alone(served, folder, tiny_t5_dir, name):
    loaded = load_for_inference(folder / name, tiny_t5_dir)
    made = ask(served, model=name)
    assert [choice["text"] for choice in made["choices"]] == generate_text(loaded, TEXTS)
    assert made["usage"]["completion_tokens"] <= 18
    assert {choice["finish_reason"] for choice in made["choices"]} <= {"stop", "length"}


def test_a_sampled_answer_is_repeated_by_its_seed(served):
    options = {"temperature": 2, "seed": 3, "max_tokens": 12, "prompt": TEXTS[0]}
    first, again, other = (
        ask(served, **options | change)["choices"][0]["text"] for change in ({}, {}, {"seed": 4})
    )
    assert first == again != other


def test_a_stream_has_the_whole_answer_and_usage(served):
    with served.http() as http:
        body = {"model": "short", "prompt": TEXTS[0], "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        text = http.post("/v1/completions", json=body).text
    *chunks, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    first, usage = map(json.loads, chunks)
    expected = ask(served, prompt=TEXTS[0])
    assert first["choices"][0]["text"] == expected["choices"][0]["text"]
    assert usage["usage"] == expected["usage"]


def test_an_answer_ends_before_a_stop_text(served):
    text = ask(served, prompt=TEXTS[0], max_tokens=12)["choices"][0]["text"]
    stop = text.split()[1]
    (cut,) = ask(served, prompt=TEXTS[0], max_tokens=12, stop=stop)["choices"]
    assert cut["text"] == text[: text.index(stop)] and cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", 0), ("logit_bias", {"1": 1}), ("presence_penalty", 1), ("prompt", [1, 2])],
)
def test_what_such_models_cannot_do_is_refused_by_name(served, field, value):
    assert ask(served, 400, **{field: value})["param"] == field


def test_such_a_model_does_not_chat_but_has_vectors(served):
    body = {"model": "short", "messages": [{"role": "user", "content": "a"}]}
    error = served.post("/v1/chat/completions", body, 400)
    assert error["message"].endswith("expected CAUSAL_LM. Use POST /v1/completions.")
    assert len(served.post("/v1/embeddings", {"model": "long", "input": "sky"})["data"]) == 1
