"""Every request that the page about serving shows works."""

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"


def shown_requests():
    """Return the words of each curl command of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("curl ")]


def test_there_is_a_request_for_every_path(served):
    shown = {words[1].removeprefix(ADDRESS) for words in shown_requests()}
    paths = {path.replace("{name}", "german") for path in served.get("/openapi.json")["paths"]}
    assert paths - shown == {"/classify", "/score"}  # other names of shown ones


@pytest.mark.parametrize("words", shown_requests(), ids=lambda words: words[1])
def test_the_request_is_answered(served, words):
    url = words[1]
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    path = url.removeprefix(ADDRESS)
    with served.http() as http:
        if "-d" in words:
            content = words[words.index("-d") + 1].encode()
            response = http.post(path, content=content, headers=headers)
        else:
            response = http.get(path, headers=headers)
    assert response.status_code == 200, response.text


def test_the_python_of_the_page_streams_an_answer(served, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "import openai" in block]
    names = {}
    exec(block.replace(ADDRESS, served.server.url), names)
    names["client"].close()
    assert capsys.readouterr().out


def test_the_python_of_the_page_starts_a_server(done, monkeypatch):
    import lorakit

    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "lorakit.serve" in block]
    result, _ = done
    serve = lorakit.serve
    monkeypatch.setitem(
        vars(lorakit), "serve", lambda models, **options: serve(result.run_dir, **options)
    )
    block = block.replace("server.wait()", "server.stop()")
    exec(block, {})
