"""A server on loopback with many clients: no answer lost or swapped, and memory that stays.

Each client sends one request after the other over one connection. Every request is one of a few
whose answers are known, as the server gave them while it was idle.
"""

import asyncio
import json
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

import lorakit
from benchmarks.models import Shape, save_with_tokenizer, shape_named, shared_copy
from benchmarks.options import Options
from benchmarks.results import ROOT, Row, row
from benchmarks.step import row_fields
from benchmarks.variants import LORAKIT, add_random_adapter

ANSWERS_PER_S = "answers"
REFUSED = "refused with 429"
WRONG = "lost or swapped answers"
GROWTH = "growth of resident memory"
SHAPE = "tiny-llama"
_ADAPTERS = 8
_KNOWN = 64
_MAX_WAITING = 256
_NEW_TOKENS = (4, 8, 12, 16)
_PROMPT_TOKENS = (4, 12, 24, 48)
_WARMUP_SHARE = 0.25
"""Share of the time before memory counts: buffers grow until every size has been seen."""
_ANSWER_S = 120.0
_STOP_S = 120.0
"""Time to end, also on a machine whose processors are busy with other programs."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 8.0
"""Pauses after refusals; the first is what Retry-After says."""
_LARGER_WEIGHTS = 15.0
_R = 4


def clients_setting(clients: int) -> str:
    """Return what rows call a number of clients."""
    return f"{clients} clients"


@dataclass
class Tally:
    """What clients have seen.

    Attributes:
        statuses: Answers by HTTP status.
        wrong: Descriptions of answers that are not the known ones.
        lost: Requests without an answer.
        first_problem: The first failure of a connection.
    """

    statuses: Counter[int] = field(default_factory=Counter[int])
    wrong: int = 0
    lost: int = 0
    first_problem: str = ""

    def note(self, problem: str) -> None:
        """Keep the first problem, for whoever looks for its cause."""
        self.first_problem = self.first_problem or problem


def measure_clients(options: Options, clients: int, seconds: float) -> list[Row]:
    """Load a server for some time; return the rows.

    Raises:
        RuntimeError: The server ended, or did not end as it should.
    """
    _raise_file_limit()
    shape = shape_named(SHAPE)
    with tempfile.TemporaryDirectory() as folder, _server(shape, Path(folder)) as (server, port):
        models = ["base", *(f"adapter-{number}" for number in range(_ADAPTERS))]
        requests = asyncio.run(known_requests(port, models, shape.vocabulary))
        tally, resident, took = asyncio.run(
            load_with_clients(port, requests, clients, seconds, lambda: _resident_bytes_of(server))
        )
    early = [value for at, value in resident if _WARMUP_SHARE <= at / seconds < 0.4]
    late = [value for at, value in resident if at / seconds >= 0.85]
    growth = 100 * (median(late) / median(early) - 1)
    print(
        f"  {dict(tally.statuses)}, {tally.wrong} swapped, {tally.lost} lost "
        f"{tally.first_problem}, resident {median(early):,.0f} to {median(late):,.0f} B",
        flush=True,
    )
    common = row_fields("serving", shape, torch.float32, 0.0, _R)
    common |= {"setting": clients_setting(clients), "variant": LORAKIT}
    others = sum(count for status, count in tally.statuses.items() if status not in (200, 429))
    values = {
        (ANSWERS_PER_S, "answers/s"): tally.statuses[200] / took,
        (REFUSED, "%"): 100 * tally.statuses[429] / max(tally.statuses.total(), 1),
        (WRONG, "answers"): tally.wrong + tally.lost + others,
        (GROWTH, "%"): growth,
    }
    return options.keep(
        row(options.origin, [value], measure=measure, unit=unit, **common)
        for (measure, unit), value in values.items()
    )


def _raise_file_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# ---- the server ----


@contextmanager
def _server(shape: Shape, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `lorakit serve` on a small base with some adapters."""
    base, adapters = folder / "base", folder / "adapters"
    _save_all(shape, base, adapters)
    command = [
        *(
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "lorakit",
            "serve",
            str(base),
            "--base-name",
            "base",
        ),
        *("--adapters", str(adapters), "--port", "0", "--measure", "0"),
        *("--max-waiting", str(_MAX_WAITING)),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield process, _port_of(process, folder / "log")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # the log gets what each thread does
            process.wait(_STOP_S)
        finally:
            process.kill()
            process.communicate()
    if process.returncode != 128 + signal.SIGTERM:
        raise RuntimeError(
            f"The server ended with {process.returncode}:\n{(folder / 'log').read_text()}"
        )


def _save_all(shape: Shape, folder: Path, adapters: Path) -> None:
    """Save a base whose likeliest tokens stand out, and adapters of it."""
    from transformers import AutoModelForCausalLM

    save_with_tokenizer(shape, folder)
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.mul_(_LARGER_WEIGHTS)
    base.save_pretrained(folder)
    for number in range(_ADAPTERS):
        model = shared_copy(base)
        add_random_adapter(model, shape, name="saved", r=_R, seed=number)
        lorakit.save_adapter(model, adapters / f"adapter-{number}", "saved")


def _port_of(process: subprocess.Popen[str], log: Path) -> int:
    stdout: Any = process.stdout
    for line in stdout:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found:
            return int(found.group(1))
    raise RuntimeError(f"The server did not start:\n{log.read_text()}")


# ---- the clients ----


async def known_requests(
    port: int, models: Sequence[str], vocabulary: int
) -> list[tuple[bytes, str]]:
    """Return requests with their answers, each asked for while the server is idle."""
    draw = random.Random(0)
    known = []
    connection = await asyncio.open_connection("127.0.0.1", port)
    for number in range(_KNOWN):
        prompt = [draw.randrange(3, vocabulary) for _ in range(draw.choice(_PROMPT_TOKENS))]
        body = {"model": models[number % len(models)], "prompt": prompt, "temperature": 0}
        body |= {"max_tokens": draw.choice(_NEW_TOKENS), "logprobs": 0}
        request = _as_http(body)
        status, answer = await _exchange(connection, request)
        if status != 200:
            raise RuntimeError(f"An idle server answered with {status}: {answer}")
        known.append((request, _tokens_of(answer)))
    connection[1].close()
    return known


def _as_http(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(content)}"
    return f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + content


async def _exchange(connection: Any, request: bytes) -> tuple[int, str]:
    """Send a request over a connection; return the status and the body."""
    reader, writer = connection
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = re.search(r"content-length: (\d+)", head)
    body = await reader.readexactly(int(length.group(1)) if length else 0)
    return int(head.split(" ", 2)[1]), body.decode()


def _tokens_of(answer: str) -> str:
    """Return what makes an answer of a known request the right one."""
    found = json.loads(answer)
    choice = found["choices"][0]
    return json.dumps([found["model"], choice["logprobs"]["tokens"], choice["finish_reason"]])


async def load_with_clients(
    port: int,
    requests: Sequence[tuple[bytes, str]],
    clients: int,
    seconds: float,
    resident_bytes: Callable[[], int],
) -> tuple[Tally, list[tuple[float, int]], float]:
    """Let clients ask until the time is over.

    Returns: What they saw, the server's memory as (seconds, bytes), and the seconds that it took.
    """
    tally, resident = Tally(), []
    began = time.perf_counter()
    ends = began + seconds
    tasks = [
        asyncio.create_task(_client(port, requests, number, ends, tally))
        for number in range(clients)
    ]
    while time.perf_counter() < ends:
        resident.append((time.perf_counter() - began, resident_bytes()))
        await asyncio.sleep(min(1.0, seconds / 40))
    await asyncio.gather(*tasks)
    return tally, resident, time.perf_counter() - began


async def _client(
    port: int, requests: Sequence[tuple[bytes, str]], number: int, ends: float, tally: Tally
) -> None:
    draw = random.Random(number)
    connection, pause_s = None, _FIRST_PAUSE_S
    while time.perf_counter() < ends:
        request, expected = draw.choice(requests)
        try:
            async with asyncio.timeout(_ANSWER_S):
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", port)
                status, answer = await _exchange(connection, request)
        except (OSError, EOFError, TimeoutError) as error:
            tally.lost += 1
            tally.note(f"{type(error).__name__}: {error}")
            connection = None
            continue
        tally.statuses[status] += 1
        if status == 429:  # as OpenAI's client does: pauses that double, with some chance in them
            await asyncio.sleep(min(pause_s * (0.5 + draw.random()), ends - time.perf_counter()))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            continue
        pause_s = _FIRST_PAUSE_S
        if status != 200:
            tally.note(f"{status}: {answer}")
        elif _tokens_of(answer) != expected:
            tally.wrong += 1
            tally.note(f"expected {expected}, got {answer}")
    if connection is not None:
        connection[1].close()


def _resident_bytes_of(server: subprocess.Popen[str]) -> int:
    if server.poll() is not None:
        raise RuntimeError(f"The server ended with {server.returncode}.")
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
    found: Any = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024
