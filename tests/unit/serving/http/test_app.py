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
