import pytest

from lorakit.config import TaskType
from lorakit.errors import ConfigError
from lorakit.recipes.evaluation_section import EvaluationConfig

FEW = EvaluationConfig(examples_in_prompt=3)


def test_examples_in_the_prompt_need_a_prompt():
    FEW.require_possible(TaskType.CAUSAL_LM, {"packing": True, "eval_packing": False})
    EvaluationConfig().require_possible(TaskType.SEQ_CLS, {"packing": True})
    with pytest.raises(ConfigError, match="examples_in_prompt=3 for SEQ_CLS, expected CAUSAL_LM"):
        FEW.require_possible(TaskType.SEQ_CLS, {})
    for packed in ({"packing": True}, {"eval_packing": True}):
        with pytest.raises(ConfigError, match=r"Set training\.eval_packing=false"):
            FEW.require_possible(TaskType.CAUSAL_LM, packed)
