"""Which modules of a model are its heads: the output layer, and the heads of its task."""

from torch import nn

from lorakit.config import TaskType
from lorakit.injection.state import base_modules

# Used for models that do not say where their backbone is.
_KNOWN_HEADS = ("score", "classifier", "pre_classifier", "classification_head", "logits_proj")
_KNOWN_OUTPUTS = ("lm_head", "embed_out", "output_layer")

TASKS_WITH_HEADS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)


def task_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that stand beside the backbone and have parameters.

    A transformers model names its backbone in `base_model_prefix`; what stands beside it
    (`score`, `classifier`, `pre_classifier`, `classification_head`, …) is the task's head. For
    other models the usual names of heads are looked for.
    """
    prefix = getattr(model, "base_model_prefix", "")
    beside_backbone = bool(prefix) and isinstance(getattr(model, prefix, None), nn.Module)
    return tuple(
        name
        for name, child in model.named_children()
        if any(True for _ in child.parameters())
        and (name != prefix if beside_backbone else name in _KNOWN_HEADS)
    )


def output_layers(model: nn.Module) -> set[int]:
    """Return the ids of the modules "all-linear" leaves out: the output layer and task heads."""
    outputs = {id(module) for name, module in model.named_children() if name in _KNOWN_OUTPUTS}
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    if isinstance(output, nn.Module):
        outputs.add(id(output))
    for name in task_heads(model):
        outputs.update(id(module) for _, module in base_modules(model.get_submodule(name)))
    return outputs
