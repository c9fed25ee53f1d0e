"""Memory of models that fit no machine here, planned on fake tensors: C3's file, C5, C11, C12.

A recipe whose model is a folder with a configuration alone is planned without weights or rows.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from benchmarks.claims import shapes
from benchmarks.claims.records import claim_row
from benchmarks.options import Options
from benchmarks.results import Row
from lorakit.recipes.recipe import Recipe

QLORA_RANK = 64
LENGTH = 512
QLORA_SHARE = 0.002
"""Share of the base's weights; "LoRA weights equivalent to the commonly used 0.2%"."""
TWO_BYTES, TWELVE_BYTES = 2, 12
_NF4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
_PARTS = {
    "gradients": "gradient_bytes",
    "optimizer": "optimizer_bytes",
    "kept for backward": "saved_activation_bytes",
    "peak": "peak_bytes",
}


@dataclass(frozen=True)
class Planned:
    """One plan, and the names of its rows.

    Attributes:
        claim: Such as "C11".
        name: What the figures begin with.
        shape: The model.
        config: Its configuration.
        method: "adapter" or "full".
        r: Rank of the adapter.
        targets: Its modules.
        is_quantized: Whether the base is in NF4 with double quantization.
        is_checkpointed: Whether activations are computed again in backward.
        length: Tokens in the one sequence.
    """

    claim: str
    name: str
    shape: str
    config: PretrainedConfig
    method: str
    r: int
    targets: Any = "all-linear"
    is_quantized: bool = False
    is_checkpointed: bool = False
    length: int = LENGTH

    @property
    def setting(self) -> str:
        """Base, length, checkpointing and adapter, as the tables name them."""
        kept = "NF4, double quantization" if self.is_quantized else "bfloat16"
        parts = [kept, f"1 × {self.length}"]
        if self.is_checkpointed:
            parts.append("activation checkpointing")
        if self.method == "adapter":
            targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
            parts.append(f"r={self.r} on {targets}")
        return ", ".join(parts)


def plans(options: Options) -> list[Planned]:
    """Return what is planned."""
    gpt3 = shapes.gpt3(layers=2, width=384) if options.quick else shapes.gpt3()
    llama = {
        name: shapes.llama(*((64, 128, 2, 2) if options.quick else sizes))
        for name, sizes in shapes.LLAMAS.items()
    }
    q_v = shapes.GPT3_Q_V
    made = [
        Planned("C5", "full", "GPT-3", gpt3, "full", 4, is_checkpointed=True),
        Planned("C5", "LoRA", "GPT-3", gpt3, "adapter", 4, q_v, is_checkpointed=True),
        _qlora("C11", "QLoRA", "LLaMA 7B", llama["LLaMA 7B"], is_checkpointed=False),
        _qlora("C11", "QLoRA, checkpointing", "LLaMA 7B", llama["LLaMA 7B"]),
        _qlora("C12", "QLoRA, 13B", "LLaMA 13B", llama["LLaMA 13B"]),
        _qlora("C12", "QLoRA, 33B", "LLaMA 33B", llama["LLaMA 33B"]),
        _qlora("C12", "QLoRA", "LLaMA 65B", llama["LLaMA 65B"]),
    ]
    whole = Planned(
        "C12", "full, 16 bits", "LLaMA 65B", llama["LLaMA 65B"], "full", 1, is_checkpointed=True
    )
    return [*made, whole]


def _qlora(
    claim: str, name: str, shape: str, config: PretrainedConfig, is_checkpointed: bool = True
) -> Planned:
    return Planned(
        claim,
        name,
        shape,
        config,
        "adapter",
        QLORA_RANK,
        is_quantized=True,
        is_checkpointed=is_checkpointed,
    )


def plan_all(options: Options) -> list[Row]:
    """Plan all and append the rows; takes minutes, and no more memory than one layer."""
    rows: list[Row] = []
    for one in plans(options):
        print(f"{one.claim}: {one.shape}, {one.name}, {one.setting}", flush=True)
        rows += options.keep(_planned_rows(options, one, planned(one)))
    return rows


def planned(one: Planned) -> Any:
    """Return the memory plan."""
    from lorakit.planning import plan

    with shapes.config_folder(one.config) as folder:
        return plan(recipe_of(one, str(folder)), method=one.method)


def recipe_of(one: Planned, model: str) -> Recipe:
    """Return the recipe that is planned: one sequence at a time, plain AdamW."""
    values: dict[str, Any] = {
        "model": model,
        "task": "CAUSAL_LM",
        "dtype": "bfloat16",
        "data": {"train": "your/data", "max_length": one.length},
        "lora": {
            "r": one.r,
            "lora_alpha": 16,
            "target_modules": one.targets if isinstance(one.targets, str) else list(one.targets),
        },
        "training": {
            "per_device_train_batch_size": 1,
            "optim": "adamw_torch",
            "activation_checkpointing": one.is_checkpointed,
        },
        "output": f"{model}/run",
    }
    if one.is_quantized:
        values["quantization"] = _NF4
    return Recipe.check(values, "the claim's recipe")


def _planned_rows(options: Options, one: Planned, found: Any) -> list[Row]:
    common: dict[str, Any] = {"shape": one.shape, "setting": one.setting, "r": one.r}

    def figure(what: str, value: float, unit: str = "B", claim: str = one.claim) -> Row:
        return claim_row(options, claim, what, value, unit, **common)

    weights = {
        "weights of the base": found.base_weights_bytes,
        "weights of the adapter": found.adapter_bytes,
    }
    if one.method == "full":
        weights = {"weights": sum(weights.values())}
    parts = weights | {part: getattr(found, name) for part, name in _PARTS.items()}
    rows = [figure(f"{one.name}, {part}", value) for part, value in parts.items()]
    trained = "the model" if one.method == "full" else f"{one.name}, trained"
    rows.append(figure(trained, found.trainable, "parameters"))
    if (one.claim, one.method) == ("C12", "full"):
        rows.append(figure("twelve bytes a parameter", TWELVE_BYTES * found.total))
    if (one.claim, one.name) == ("C5", "LoRA"):
        rows.append(figure("adapter file, qv, r=4", found.adapter_file_bytes, claim="C3"))
    if (one.claim, one.name) == ("C11", "QLoRA"):
        base = found.total - found.trainable
        share = QLORA_SHARE * base
        rows += [
            figure("LoRA weights at 0.2 % in 16 bits", TWO_BYTES * share),
            figure("rank on every linear layer at 0.2 %", share * one.r / found.trainable, ""),
            figure(f"LoRA weights at r={one.r} in 16 bits", TWO_BYTES * found.trainable),
        ]
    return rows
