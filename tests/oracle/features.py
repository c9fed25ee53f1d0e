"""The features of the table: arguments of LoraConfig besides the targets, for both tools."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oracle.models import Kind


@dataclass(frozen=True)
class Feature:
    """One feature of adapters.

    Attributes:
        title: As docs/adapters.md names it.
        options: Arguments of LoraConfig for a kind of model; None where they make no sense.
        starts_itself: Whether what PEFT's file says depends on the base it was started on, so
            that both tools start on their own.
    """

    title: str
    options: Callable[[Kind], dict[str, Any] | None]
    starts_itself: bool = False


def _always(**options: Any) -> Callable[[Kind], dict[str, Any]]:
    return lambda kind: options


def _biases(which: str) -> Callable[[Kind], dict[str, Any] | None]:
    return lambda kind: {"bias": which} if kind.has_biases else None


def _patterns(kind: Kind) -> dict[str, Any] | None:
    targets = kind.options.get("target_modules") or kind.options.get("target_parameters")
    first = targets[0]
    return {"rank_pattern": {first: 2}, "alpha_pattern": {first: 7}}


def _tokens(kind: Kind) -> dict[str, Any] | None:
    return {"trainable_token_indices": {kind.embedding: [3, 5, 8]}} if kind.embedding else None


FEATURES = {
    "plain": Feature("LoRA", _always()),
    "rslora": Feature("rsLoRA", _always(use_rslora=True)),
    "dropout": Feature("dropout (evaluated)", _always(lora_dropout=0.3)),
    "patterns": Feature("rank and alpha patterns", _patterns),
    "lora_only": Feature("biases of adapted layers", _biases("lora_only")),
    "all_biases": Feature("all biases", _biases("all")),
    "head": Feature("a module trained in full", lambda kind: {"modules_to_save": [kind.head]}),
    "dora": Feature("DoRA", _always(use_dora=True)),
    "orthogonal": Feature("orthogonal start", _always(init_lora_weights="orthogonal")),
    "pissa": Feature("PiSSA", _always(init_lora_weights="pissa"), starts_itself=True),
    "olora": Feature("OLoRA", _always(init_lora_weights="olora"), starts_itself=True),
    "tokens": Feature("rows of new tokens", _tokens),
}
