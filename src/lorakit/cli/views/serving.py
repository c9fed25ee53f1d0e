"""Show what a server serves, and how to call it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorakit.cli.views.console import heading, remark, say, table
from lorakit.files.disks import size_text

if TYPE_CHECKING:
    from lorakit.serving.service import Overview
    from lorakit.serving.speed import Speed

SHOWN_ADAPTERS = 20
SHOWN_PROBLEMS = 5
DOCS_PAGE = "docs/serving.md"

_CALLS = {
    "CAUSAL_LM": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32},
        'chat.completions.create(model={model}, messages=[{{"role": "user", "content": "Hello"}}])',
    ),
    "SEQ_2_SEQ_LM": (
        "/v1/completions",
        {"prompt": "Hello"},
        'completions.create(model={model}, prompt="Hello")',
    ),
    "SEQ_CLS": (
        "/v1/classify",
        {"input": ["A text to classify."]},
        'post("/classify", cast_to=dict, body={{"model": {model}, "input": ["A text."]}})',
    ),
    "TOKEN_CLS": (
        "/v1/classify",
        {"input": ["A text whose words are tagged."]},
        'post("/classify", cast_to=dict, body={{"model": {model}, "input": ["A text."]}})',
    ),
    "": (
        "/v1/embeddings",
        {"input": ["A text."]},
        'embeddings.create(model={model}, input=["A text."])',
    ),
}
"""An example by task: path, body, and the call of OpenAI's client. A base without one has ""."""


def show_models(overview: Overview, speeds: Mapping[str, Speed]) -> None:
    """Print the base, and a table of the adapters with their costs.

    Args:
        overview: What is served.
        speeds: Measured speeds by adapter.
    """
    kinds = ", ".join(str(kind) for kind in overview.kinds)
    say(f"Base {overview.base_name} ({overview.base}), loaded for {kinds}.")
    if overview.shared_bytes:
        say(f"The tasks share {size_text(overview.shared_bytes)} of the base's weights.")
    served = [(known, kind) for known, kind in overview.adapters if known.problem is None]
    if served:
        heading("Adapters")
        rows = [
            (
                known.name,
                str(kind.task),
                known.rank,
                size_text(known.bytes),
                _speed_text(speeds.get(known.name)),
            )
            for known, kind in served[:SHOWN_ADAPTERS]
        ]
        table(("name", "task", "rank", "memory", "tokens/s (base alone)"), rows)
        if len(served) > SHOWN_ADAPTERS:
            say(f"and {len(served) - SHOWN_ADAPTERS} more; GET /v1/models lists all.")
    refused = [known for known, _ in overview.adapters if known.problem is not None]
    if refused:
        heading("Cannot be served")
        for known in refused[:SHOWN_PROBLEMS]:
            say(f"  {known.name}: {known.problem}")
        if len(refused) > SHOWN_PROBLEMS:
            say(f"  and {len(refused) - SHOWN_PROBLEMS} more; GET /v1/models lists all.")


def _speed_text(speed: Speed | None) -> str | None:
    if speed is None:
        return None
    return f"{speed.tokens_per_s:.0f} ({100 * speed.share:.0f}%)"


def show_calls(url: str, overview: Overview, has_key: bool) -> None:
    """Print the address, and a request for curl and one for Python.

    Args:
        url: The server's address.
        overview: What is served.
        has_key: Whether requests need a key.
    """
    adapter = next((pair for pair in overview.adapters if pair[0].problem is None), None)
    name, task = overview.base_name, str(overview.kinds[0].task) if overview.answers_alone else ""
    has_template = overview.has_chat_template
    if adapter is not None:
        name, task = adapter[0].name, str(adapter[1].task)
        has_template = has_template or (adapter[0].path / "chat_template.jinja").is_file()
    if task == "CAUSAL_LM" and not has_template:
        task = "SEQ_2_SEQ_LM"  # called in the same way
    path, body, call = _CALLS[task]
    heading(f"Serving at {url}")
    key = " -H 'authorization: Bearer KEY'" if has_key else ""
    data = json.dumps({"model": name, **body}, ensure_ascii=False).replace("'", "'\\''")
    say(f"  curl {url}{path}{key} -d '{data}'")
    say()
    say("  import openai")
    say(f'  client = openai.OpenAI(base_url="{url}/v1", api_key="{"KEY" if has_key else "none"}")')
    say(f"  client.{call.format(model=json.dumps(name))}")
    say()
    remark(f"{DOCS_PAGE} has a request for every path. Ctrl-C stops the server.")


def show_unmeasured(names: Sequence[str], most: int) -> None:
    """Print that the speed of some adapters was not measured."""
    remark(
        f"The speed of {len(names)} adapters was not measured: with more than {most} it takes "
        "long. --measure N measures more."
    )
