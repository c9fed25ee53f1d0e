"""Who is asked beside whom, and what each reads."""

import pytest

from lorakit.config import TaskType
from lorakit.serving.clients.candidates import Candidate, Question


@pytest.mark.parametrize(
    "form, prompt",
    [
        ("text", "hello"),
        ("conversation", [{"role": "user", "content": "hello"}]),
    ],
)
def test_each_form_reads_the_question_in_its_way(form, prompt):
    candidate = Candidate("german", False, TaskType.CAUSAL_LM, form)
    assert Question("hello").prompt_for(candidate) == prompt


def test_an_instruction_is_read_as_in_training():
    candidate = Candidate("german", False, TaskType.CAUSAL_LM, "instruction")
    assert "### Instruction:\nhello" in Question("hello").prompt_for(candidate)


def test_a_system_message_comes_first_unless_it_is_blank():
    asked = Question("hello", system="Be brief.")
    assert [each["role"] for each in asked.messages] == ["system", "user"]
    assert len(Question("hello", system="  ").messages) == 1
