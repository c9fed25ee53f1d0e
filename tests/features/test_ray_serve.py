"""The server on Ray Serve: two replicas on a tiny base, of which one is killed."""

import json
import shutil
import threading
import time
from pathlib import Path

import httpx2
import pytest

from fixtures.serving import ADMIN_KEY, Served
from lorakit.errors import ClusterError
from lorakit.serving import serve
from lorakit.serving.engine import EngineSettings
from lorakit.serving.service import ServiceSettings

pytestmark = [
    pytest.mark.slow(reason="starts Ray and two processes that load a model"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of pydantic
]

MODELS = ("base", "german", "french")
PROMPT = "The sky is"
LONG = 500
"""Tokens of an answer that takes a while."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, adapter_folder):
    """A folder with two adapters; a third lies outside it, below the same root."""
    root = tmp_path_factory.mktemp("root")
    for name in ("german", "french"):
        shutil.copytree(adapter_folder / name, root / "adapters" / name)
    shutil.copytree(adapter_folder / "german", root / "more" / "extra")
    return root / "adapters"


@pytest.fixture(scope="module")
def options(tiny_llama_dir, folder):
    """What is served with and without Ray: the base with a longer context."""
    base = folder.parent / "base"
    shutil.copytree(tiny_llama_dir, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return {
        "models": base,
        "folder": folder,
        "root": folder.parent,
        "base_name": "base",
        "port": 0,
    }


@pytest.fixture(scope="module")
def expected(options):
    """The greedy answer of each model without Ray."""
    with serve(**options) as server:
        plain = Served(server, options["folder"], options["folder"] / "none")
        answers = {name: completion(plain, name) for name in MODELS}
    assert len(set(answers.values())) == len(MODELS)
    return answers


@pytest.fixture(scope="module")
def on_ray(machines, options, expected):
    """A server with two replicas."""
    settings = ServiceSettings(engine=EngineSettings(max_batch_rows=4))
    ray = {"replicas": 2, "cpus_per_replica": 1}
    root = options["root"]
    relative = {
        name: value.relative_to(root) if isinstance(value, Path) else value
        for name, value in options.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        server = serve(**relative, admin_keys=[ADMIN_KEY], settings=settings, **ray)
    with server:
        yield Served(server, options["folder"], options["folder"] / "none")


def body(model, **fields):
    return {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | fields


def completion(served, model, **fields):
    return served.post("/v1/completions", body(model, **fields))["choices"][0]["text"]


def replica_actors():
    import ray
    from ray.util import list_named_actors

    names = [each["name"] for each in list_named_actors(all_namespaces=True)]
    return {name: ray.get_actor(name, namespace="serve") for name in names if "#Replica#" in name}


def figures(served):
    """Return the value of each of the merged figures by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(served.get("/metrics"))
        for sample in family.samples
    }


def total(served, name, **labels):
    return sum(
        value
        for (found, of_sample), value in figures(served).items()
        if found == name and labels.items() <= dict(of_sample).items()
    )


def test_each_model_answers_as_without_ray(on_ray, expected):
    for name in MODELS:
        assert completion(on_ray, name) == expected[name]
    assert {each["id"] for each in on_ray.get("/v1/models")["data"]} == set(MODELS)
    assert on_ray.get("/health")["status"] == "ok"
    assert {known.name for known, _ in on_ray.server.overview().adapters} == {"german", "french"}


def test_an_adapter_stays_on_its_replica_until_a_batch_is_full(on_ray, expected):
    for _ in range(5):
        completion(on_ray, "french")
    assert total(on_ray, "lorakit_adapter_events_total", adapter="french", event="loads") == 1
    at_once(on_ray, ["french"] * 12, lambda got: got == expected["french"])
    assert total(on_ray, "lorakit_adapter_events_total", adapter="french", event="loads") == 2


