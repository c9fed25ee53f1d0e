"""A signal to a real server in the middle of a stream: nothing of the answer is lost or made up."""

import json
import re
import threading
import time
from contextlib import contextmanager

import httpx2
import pytest

from forked import LORAKIT, Program

SLOWLY = f"""
import time
from lorakit.serving.engine.steps import Steps

whole = Steps.step

def step(self):
    time.sleep(0.02)
    whole(self)

Steps.step = step
{LORAKIT}
"""
NEW_TOKENS = 60
BODY = {"model": "german", "prompt": "sky", "temperature": 0, "ignore_eos": True}
BODY |= {"max_tokens": NEW_TOKENS}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True}}


@contextmanager
def server(tmp_path, tiny_llama_dir, adapter_folder, *options):
    """Run `lorakit serve` as a process; yield it, and where it answers."""
    words = ("serve", tiny_llama_dir, "--adapters", adapter_folder, "--base-name", "base")
    words += ("--port", 0, "--measure", 0, "--access-log", tmp_path / "access.jsonl", *options)
    with Program(SLOWLY, *words) as program:
        until = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", program.printed("stdout"))):
            assert time.monotonic() < until and program.process.is_alive(), program.printed(
                "stderr"
            )
            time.sleep(0.02)
        yield program, found.group()


def events(response, then):
    """Return the data of a stream's events; `then` is called once some have come."""
    found = []
    for line in response.iter_lines():
        if line:
            found.append(line.removeprefix("data: "))
            if len(found) == 5:
                then()
    return found


def logged(tmp_path):
    """Return the last line of the access log."""
    return json.loads((tmp_path / "access.jsonl").read_text().splitlines()[-1])


def text_of(chunks):
    return "".join(one["choices"][0]["text"] for one in chunks if one.get("choices"))


def test_a_stream_is_finished_and_new_requests_are_refused(
    tmp_path, tiny_llama_dir, adapter_folder
):
    refused = []
    with (
        server(tmp_path, tiny_llama_dir, adapter_folder) as (program, url),
        httpx2.Client(base_url=url, timeout=60) as http,
        httpx2.Client(base_url=url, timeout=60) as other,
    ):
        expected = other.post("/v1/completions", json=BODY).json()

        def end():
            program.process.terminate()
            while (
                answer := other.post("/v1/completions", json=BODY | {"max_tokens": 1})
            ).is_success:
                pass
            refused.append(answer)

        with http.stream("POST", "/v1/completions", json=STREAM) as response:
            found = events(response, then=end)
        finished = program.finished(60)
    assert finished.returncode == 143 and "Terminated." in finished.stderr
    assert "Traceback" not in finished.stderr
    assert found[-1] == "[DONE]"
    *chunks, usage = map(json.loads, found[:-1])
    assert text_of(chunks) == expected["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == NEW_TOKENS
    assert refused[0].status_code == 503 and refused[0].json()["error"]["code"] == "stopping"
    line = logged(tmp_path)
    assert (line["status"], line["output_tokens"]) == (200, NEW_TOKENS)


@pytest.mark.parametrize("is_stream", [True, False])
def test_an_answer_that_takes_too_long_ends_with_an_error(
    tmp_path, tiny_llama_dir, adapter_folder, is_stream
):
    with (
        server(tmp_path, tiny_llama_dir, adapter_folder, "--shutdown-seconds", 0.1) as (
            program,
            url,
        ),
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        whole = http.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
        long = BODY | {"max_tokens": 120, "n": 2}
        if is_stream:
            with http.stream("POST", "/v1/completions", json=long | {"stream": True}) as response:
                found = events(response, then=program.process.terminate)
            *chunks, last = map(json.loads, found)
            assert whole.startswith(text_of(c for c in chunks if c["choices"][0]["index"] == 0))
        else:
            threading.Timer(0.5, program.process.terminate).start()
            answer = http.post("/v1/completions", json=long)
            assert answer.status_code == 503
            last = answer.json()
        finished = program.finished(60)
    assert last["error"]["code"] == "stopping"
    assert last["error"]["message"].startswith("The answer is not finished: the server is stopping")
    assert finished.returncode == 143 and "Traceback" not in finished.stderr
    assert logged(tmp_path)["status"] in (500, 503)
    assert "is stopping" in logged(tmp_path)["error"]
