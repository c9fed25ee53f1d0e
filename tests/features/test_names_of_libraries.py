"""The names inside transformers, TRL and accelerate that lorakit replaces or uses.

They are promised by nobody and may change with any version. When this test fails after an upgrade,
read what changed in the library, adapt the code that is named beside it, and only then the list.
"""

import ast
import difflib
import inspect
from functools import cache
from pathlib import Path

from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from transformers import Seq2SeqTrainer, Trainer
from transformers.integrations import TensorBoardCallback
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorakit.data.packing import PackCollator
from lorakit.training.callbacks import RunTensorBoard
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.language_trainer import LanguageTrainer
from lorakit.training.trainers.sequence_trainer import SequenceTrainer

SOURCES = Path(__file__).parents[2] / "src" / "lorakit"
LIST = Path(__file__).with_name("names_of_libraries.txt")
USERS = ("training", "distributed", "planning")
LIBRARIES = ("transformers", "trl", "accelerate")


class AdapterLanguageTrainer(AdapterTrainerMixin, LanguageTrainer):
    """As a run of CAUSAL_LM makes it."""


class AdapterSequenceTrainer(AdapterTrainerMixin, SequenceTrainer):
    """As a run of the other tasks makes it."""


OURS = (AdapterLanguageTrainer, AdapterSequenceTrainer, PackCollator, RunTensorBoard)
THEIRS = (
    Trainer,
    Seq2SeqTrainer,
    SFTTrainer,
    DataCollatorForLanguageModeling,
    TensorBoardCallback,
    Accelerator,
    BatchSamplerShard,
)
REPLACED_ON_INSTANCES = ((Accelerator, "prepare_model"), (Accelerator, "backward"))


def is_of_a_library(kind):
    return kind.__module__.partition(".")[0] in LIBRARIES


def described(owner, name):
    """Return a line that says what a name of a class is: its signature, or that it is data."""
    value = inspect.getattr_static(owner, name, None)
    where = f"{owner.__module__.partition('.')[0]} {owner.__name__}.{name}"
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if not inspect.isfunction(value):
        return f"{where} (data)"
    whole = inspect.signature(value)  # without types, whose texts differ between Python's versions
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in whole.parameters.values()]
    return f"{where}{whole.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


def overridden():
    """Yield a line for every method of a library that a class of ours defines again."""
    for ours in OURS:
        kinds = [kind for kind in ours.__mro__ if kind.__module__.startswith("lorakit")]
        libraries = [kind for kind in ours.__mro__ if is_of_a_library(kind)]
        for name in {name for kind in kinds for name in vars(kind) if not name.startswith("__")}:
            for library in libraries:
                if name in vars(library):
                    yield f"replaced: {described(library, name)}"
                    break


@cache
def private_names_of(kind):
    """Return the private names that a class defines or sets on itself."""
    names = {name for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    for node in ast.walk(ast.parse(inspect.getsource(kind))):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and node.attr.startswith("_")
        ):
            names.add(node.attr)
    return names


def used():
    """Yield a line for every private name of a library that the sources read, set or call."""
    named, defined = set(), set()
    for folder in USERS:
        for path in (SOURCES / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                    named.add(node.attr)
                elif isinstance(node, ast.FunctionDef):
                    defined.add(node.name)
    for kind in THEIRS:
        for name in private_names_of(kind) & (named - defined):
            yield f"used: {described(kind, name)}"
    for kind, name in REPLACED_ON_INSTANCES:
        yield f"replaced on an instance: {described(kind, name)}"


def test_the_names_inside_libraries_that_lorakit_relies_on_are_these():
    found = sorted({*overridden(), *used()})
    listed = LIST.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(listed, found, LIST.name, "installed", lineterm="", n=0))
    assert not changes, "\n".join(
        ["Names that lorakit replaces or uses are not as listed:", *changes]
    )
    assert sum(line.startswith("replaced: ") for line in found) >= 16