def test_a_stream_has_the_same_text(on_ray, expected):
    with on_ray.client() as client:
        chunks = list(client.completions.create(**body("german"), stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected["german"]
    assert len(chunks) > 2


def test_errors_are_those_of_the_application(on_ray):
    assert "The nearest is german" in on_ray.post("/v1/completions", body("germen"), 404)["message"]
    assert on_ray.post("/v1/completions", b"{", 400)["message"]
    assert "No such path" in on_ray.post("/nowhere", {}, 404)["message"]
    denied = on_ray.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"}, 403)
    assert "administrator" in denied["message"]
    large = b" " * (5 * 1024**2)
    assert on_ray.post("/v1/completions", large, 413)["code"] == "body_too_large"


def test_an_adapter_loaded_at_run_time_is_on_every_replica(on_ray, expected):
    load = {"lora_name": "extra", "lora_path": "more/extra"}
    assert "added" in on_ray.post("/v1/load_lora_adapter", load, key=ADMIN_KEY)
    at_once(on_ray, ["extra"] * 24, lambda got: got == expected["german"])
    unload = {"lora_name": "extra"}
    assert "removed" in on_ray.post("/v1/unload_lora_adapter", unload, key=ADMIN_KEY)
    for _ in range(8):
        on_ray.post("/v1/completions", body("extra"), 404)


def at_once(served, models, is_right, **fields):
    """Send a request for each of the models at the same time; check the answers."""
    wrong = []

    def ask(model):
        got = completion(served, model, **fields)
        if not is_right(got):
            wrong.append((model, got))

    threads = [threading.Thread(target=ask, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_client_that_leaves_stops_its_request(on_ray):
    before = total(on_ray, "lorakit_requests_total", status="499")
    long = body("german", max_tokens=LONG, stream=True, ignore_eos=True)
    with (
        on_ray.http() as http,
        http.stream("POST", "/v1/completions", content=json.dumps(long).encode()) as response,
    ):
        next(response.iter_lines())
    until = time.monotonic() + 10
    while total(on_ray, "lorakit_requests_total", status="499") == before:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert total(on_ray, "lorakit_running") == 0


def test_a_second_server_is_refused(on_ray, options):
    with pytest.raises(ClusterError, match="got the application 'lorakit' on Ray Serve"):
        serve(**options, replicas=1, cpus_per_replica=1)


def test_too_many_replicas_are_refused(machines, options):
    with pytest.raises(ClusterError, match="Too few resources for --replicas"):
        serve(**options, replicas=3, cpus_per_replica=1)


class Streams:
    """Long answers of the base that have begun; `ends` has the last line of each in the end."""

    def __init__(self, served, count):
        self.ends = []
        self._served = served
        self._have_begun = threading.Barrier(count + 1)
        self._threads = [threading.Thread(target=self._read) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        self._have_begun.wait(60)

    def _read(self):
        fields = body("base", max_tokens=LONG, stream=True, ignore_eos=True)
        content = json.dumps(fields).encode()
        with (
            self._served.http() as http,
            http.stream("POST", "/v1/completions", content=content) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            self._have_begun.wait(60)
            self.ends.append([line for line in lines if line][-1])

    def join(self):
        for thread in self._threads:
            thread.join(60)
        assert len(self.ends) == len(self._threads)


def test_the_service_goes_on_when_a_replica_is_killed(on_ray, expected):
    import ray

    before = replica_actors()
    assert len(before) == 2
    answered, failed, is_over = [], [], threading.Event()

    def ask(model):
        with on_ray.http() as http:
            while not is_over.is_set():
                response = http.post("/v1/completions", content=json.dumps(body(model)).encode())
                if response.status_code == 200:
                    answered.append((model, response.json()["choices"][0]["text"]))
                else:
                    failed.append((response.status_code, response.json()["error"]["code"]))

    streams = Streams(on_ray, 4)  # two on each replica
    threads = [threading.Thread(target=ask, args=(name,)) for name in MODELS]
    for thread in threads:
        thread.start()
    ray.kill(next(iter(before.values())))
    killed_at, until = len(answered), time.monotonic() + 60
    while len(answered) < killed_at + 20 and time.monotonic() < until:
        time.sleep(0.05)
    is_over.set()
    streams.join()
    for thread in threads:
        thread.join(60)
    assert len(answered) >= killed_at + 20
    assert all(text == expected[model] for model, text in answered)
    assert set(failed) <= {(503, "replica_ended")}
    lost = [end for end in streams.ends if end != "data: [DONE]"]
    assert 0 < len(lost) < 4
    assert all("The replica that answered has ended" in end for end in lost)


def test_the_end_finishes_what_runs(on_ray):
    streams = Streams(on_ray, 3)
    on_ray.server.stop()
    streams.join()
    assert streams.ends == ["data: [DONE]"] * 3
    on_ray.server.wait()
    with on_ray.http() as http, pytest.raises(httpx2.TransportError):
        http.get("/health")
