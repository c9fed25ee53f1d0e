"""What is trained, counted on models without weights: C1, C2, C3, C4 and C15."""

from collections.abc import Sequence

import torch
from torch import nn

import lorakit
from benchmarks.claims import shapes
from benchmarks.claims.records import claim_row
from benchmarks.options import Options
from benchmarks.results import Row
from lorakit import LoraConfig, TaskType
from lorakit.injection import ParameterCount, count_parameters

LAYERS = ((64, 512, 8), (500, 400, 4), (512, 512, 1))
"""out, in, r"""
GPT3_RANKS = {shapes.GPT3_Q_V: (1, 2, 4, 8, 64), shapes.GPT3_ATTENTION: (1, 2, 4, 64)}
TWO_BYTES = 2
LETTERS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}


def count(options: Options) -> list[Row]:
    """Count all; takes seconds, as nothing is allocated."""
    rows = [*_layers(options), *_distilbert(options), *_encoders(options), *_gpt3(options)]
    return options.keep(rows)


def _layers(options: Options) -> list[Row]:
    rows = []
    for out, width, r in LAYERS:
        model = nn.Sequential(nn.Linear(width, out, bias=False))
        counted = counted_with(model, ("0",), r)
        name = f"{out} × {width}"
        rows += [
            claim_row(options, "C1", f"{name}, dense", counted.base, "parameters", shape=name),
            claim_row(
                options, "C1", f"{name}, r={r}", counted.trainable, "parameters", shape=name, r=r
            ),
        ]
    return rows


def _distilbert(options: Options) -> list[Row]:
    model = shapes.skeleton(shapes.distilbert(), TaskType.SEQ_CLS)
    counted = counted_with(model, ("q_lin", "v_lin"), 8, task_type=TaskType.SEQ_CLS)
    figures = {
        "trained": counted.trainable,
        "in the factors": counted.lora,
        "in the head": counted.replaced,
        "all, as PEFT counts": counted.total,
    }
    common = {"shape": "DistilBERT", "setting": "q_lin, v_lin"}
    rows = [claim_row(options, "C2", k, v, "parameters", **common) for k, v in figures.items()]
    share = 100 * counted.trainable_share
    return [*rows, claim_row(options, "C2", "trained of all", share, "%", **common)]


def _encoders(options: Options) -> list[Row]:
    rows = []
    for name, config, targets, r in (
        ("RoBERTa base", shapes.roberta(12, 768, 12), ("query", "value"), 8),
        ("RoBERTa large", shapes.roberta(24, 1024, 16), ("query", "value"), 8),
        ("DeBERTa XXL", shapes.deberta_xxl(), ("query_proj", "value_proj"), 16),
    ):
        model = shapes.skeleton(config, TaskType.SEQ_CLS)
        counted = counted_with(model, targets, r, task_type=TaskType.SEQ_CLS)
        what = f"{name}, r={r} on q and v"
        common = {"shape": name, "setting": ", ".join(targets), "r": r}
        rows.append(claim_row(options, "C4", what, counted.lora, "parameters", **common))
    return rows


def _gpt3(options: Options) -> list[Row]:
    config = shapes.gpt3(layers=2, width=384) if options.quick else shapes.gpt3()
    model = shapes.skeleton(config, TaskType.CAUSAL_LM)
    rows = []
    for targets, ranks in GPT3_RANKS.items():
        letters = "".join(LETTERS[target] for target in targets)
        for r in ranks:
            counted = counted_with(model, targets, r)
            common = {"shape": "GPT-3", "setting": ", ".join(targets), "r": r}
            what = f"{letters}, r={r}"
            rows.append(claim_row(options, "C3", what, counted.lora, "parameters", **common))
            if what == "qv, r=4":
                sizes = {"model": TWO_BYTES * counted.base, "adapter": TWO_BYTES * counted.lora}
                for kept, size in sizes.items():
                    name = f"{kept} in 16 bits, {what}"
                    rows.append(claim_row(options, "C3", name, size, "B", **common))
                times = sizes["model"] / sizes["adapter"]
                rows.append(claim_row(options, "C3", "model / adapter", times, "×", **common))
            if what in ("qv, r=1", "qv, r=4"):
                share = 100 * counted.trainable_share_of_base
                rows.append(claim_row(options, "C15", what, share, "%", **common))
    return rows


def counted_with(
    model: nn.Module, targets: Sequence[str], r: int, task_type: TaskType | None = None
) -> ParameterCount:
    """Count a model with an adapter, and take the adapter out again."""
    config = LoraConfig(r=r, lora_alpha=r, target_modules=targets, task_type=task_type)
    with torch.device("meta"):
        lorakit.add_adapter(model, config)
    counted = count_parameters(model)
    lorakit.unload(model)
    return counted
