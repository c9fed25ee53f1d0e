"""The `evaluation:` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from lorakit.config import StrictConfig, TaskType
from lorakit.errors import ConfigError


class EvaluationConfig(StrictConfig):
    """What is measured at the end of a run, beside the metrics of its evaluations."""

    compare_with_base: bool = True
    """Whether the report says if the adapter is better than the base on the validation examples,
    and what it forgets. It costs one evaluation of the base at the end of the run, or nothing for
    a classifier whose base has no trained head."""

    examples_in_prompt: int = Field(0, ge=0, le=64)
    """Number of training examples that the base is shown before each validation example of
    CAUSAL_LM; 0 compares with the base without examples. As many as fit into the model are
    shown."""

    def require_possible(
        self, task: TaskType, training: Mapping[str, Any], *, has_objective: bool = False
    ) -> None:
        """Refuse examples in the prompt where there is no prompt.

        Args:
            task: The recipe's task.
            training: The recipe's `training:` section.
            has_objective: Whether the recipe has an `objective:` section.

        Raises:
            ConfigError: The task is not CAUSAL_LM, or learns from preferences, or its validation
                examples are packed.
        """
        if not self.examples_in_prompt:
            return
        key = f"evaluation.examples_in_prompt={self.examples_in_prompt}"
        if task is not TaskType.CAUSAL_LM:
            raise ConfigError(
                f"No examples can be put into a prompt: got {key} for {task}, expected CAUSAL_LM. "
                "Leave it out."
            )
        if has_objective:
            raise ConfigError(
                f"No examples can be put into a prompt: got {key} beside `objective`, expected "
                "examples of right answers. Leave it out."
            )
        packs = training.get("eval_packing")
        if training.get("packing") if packs is None else packs:
            raise ConfigError(
                f"No examples can be put into a prompt: got {key} with packed validation examples, "
                "expected one example in a sequence. Set training.eval_packing=false."
            )
