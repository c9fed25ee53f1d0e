"""Which modules an adapter trains in full: those that are named, and the heads of the task."""

from collections.abc import Mapping

from torch import nn

from lorakit.config import LoraConfig
from lorakit.injection.selection.attention import OUTPUT_OBSTACLE, is_output
from lorakit.injection.selection.heads import TASKS_WITH_HEADS, HeadChoice
from lorakit.injection.selection.targets import name_matches, no_match_message
from lorakit.injection.state import base_modules
from lorakit.layers.bitsandbytes_storage import bits_of


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
