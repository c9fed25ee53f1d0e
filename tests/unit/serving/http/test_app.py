import gc
import weakref

from starlette.testclient import TestClient

from lorakit.serving.http.app import build_calls


def test_every_path_is_described(served):
    described = served.get("/openapi.json")
    assert described["info"]["title"] == "lorakit serve"
    for path in ("/v1/chat/completions", "/v1/score", "/tokenize", "/v1/load_lora_adapter"):
        post = described["paths"][path]["post"]
        assert post["summary"] and "requestBody" in post
    body = described["paths"]["/v1/completions"]["post"]["requestBody"]
    assert "prompt" in body["content"]["application/json"]["schema"]["properties"]


def test_wrong_paths_and_methods_are_errors_in_the_same_shape(served):
    error = served.post("/v1/chat", {}, 404)
    assert error["message"].startswith("No such path: got /v1/chat, expected one of those")
    with served.http() as http:
        response = http.get("/v1/chat/completions")
    assert response.status_code == 405
    error = response.json()["error"]
    assert error["message"] == "Wrong method for /v1/chat/completions: got GET, expected POST."
    assert error["code"] == "method_not_allowed"


def test_a_body_that_is_no_json_is_refused(served):
    error = served.post("/v1/completions", b"model=german", 400)
    assert error["code"] == "invalid_json"


def test_the_calls_alone_have_no_administration_and_end_with_whoever_holds_them(served):
    context = served.server.context
    calls = build_calls(context)
    with TestClient(calls) as client:
        assert "german" in {each["id"] for each in client.get("/v1/models").json()["data"]}
        assert client.post("/v1/score", json={"model": "x"}).status_code == 400
        for path in ("/metrics", "/openapi.json", "/tokenize", "/v1/load_lora_adapter"):
            error = client.post(path, json={}).json()["error"]
            assert error["message"].startswith(f"No such path: got {path}, expected")
    assert context.service.models[0].engine  # it goes on: others have started it
    is_dropped = weakref.ref(calls)
    del calls, client
    gc.collect()
    assert is_dropped() is None
