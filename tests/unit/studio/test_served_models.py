"""The models of the playground, asked by other programs."""

import asyncio
import json
import shutil

import httpx
import pytest

from lorakit.serving.clients.candidates import Question, Wanted
from lorakit.serving.clients.talking import AnswerOptions
from lorakit.studio.served_models import ServedModels, playground_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def state(studio, adapter_folder):
    """A playground in a folder with adapters."""
    shutil.copytree(adapter_folder, studio.root, dirs_exist_ok=True)
    settings = {"task_type": "CAUSAL_LM", "format": "messages"}
    (studio.root / "german" / "lorakit.json").write_text(json.dumps(settings))
    made = playground_of(studio)
    yield made
    made.close()


@pytest.fixture
def client(studio):
    """A program that calls a studio."""
    transport = httpx.ASGITransport(ServedModels(studio))
    return httpx.AsyncClient(transport=transport, base_url="http://here/v1")


async def test_what_the_playground_has_in_memory_answers_openais_calls(state, studio, client):
    state.load(Wanted(adapters={n: studio.root / n for n in ("german", "mood")}))
    async with asyncio.timeout(60):
        while state.loading is not None:
            await asyncio.sleep(0.02)
    assert state.error is None
    answer = await client.get("/models")
    assert {"german", "mood"} < {each["id"] for each in answer.json()["data"]}
    body = {"model": "german", "messages": [{"role": "user", "content": "what colour is the sky"}]}
    answer = await client.post(
        "/chat/completions", json=body | {"max_tokens": 5, "temperature": 0, "seed": 1}
    )
    state.ask(Question("what colour is the sky"), AnswerOptions(max_new_tokens=5, seed=1))
    async with asyncio.timeout(60):
        while state.is_answering:
            await asyncio.sleep(0.02)
    shown = next(each.text for each in state.answers if each.candidate.name == "german")
    assert answer.json()["choices"][0]["message"]["content"] == shown
    answer = await client.post("/classify", json={"model": "mood", "input": ["a fine day"]})
    assert answer.json()["data"][0]["label"] in ("bad", "good", "mixed")
    answer = await client.post("/load_lora_adapter", json={"lora_name": "x", "lora_path": "tags"})
    assert answer.status_code == 404  # the playground alone says what is in memory

    await state.unload()
    assert (await client.get("/models")).status_code == 503


async def test_nothing_in_memory_is_said_with_the_next_step(state, client):
    answer = await client.post("/chat/completions", json={"model": "german"})
    assert answer.status_code == 503
    assert "Load one in its playground" in answer.json()["error"]["message"]
