from lorakit.config import TaskType
from lorakit.serving.speed import Speed, measure_speeds


def test_each_adapter_is_compared_with_the_base(served):
    for model in served.server.service.models:
        names = {TaskType.CAUSAL_LM: ["german"], TaskType.TOKEN_CLS: ["tags"]}
        found = measure_speeds(model, names.get(model.kind.task, []))
        for name, speed in found.items():
            assert speed.tokens_per_s > 0 and speed.base_tokens_per_s > 0
            assert model.store.find(name).leases == 0
    assert Speed(80, 100).share == 0.8
