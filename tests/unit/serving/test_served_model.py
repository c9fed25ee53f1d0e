import asyncio
import dataclasses

import pytest

from lorakit.config import TaskType
from lorakit.errors import QueueFullError
from lorakit.serving.refusals import RequestError


def model_for(served, task):
    return next(model for model in served.server.service.models if model.kind.task is task)


def test_an_adapter_is_held_inside_the_block(served):
    model = model_for(served, TaskType.CAUSAL_LM)

    async def use():
        async with model.using("german") as (shared, text):
            assert shared.carried_name.startswith("german")
            assert model.store.find("german").leases == 1
            async with model.using("german") as (_, again):
                assert again is text
        async with model.using(None) as (shared, text):
            assert shared.carried_name is None and text.tokenizer is model.base.tokenizer

    asyncio.run(use())
    assert model.store.find("german").leases == 0


def test_a_model_for_classes_continues_nothing(served):
    model = model_for(served, TaskType.TOKEN_CLS)
    with pytest.raises(RequestError, match="A model for TOKEN_CLS with 3 labels does not"):
        model.answers(None)
    assert model.engine is None and model.limit == 128


def test_tokens_outside_the_vocabulary_are_refused(served):
    model = model_for(served, TaskType.CAUSAL_LM)
    model.check_ids([0, 5], "prompt")
    model.check_ids([], "logit_bias")
    for ids, words in (([-1], "got token -1"), ([10**6], "got token 1000000")):
        with pytest.raises(RequestError, match=words):
            model.check_ids(ids, "prompt")
    with pytest.raises(RequestError, match="got no token"):
        model.check_ids([], "prompt", may_be_empty=False)


def test_a_full_queue_refuses_before_anything_is_prepared(served, monkeypatch):
    model = model_for(served, TaskType.CAUSAL_LM)
    monkeypatch.setattr(
        model.engine, "settings", dataclasses.replace(model.engine.settings, max_waiting=0)
    )

    async def use(**how):
        async with model.using("german", **how) as (shared, _):
            return shared.carried_name

    assert asyncio.run(use()).startswith("german")  # reading tokens needs no place
    monkeypatch.setattr(model.store, "wait_for_lease", lambda name: pytest.fail("was prepared"))
    with pytest.raises(QueueFullError, match="got 0 requests in the queue"):
        asyncio.run(use(to_generate=True))
