"""The fields read from the libraries' source are those of the classes themselves."""

import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import get_args, get_type_hints

import pytest

from lorakit.config import TaskType
from lorakit.recipes import argument_fields
from lorakit.recipes.argument_fields import NotInYaml, argument_hints, optimizer_names


def _shape(hint):
    """Return a type with its enumerations by their values, so that two readings can be compared."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {member.value for member in hint}
    parts = get_args(hint)
    if parts:
        shapes = [_shape(part) for part in parts]
        unlike = [shape for n, shape in enumerate(shapes) if shape not in shapes[:n]]
        return getattr(hint, "__name__", "union"), unlike
    is_builtin = getattr(hint, "__module__", "builtins") in ("builtins", "typing")
    return hint if is_builtin else NotInYaml


@pytest.mark.parametrize("task_type", list(TaskType))
def test_names_and_types_are_those_of_the_class(task_type):
    from lorakit.training.tasks import task_for

    real = get_type_hints(task_for(task_type).arguments_class())
    real = {name: hint for name, hint in real.items() if not name.startswith("_")}
    read = {k: v for k, v in argument_hints(task_type).items() if not k.startswith("_")}
    assert {name: _shape(hint) for name, hint in read.items()} == {
        name: _shape(hint) for name, hint in real.items()
    }


def test_the_optimizers_are_those_of_transformers():
    from transformers.training_args import OptimizerNames

    assert optimizer_names() == tuple(name.value for name in OptimizerNames)


def test_a_recipe_is_checked_before_anything_heavy_is_imported(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: m\ntask: CAUSAL_LM\ndata: {train: a.csv, stream: true}\noutput: runs/a\n"
        "training: {learning_rte: 1, eval_strategy: epcoh}\n"
    )
    code = (
        "import sys\n"
        "from lorakit.errors import ConfigError\n"
        "from lorakit.recipes.recipe import Recipe\n"
        "try:\n"
        "    Recipe.load(sys.argv[1])\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])\n"
    )
    run = [sys.executable, "-c", code, str(recipe)]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "[]"
    assert "unknown key 'data.stream'" in lines[1]
    assert "eval_strategy: got 'epcoh'; input should be 'no', 'steps' or 'epoch'" in lines[2]
    assert "unknown key 'training.learning_rte'. Did you mean 'learning_rate'?" in lines[3]


def test_threads_may_read_them_at_once():
    def let_others_run(*_):
        time.sleep(1e-4)

    read = argument_fields._parse_source.__wrapped__
    gc.callbacks.append(let_others_run)
    try:
        with ThreadPoolExecutor(3) as threads:
            trees = list(threads.map(lambda _: read("transformers", "training_args.py"), range(9)))
    finally:
        gc.callbacks.remove(let_others_run)
    assert len(trees) == 9 and gc.isenabled()
