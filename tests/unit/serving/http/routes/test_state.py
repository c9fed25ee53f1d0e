import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures.serving import ADMIN_KEY


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


def test_one_model_is_shown_and_another_is_not_found(served):
    assert served.get("/v1/models/base")["tasks"] == ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"]
    assert served.get("/v1/models/tags")["task"] == "TOKEN_CLS"
    error = served.get("/v1/models/tagz", 404)["error"]
    assert error["message"].endswith("The nearest is tags.")


def test_an_adapter_that_appears_in_the_folder_can_be_used_at_once(served):
    shutil.copytree(served.folder / "german", served.folder / "new")
    body = {"prompt": "sky", "temperature": 0}
    made = [served.post("/v1/completions", body | {"model": name}) for name in ("german", "new")]
    assert made[0]["choices"] == made[1]["choices"]
    assert "new" in [model["id"] for model in served.get("/v1/models")["data"]]


def load(served, name, path, status=200):
    body = {"lora_name": name, "lora_path": str(path)}
    return served.post("/v1/load_lora_adapter", body, status, ADMIN_KEY)


def test_an_adapter_is_loaded_used_and_unloaded(served):
    assert load(served, "mine", "mood") == "Success: LoRA adapter 'mine' added successfully."
    found = served.post("/v1/classify", {"model": "mine", "input": "a film"})
    assert found["data"][0]["num_classes"] == 3
    body = {"lora_name": "mine"}
    served.post("/v1/unload_lora_adapter", body, key=ADMIN_KEY)
    error = served.post("/v1/unload_lora_adapter", body, 404, ADMIN_KEY)
    assert error["message"].startswith("No model 'mine'")


def test_what_cannot_be_loaded_says_why(served, tmp_path):
    assert "served. Unload it first" in load(served, "german", "french", 400)["message"]
    assert "served. Unload it first" in load(served, "base", "french", 400)["message"]
    shutil.copytree(served.folder / "german", tmp_path / "outside")
    for path in (tmp_path / "outside", "../outside", "/etc"):
        error = load(served, "other", path, 400)
        assert "below" in error["message"] or "outside" in error["message"], error
    load(served, "other", "gone", 404)


def test_administration_needs_its_key(served):
    body = {"lora_name": "a", "lora_path": "german"}
    assert served.post("/v1/load_lora_adapter", body, 403)["code"] == "admin_key_required"
    assert served.post("/v1/unload_lora_adapter", body, 403)["type"] == "permission_error"
