"""The heads of a model, and the modules that an adapter trains in full and saves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lorakit.config import LoraConfig, TaskType
from lorakit.errors import first_few
from lorakit.injection.selection.attention import OUTPUT_OBSTACLE, is_output
from lorakit.injection.selection.targets import (
    is_inside,
    layer_index,
    name_matches,
    no_match_message,
)
from lorakit.injection.state import base_modules
from lorakit.layers.adapted import READ_FLAG
from lorakit.layers.bitsandbytes_storage import bits_of

# For models that do not say where their backbone is; the second only for classes that are known to
# have a head.
_KNOWN_HEADS = (
    *("score", "classifier", "pre_classifier", "classification_head", "logits_proj"),
    *("qa_outputs", "ctc_head"),
)
_LIKELY_HEADS = (*_KNOWN_HEADS, "head", "fc")
_KNOWN_OUTPUTS = ("lm_head", "embed_out", "output_layer")

TASKS_WITH_HEADS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)

_TASK_BY_CLASS = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
}
# transformers classes whose head belongs to the labels of one data set. PEFT has no task type for
# most of them.
_HAS_TASK_HEAD = re.compile(
    r"For\w*?(Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction|Regression"
    r"|CTC|XVector)"
)


def task_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the modules beside the backbone that have parameters.

    A transformers model names its backbone in `base_model_prefix`; the modules beside it
    (`score`, `classifier`, `pre_classifier`, `classification_head`, …) are the task's head. In
    other models the usual names of heads are looked up. A list of modules, which is never called,
    is replaced by its entries.
    """
    prefix = getattr(model, "base_model_prefix", "")
    beside_backbone = bool(prefix) and isinstance(getattr(model, prefix, None), nn.Module)
    names = _LIKELY_HEADS if _class_with_head(model) else _KNOWN_HEADS
    heads = [
        (name, child)
        for name, child in model.named_children()
        if (name != prefix if beside_backbone else name in names)
    ]
    return tuple(path for name, child in heads for path in _callable_parts(name, child))


def _callable_parts(path: str, module: nn.Module) -> list[str]:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        parts = module.named_children()
        return [inner for name, part in parts for inner in _callable_parts(f"{path}.{name}", part)]
    return [path] if any(True for _ in module.parameters()) else []


def output_layers(model: nn.Module) -> set[int]:
    """Return the ids of the modules that "all-linear" skips: the output layer and task heads."""
    outputs = {id(module) for name, module in model.named_children() if name in _KNOWN_OUTPUTS}
    output = _output_embeddings(model)
    if output is not None:
        outputs.add(id(output))
    for name in task_heads(model):
        outputs.update(id(module) for _, module in base_modules(model.get_submodule(name)))
    return outputs


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    return output if isinstance(output, nn.Module) else None


@dataclass(frozen=True)
class HeadChoice:
    """The modules that an adapter trains in full by default.

    Attributes:
        task_type: The configuration's task, or the one inferred from the model's class.
        paths: Paths of the modules.
        excluded: Heads that are not trained in full, as `exclude_modules` names them or
            `target_modules` names modules in them.
        notes: The decisions, in sentences for the table.
    """

    task_type: TaskType | None
    paths: tuple[str, ...]
    excluded: tuple[str, ...]
    notes: tuple[str, ...]


def choose_heads(
    model: nn.Module, modules: Mapping[str, nn.Module], config: LoraConfig
) -> HeadChoice:
    """Choose the modules that a fresh adapter has to train in full and save.

    They are the head of the task, given by the configuration or else by the model's class, and the
    modules that transformers has initialized at random because the checkpoint lacks them: loading
    the base again would give other values. Output layers of language models and embeddings are not
    among them; name these in `modules_to_save`.
    """
    path_of = {id(module): path for path, module in modules.items()}
    heads = list(dict.fromkeys(path_of[id(model.get_submodule(p))] for p in task_heads(model)))
    kind = None if config.task_type else _class_with_head(model)
    task = config.task_type or _task_of(kind)
    has_task_head = kind is not None or task in TASKS_WITH_HEADS
    unread = _unread_modules(model, modules)
    found = [*heads] if has_task_head else [p for p in unread if is_inside(p, heads)]
    if has_task_head:
        beside_layers = [path for path in unread if layer_index(path) is None]
        found += [path for path in beside_layers if not is_inside(path, heads)]
    excluded = [p for p in found if name_matches(config.exclude_modules or (), p)]
    adapted = [] if kind is None else [p for p in found if _is_targeted(p, config)]
    chosen = [path for path in found if path not in (*excluded, *adapted)]
    if kind is not None and any(path in heads for path in (*excluded, *adapted)):
        task = None  # PEFT expects the whole head in a file that names the task
    missing = [path for path in chosen if path in unread and not (has_task_head and path in heads)]
    unsaved = [p for p in unread if not is_inside(p, (*chosen, *config.modules_to_save))]
    notes = [] if kind is None else [_inference_note(kind, task, [p for p in chosen if p in heads])]
    for paths, text in (
        (missing, "Not in the checkpoint, so trained in full and saved: "),
        (excluded, "Not trained, as exclude_modules names it: "),
        (adapted, "Not trained in full, as target_modules names what is in it: "),
        (unsaved, "Not in the checkpoint, and in no file of the adapter: "),
    ):
        notes += [f"{text}{first_few(paths)}"] if paths else []
    return HeadChoice(task, tuple(chosen), (*excluded, *adapted), tuple(notes))


