import asyncio
import json
import pickle
import shutil

import pytest
import torch

from fixtures.serving import ADMIN_KEY
from lorakit.config import TaskType
from lorakit.errors import LorakitError
from lorakit.serving import serve
from lorakit.serving.base_models import ModelKind
from lorakit.serving.refusals import RequestError
from lorakit.serving.service import ServiceSettings
from lorakit.serving.store import StoreSettings


def find(service, name, *tasks):
    return asyncio.run(service.find(name, list(tasks) or list(TaskType), "be used"))


def test_a_name_leads_to_the_model_of_its_kind(served):
    service = served.server.service
    assert find(service, "mood").model.kind == ModelKind(TaskType.SEQ_CLS, 3)
    assert find(service, "pairs").model.kind == ModelKind(TaskType.SEQ_CLS, 2)
    base = find(service, "base", TaskType.CAUSAL_LM)
    assert base.adapter is None and base.model.kind.task is TaskType.CAUSAL_LM
    names = {known.name: str(kind) for known, kind in service.adapters()}
    assert names == {
        "french": "CAUSAL_LM",
        "german": "CAUSAL_LM",
        "mood": "SEQ_CLS with 3 labels",
        "pairs": "SEQ_CLS with 2 labels",
        "tags": "TOKEN_CLS with 3 labels",
    }


def test_what_is_served_can_be_sent_to_other_processes(served):
    service = served.server.service
    served.post("/v1/completions", {"model": "german", "prompt": "sky", "max_tokens": 1})
    assert "german" in service.in_memory()
    overview = pickle.loads(pickle.dumps(served.server.overview()))
    assert overview.base_name == "base" and overview.has_chat_template
    assert [known.name for known, _ in overview.adapters] == [n.name for n, _ in service.adapters()]
    assert set(overview.kinds) == {model.kind for model in service.models}


def test_a_base_without_a_head_does_not_classify(served):
    with pytest.raises(RequestError, match="The base 'base' alone cannot be used"):
        find(served.server.service, "base", TaskType.SEQ_CLS)


def test_all_tasks_share_the_weights_of_the_base(served):
    bodies = {
        model.base.model.base_model.layers[0].mlp.up_proj.weight.data_ptr()
        for model in served.server.service.models
    }
    assert len(bodies) == 1


def test_an_adapter_of_a_new_kind_is_served_when_it_appears(served):
    service = served.server.service
    served.post("/v1/unload_lora_adapter", {"lora_name": "pairs"}, key=ADMIN_KEY)
    named = {"lora_name": "extra", "lora_path": "german"}
    served.post("/v1/load_lora_adapter", named, key=ADMIN_KEY)
    shutil.copytree(served.folder / "tags", served.folder / "more")
    path = served.folder / "more"
    import safetensors.torch

    tensors = safetensors.torch.load_file(path / "adapter_model.safetensors")
    tensors = {
        key: value[:2].contiguous() if ".score." in f".{key}" else value
        for key, value in tensors.items()
    }
    safetensors.torch.save_file(tensors, path / "adapter_model.safetensors")
    settings = {"task_type": "TOKEN_CLS", "labels": ["O", "X"]}
    (path / "lorakit.json").write_text(json.dumps(settings))
    made = served.post("/v1/classify", {"model": "more", "input": "a film"})
    assert {word["label"] for word in made["data"][0]["words"]} <= {"O", "X"}
    assert ModelKind(TaskType.TOKEN_CLS, 2) in {model.kind for model in service.models}
    names = {"extra", "french", "german", "mood", "more", "tags"}  # also for the new model
    for model in service.models:
        model.store.scan()
        assert {known.name for known in model.store.describe_all()} == names


def test_an_adapter_that_cannot_be_served_says_why_and_disturbs_no_other(served):
    path = served.folder / "broken"
    shutil.copytree(served.folder / "german", path)
    (path / "adapter_model.safetensors").write_bytes(b"12")
    error = served.post("/v1/completions", {"model": "broken", "prompt": "a"}, 422)
    assert "broken" in error["message"] and error["code"] == "invalid_adapter"
    shown = served.get("/v1/models/broken")
    assert shown["problem"] in error["message"] or error["message"] in shown["problem"]
    served.post("/v1/completions", {"model": "german", "prompt": "a", "max_tokens": 1})


def test_an_adapter_of_another_base_is_a_422_with_both_shapes(served, tiny_gpt2_dir):
    from transformers import AutoModelForCausalLM

    from tiny_models import llama
    from tiny_models.adapted import save_adapter_of

    save_adapter_of(served.folder / "wide", llama(hidden_size=16), task_type="CAUSAL_LM")
    error = served.post("/v1/completions", {"model": "wide", "prompt": "a"}, 422)
    assert error["code"] == "adapter_of_another_base"
    assert "(2, 32), but the base's layer needs (2, 64)" in error["message"]
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    save_adapter_of(served.folder / "gpt2", gpt2, task_type="CAUSAL_LM")
    assert (
        "gpt2" in served.post("/v1/completions", {"model": "gpt2", "prompt": "a"}, 422)["message"]
    )


def test_a_named_adapter_that_cannot_be_served_is_told_at_the_start(
    adapter_folder, tiny_llama_dir, tmp_path
):
    from tiny_models import llama
    from tiny_models.adapted import save_adapter_of

    save_adapter_of(tmp_path / "wide", llama(hidden_size=16), task_type="CAUSAL_LM")
    with pytest.raises(LorakitError, match="wide"):
        serve(tiny_llama_dir, adapters={"wide": tmp_path / "wide"}, port=0)


def test_a_pinned_adapter_that_does_not_exist_is_told_at_the_start(served, tiny_llama_dir):
    settings = ServiceSettings(store=StoreSettings(pinned=frozenset({"germen"})))
    with pytest.raises(RequestError, match=r"No model 'germen'.*The nearest is german"):
        serve([tiny_llama_dir], folder=served.folder, port=0, settings=settings)


def test_factors_in_16_bits_take_half_the_memory(served, tiny_llama_dir):
    settings = ServiceSettings(store=StoreSettings(factor_dtype=torch.bfloat16))
    exact = served.server.service.find_adapter("german")[0]
    with serve([tiny_llama_dir], folder=served.folder, port=0, settings=settings) as server:
        model, service = server.service.models[0], server.service
        lease = model.store.lease("german").result(timeout=60)
        factors = [p for n, p in model.base.model.named_parameters() if "lora_" in n]
        assert {factor.dtype for factor in factors} == {torch.bfloat16}
        assert 2 * service.find_adapter("german")[0].bytes == exact.bytes
        lease.release()
