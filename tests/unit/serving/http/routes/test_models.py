import shutil

from fixtures.serving import ADMIN_KEY


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