def trained_modules(
    model: nn.Module,
    modules: dict[str, nn.Module],
    config: LoraConfig,
    choice: HeadChoice,
    problems: list[str],
) -> dict[str, nn.Module]:
    """Return the modules to train in full: those named, and the heads of the task."""
    heads: dict[str, nn.Module] = {}
    for name in config.modules_to_save:
        found = {p: m for p, m in modules.items() if p and name_matches([name], p)}
        if not found:
            problems.append(no_match_message("modules_to_save", [name], [p for p in modules if p]))
        heads.update(found)
        problems += [
            f"modules_to_save={[name]!r} names {path}, a {type(module).__name__} without its own "
            "forward. Name the modules inside it."
            for path, module in found.items()
            if isinstance(module, (nn.ModuleList, nn.ModuleDict))
        ]
        problems += [
            f"modules_to_save={[name]!r} names {path}: {OUTPUT_OBSTACLE.partition('. ')[0]}. Name "
            "the attention itself."
            for path, module in found.items()
            if is_output(module)
        ]
    heads.update({path: modules[path] for path in choice.paths})
    if config.task_type in TASKS_WITH_HEADS and not heads and not choice.excluded:
        problems.append(
            f"task_type={config.task_type} trains the model's head, but "
            f"{type(model).__name__} has none beside its backbone. Load the model with a "
            "head, or name the head in modules_to_save."
        )
    problems += quantized_head_problems(heads)
    outer = tuple(f"{path}." for path in heads)
    return {path: module for path, module in heads.items() if not path.startswith(outer)}


def quantized_head_problems(heads: Mapping[str, nn.Module]) -> list[str]:
    """Return a problem for each quantized module that would be trained in full."""
    problems = []
    for path, module in heads.items():
        inside = [f"{path}.{p}" if p else path for p, m in base_modules(module) if bits_of(m)]
        if inside:
            problems.append(
                f"Cannot train {path} in full: {inside[0]} is quantized, expected a dense weight. "
                f"Load the base with {path} among the layers that stay in 16 bits "
                "(quantization.skip_modules)."
            )
    return problems


def _inference_note(kind: str, task: TaskType | None, heads: Sequence[str]) -> str:
    what = f"task_type={task} inferred" if task else "A task's head inferred"
    if heads:
        return f"{what} from {kind}; trains head {', '.join(heads)}"
    return f"{what} from {kind}, but no head to train; name it in modules_to_save if there is one"


def _task_of(kind: str | None) -> TaskType | None:
    """Return the task type of a class with a head; None if PEFT has none."""
    return next((task for end, task in _TASK_BY_CLASS.items() if end in (kind or "")), None)


def _class_with_head(model: nn.Module) -> str | None:
    """Return the name of the transformers class that gives a model a task head."""
    if not isinstance(getattr(model, "base_model_prefix", None), str):
        return None
    names = [kind.__name__ for kind in type(model).__mro__]
    return next((name for name in names if _HAS_TASK_HEAD.search(name)), None)


def _unread_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the modules that no checkpoint contains: transformers has initialized them.

    A model that was not loaded by `from_pretrained`, or was copied, has none. Only modules with no
    other weights count, without embeddings and output layers, whose weights are replaced when a
    vocabulary is resized.
    """
    if not any(getattr(parameter, READ_FLAG, False) for parameter in model.parameters()):
        return []
    output = _output_embeddings(model)
    return [path for path, m in modules.items() if path and m is not output and _is_unread(m)]


def _is_unread(module: nn.Module) -> bool:
    parameters, *inner = [
        [parameter for parameter in part._parameters.values() if parameter is not None]
        for _, part in base_modules(module)
    ]
    return (
        bool(parameters)
        and not any(inner)
        and not any(getattr(p, READ_FLAG, False) or p.is_meta for p in parameters)
        and not isinstance(module, nn.Embedding)
        and bits_of(module) is None
    )


def _is_targeted(head: str, config: LoraConfig) -> bool:
    """Return whether `target_modules` names a head, or a module in it, by its whole path."""
    targets = () if isinstance(config.target_modules, str) else config.target_modules or ()
    return any(is_inside(name, [head]) for name in targets)
