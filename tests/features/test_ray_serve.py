"""The server on Ray Serve: two replicas on a tiny base, of which one is killed."""

import json
import shutil
import threading
import time

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
    """What is served with and without Ray."""
    return {
        "models": tiny_llama_dir,
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
    with serve(**options, admin_keys=[ADMIN_KEY], settings=settings, **ray) as server:
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
    at_once(on_ray, ["french"] * 16, lambda got: got.startswith(expected["french"]), max_tokens=64)
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
    long = body("german", max_tokens=100, stream=True, ignore_eos=True)
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

    ends = []

    def stream(has_begun):
        content = json.dumps(body("base", max_tokens=100, stream=True, ignore_eos=True)).encode()
        with (
            on_ray.http() as http,
            http.stream("POST", "/v1/completions", content=content) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            has_begun.wait(60)
            ends.append([line for line in lines if line][-1])

    have_begun = threading.Barrier(5)
    threads = [threading.Thread(target=ask, args=(name,)) for name in MODELS]
    threads += [threading.Thread(target=stream, args=(have_begun,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    have_begun.wait(60)
    ray.kill(next(iter(before.values())))
    killed_at = len(answered)
    time.sleep(2)
    is_over.set()
    for thread in threads:
        thread.join(60)
    assert len(answered) > killed_at + 10
    assert all(text == expected[model] for model, text in answered)
    assert set(failed) <= {(503, "replica_ended")}
    lost = [end for end in ends if end != "data: [DONE]"]
    assert 0 < len(lost) < len(ends) == 4
    assert all("The replica that answered has ended" in end for end in lost)


def test_the_end_finishes_what_runs_and_refuses_the_rest(on_ray):
    statuses = []

    def ask():
        statuses.append(len(completion(on_ray, "base", max_tokens=100, ignore_eos=True)) > 0)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while total(on_ray, "lorakit_running") + total(on_ray, "lorakit_waiting") < 3:
        time.sleep(0.01)
    on_ray.server.stop()
    for thread in threads:
        thread.join(60)
    assert statuses == [True] * 3
    on_ray.server.wait()
    with on_ray.http() as http, pytest.raises(httpx2.TransportError):
        http.get("/health")
