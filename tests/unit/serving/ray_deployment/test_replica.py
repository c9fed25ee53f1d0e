"""One replica, in this process: it follows changes, tells what it has, and says when it is ill."""

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest

from fixtures.serving import require_threads_ended
from lorakit.errors import AdapterFileError, EngineStoppedError
from lorakit.serving.http.context import ContextSettings
from lorakit.serving.http.relay import CarriedRequest
from lorakit.serving.sources import find_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic


@pytest.fixture
def settings(tmp_path, tiny_llama_dir, adapter_folder):
    shutil.copytree(adapter_folder / "german", tmp_path / "adapters" / "german")
    shutil.copytree(adapter_folder / "french", tmp_path / "more" / "extra")
    return lambda **named: ContextSettings(
        find_source(
            [tiny_llama_dir],
            adapters=named,
            folder=tmp_path / "adapters",
            root=tmp_path,
            base_name="base",
        )
    )


@pytest.fixture
def replica(settings):
    from lorakit.serving.ray_deployment.replica import Replica

    made = Replica(settings(), Path.cwd())
    yield made
    made._context.close()


def ask(replica, model, changes, then=None):
    """Return the status and the JSON of a completion."""
    body = json.dumps({"model": model, "prompt": "sky", "max_tokens": 1}).encode()
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [],
    }

    async def collect():
        answers = replica.answer(CarriedRequest(scope, body), changes, then)
        return [message async for messages in answers for message in messages]

    start, *rest = asyncio.run(collect())
    return start["status"], json.loads(b"".join(each.get("body", b"") for each in rest))


def test_it_follows_changes_that_others_made(replica):
    from lorakit.serving.ray_deployment.entrance import Changes

    none = Changes()
    assert ask(replica, "extra", none)[0] == 404
    loaded = none.with_change("extra", "more/extra")
    assert ask(replica, "extra", loaded)[0] == 200
    assert replica.changes() == loaded
    assert replica.record_routing_stats() == {"adapters": ["extra"]}
    unloaded = loaded.with_change("extra", None).with_change("german", None)
    assert ask(replica, "extra", unloaded)[0] == 404
    assert ask(replica, "german", unloaded)[0] == 404
    assert ask(replica, "extra", unloaded.with_change("extra", "adapters/german"))[0] == 200
    assert ask(replica, "base", loaded)[0] == 200  # an old request changes nothing
    assert replica.changes().version == 4


def test_a_change_that_it_cannot_follow_refuses_that_adapter_alone(replica):
    from lorakit.serving.ray_deployment.entrance import Changes

    changes = Changes().with_change("gone", "more/gone").with_change("extra", "more/extra")
    status, found = ask(replica, "gone", changes)
    assert status == 404 and "more/gone" in found["error"]["message"]
    assert ask(replica, "extra", changes)[0] == 200
    assert ask(replica, "gone", changes.with_change("gone", "more/extra"))[0] == 200


def test_a_change_that_it_made_itself_is_not_followed_again(replica):
    from lorakit.serving.ray_deployment.entrance import Changes

    then = Changes().with_change("extra", "more/extra")
    assert ask(replica, "base", Changes(), then)[0] == 200
    assert replica.changes() == then
    failed = then.with_change("other", "more/extra")
    assert ask(replica, "nobody", then, failed)[0] == 404
    assert replica.changes() == then


def test_it_tells_what_it_serves(replica):
    overview = replica.overview()
    assert overview.base_name == "base" and overview.has_chat_template
    assert [known.name for known, _ in overview.adapters] == ["german"]


def test_a_failed_engine_makes_it_unhealthy(replica, monkeypatch):
    replica.check_health()
    (model,) = replica._context.service.models
    monkeypatch.setattr(model.engine, "failure", ValueError("broken"))
    with pytest.raises(EngineStoppedError, match=r"The engine has failed: broken\."):
        replica.check_health()


def test_a_named_adapter_that_cannot_be_served_ends_it_at_once(settings, tmp_path):
    from lorakit.serving.ray_deployment.replica import Replica

    extra = tmp_path / "more" / "extra"
    made = settings(extra=extra)
    (extra / "adapter_model.safetensors").write_bytes(b"{}")
    before = threading.active_count()
    with pytest.raises(AdapterFileError):
        Replica(made, Path.cwd())
    require_threads_ended(before)
