import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest


def test_a_server_that_works_says_so(served):
    assert served.get("/health") == {"status": "ok", "lost_log_lines": 0}
    assert served.get("/ready") == {"status": "ready"}


def test_an_engine_that_failed_is_told(served):
    engine = served.engine
    engine.failure = ValueError("broken")
    try:
        found = served.get("/health", 503)
    finally:
        engine.failure = None
    assert found == {"status": "failed", "failures": ["ValueError: broken"]}


def test_figures_are_in_the_format_of_prometheus(served):
    from prometheus_client.parser import text_string_to_metric_families

    served.post("/v1/completions", {"model": "german", "prompt": "sky", "max_tokens": 2})
    served.post("/v1/completions", {"model": "x" * 50, "prompt": "sky"}, 404)
    families = {
        family.name: family for family in text_string_to_metric_families(served.get("/metrics"))
    }
    requests = {
        (sample.labels["model"], sample.labels["status"]): sample.value
        for sample in families["lorakit_requests"].samples
        if sample.name.endswith("_total") and sample.labels["path"] == "/v1/completions"
    }
    assert requests == {("german", "200"): 1, ("unknown", "404"): 1}
    names = {"first_token_seconds", "next_token_seconds", "step_rows", "kv_bytes", "waiting"}
    assert {f"lorakit_{name}" for name in names} <= families.keys()
    loads = [
        sample.value
        for sample in families["lorakit_adapter_events"].samples
        if sample.labels == {"adapter": "german", "event": "loads"}
    ]
    assert loads == [1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux' device that is full")
def test_a_full_disk_for_the_log_disturbs_nobody_and_is_counted(served_with, tmp_path):
    full = tmp_path / "full.jsonl"
    full.symlink_to("/dev/full")
    served = served_with(access_log=full, log_prompts=True)
    body = {"model": "german", "prompt": "sky", "max_tokens": 6, "temperature": 0}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: served.post("/v1/completions", body), range(24)))
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    until = time.monotonic() + 20
    while served.get("/health")["lost_log_lines"] < len(answers):
        assert time.monotonic() < until
    assert full.is_symlink()
