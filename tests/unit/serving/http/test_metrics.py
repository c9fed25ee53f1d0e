from types import SimpleNamespace

from lorakit.serving.http.metrics import Metrics


def lines(metrics):
    return [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]


def test_requests_are_counted_by_model_path_and_status():
    metrics = Metrics()
    metrics.count("german", "/v1/completions", 200, 0.3, 5, 7)
    metrics.count(None, "/v1/completions", 404, 0.01, 0, 0)
    found = lines(metrics)
    assert 'lorakit_tokens_total{direction="output",model="german"} 7.0' in found
    path = 'path="/v1/completions"'
    assert f'lorakit_requests_total{{model="unknown",{path},status="404"}} 1.0' in found
    assert f"lorakit_request_seconds_count{{{path}}} 2.0" in found


def test_an_engine_reports_its_times():
    metrics = Metrics()
    hooks = metrics.hooks
    hooks.first_token(0.2)
    hooks.next_token(0.01)
    hooks.step(3, 0.01)
    found = lines(metrics)
    assert "lorakit_first_token_seconds_sum 0.2" in found
    assert 'lorakit_step_rows_bucket{le="4.0"} 1.0' in found


def test_a_service_without_an_engine_reports_its_adapters():
    counts = {"mood": SimpleNamespace(loads=2, evictions=1, refusals=0)}
    store = SimpleNamespace(bytes_in_memory=77, counts=lambda: counts)
    model = SimpleNamespace(
        kind="SEQ_CLS", store=store, engine=None, batches=SimpleNamespace(waiting=4)
    )
    metrics = Metrics()
    metrics.watch(SimpleNamespace(models=[model]))
    found = lines(metrics)
    assert 'lorakit_adapter_bytes{task="SEQ_CLS"} 77.0' in found
    assert 'lorakit_waiting{task="SEQ_CLS"} 4.0' in found
    assert 'lorakit_adapter_events_total{adapter="mood",event="evictions"} 1.0' in found
