"""Each task type has its task."""

import pytest

from lorakit.config import TaskType
from lorakit.training.tasks import task_for


@pytest.mark.parametrize("task_type", list(TaskType))
def test_each_task_type_has_its_task(task_type):
    assert task_for(task_type).task_type is task_type
    assert type(task_for(task_type.value)) is type(task_for(task_type))


def test_an_unknown_task_type_is_an_error():
    with pytest.raises(ValueError, match="'SEQCLS' is not a valid TaskType"):
        task_for("SEQCLS")
