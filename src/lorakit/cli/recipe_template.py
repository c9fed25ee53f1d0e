"""The commented recipe `lorakit init` writes, one for each task."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

TaskName = Literal["SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"]

HEAD = """\
# A lorakit recipe: one file holds the whole experiment.
#   lorakit train {path} --dry-run          shows what it would do
#   lorakit train {path}                    trains
#   lorakit train {path} lora.r=16          changes a key for one run
#   lorakit tune {path}                     searches rank, modules, learning rate (docs/tuning.md)
# A key after "# " is not set; its value there is an example. An unknown key is an error.
"""


@dataclass(frozen=True)
class Key:
    """One line of the recipe.

    Attributes:
        name: The key.
        value: Its value; an example where the line is commented out.
        comment: What it means, with unit and default.
        is_set: False comments the line out.
    """

    name: str
    value: Any
    comment: str
    is_set: bool = True


def unset(name: str, value: Any, comment: str) -> Key:
    """Return a line that is commented out."""
    return Key(name, value, comment, is_set=False)


@dataclass(frozen=True)
class TaskTemplate:
    """What differs between the tasks.

    Attributes:
        model: A small base model that fits, by hub id.
        train: An example name for the training data.
        rows: How the examples of that data look, for a comment.
        data: The keys under `data:` that name columns.
        max_length: `data.max_length`, in tokens.
        training: The keys under `training:` that differ.
    """

    model: str
    train: str
    rows: str
    data: tuple[Key, ...]
    max_length: int
    training: tuple[Key, ...]


def batch(size: int, accumulated: int = 1) -> tuple[Key, ...]:
    """Return the keys that make the batch."""
    return (
        Key("per_device_train_batch_size", size, "rows per device and forward pass (default 8)"),
        Key("gradient_accumulation_steps", accumulated, "batches per optimizer step (default 1)"),
    )


TASKS: dict[TaskName, TaskTemplate] = {
    "SEQ_CLS": TaskTemplate(
        model="distilbert/distilbert-base-uncased",
        train="train.csv",
        rows='text,label  then rows such as  "A fine film.",positive',
        data=(
            Key("text", "text", "column of the texts"),
            unset("text_pair", "second_text", "column of second texts, for pairs (default none)"),
            Key("label", "label", "column of the labels: names or class numbers"),
        ),
        max_length=256,
        training=batch(16),
    ),
    "TOKEN_CLS": TaskTemplate(
        model="distilbert/distilbert-base-cased",
        train="train.jsonl",
        rows='{"tokens": ["Ada", "Lovelace", "wrote"], "tags": ["B-PER", "I-PER", "O"]}',
        data=(
            Key("tokens", "tokens", "column of the lists of words"),
            Key(
                "tags", "tags", "column of the lists of tags, one per word, such as B-PER, I-PER, O"
            ),
        ),
        max_length=256,
        training=batch(16),
    ),
    "CAUSAL_LM": TaskTemplate(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        train="train.jsonl",
        rows='{"prompt": "Capital of France?", "completion": " Paris"}  or text, messages, alpaca',
        data=(
            Key(
                "format",
                "auto",
                "auto (from the columns), text, prompt_completion, messages or alpaca",
            ),
            unset("text", "text", "column of plain texts (default text)"),
            unset("prompt", "prompt", "column of prompts, texts or messages (default prompt)"),
            unset(
                "completion", "completion", "column of completions, likewise (default completion)"
            ),
            unset("messages", "messages", "column of chats (default messages)"),
        ),
        max_length=1024,
        training=(
            *batch(4, 4),
            Key("gradient_checkpointing", False, "less memory for more time (default false)"),
            unset(
                "packing", True, "fill each row to max_length with several texts (default false)"
            ),
        ),
    ),
    "SEQ_2_SEQ_LM": TaskTemplate(
        model="google-t5/t5-small",
        train="train.csv",
        rows='source,target  then rows such as  "A long article ...","Its summary."',
        data=(
            Key("source", "source", "column of the input texts"),
            Key("target", "target", "column of the texts to write"),
            Key("source_prefix", "summarize: ", "put before every input (default nothing)"),
            Key("max_target_length", 128, "tokens; longer targets are cut (default 128)"),
        ),
        max_length=512,
        training=batch(8),
    ),
}


def recipe_text(
    task: TaskName,
    path: str,
    run: str,
    model: str | None = None,
    train: str | None = None,
    positions: int | None = None,
    data_keys: Mapping[str, Any] | None = None,
    about: str | None = None,
) -> str:
    """Write a recipe.

    Args:
        task: What to train for.
        path: The recipe's own path, for the comments on top.
        run: The run directory.
        model: Base model; a small one that fits when None.
        train: Training data; an example name when None.
        positions: Most tokens that the model can take, where that is known.
        data_keys: What to set under `data:`; an example or the default where it says nothing.
        about: What is known of the data, for a comment of one line.

    Returns:
        YAML which is a valid recipe, also with every commented key set.
    """
    template = TASKS[task]
    max_length = min(template.max_length, positions or template.max_length)
    given = dict(data_keys or {})
    top = (
        Key("model", model or template.model, "hub id or directory of the base model"),
        Key("task", task, "SEQ_CLS, TOKEN_CLS, CAUSAL_LM or SEQ_2_SEQ_LM"),
        Key("output", run, "run directory; may not hold a run yet"),
        unset(
            "dtype", "bfloat16", "of the base weights: auto (as saved), float32, bfloat16, float16"
        ),
        unset("revision", "main", "branch, tag or commit of a hub model (default main)"),
        unset("trust_remote_code", False, "run code that comes with the model (default false)"),
        unset(
            "quantization", {"bits": 4}, "keep the base in 4 bits (NF4) or 8 (default: as saved)"
        ),
        unset("float32_small_parameters", True, "keep norms and biases in float32 (default false)"),
    )
    data = (
        Key("train", train or template.train, "csv, json, jsonl, parquet, saved dataset or hub id"),
        unset("validation", "validation.csv", "likewise (default: validation_fraction of train)"),
        Key("validation_fraction", 0.1, "share of train held out when there is no validation"),
        *template.data,
        Key("max_length", max_length, "tokens; longer examples are cut (default: <= 1024)"),
        unset("new_tokens", ["<call>"], "strings that become tokens, whose rows are trained too"),
        unset("max_train_rows", 1000, "use only so many examples (default all)"),
        unset("max_validation_rows", 200, "likewise"),
        unset("subset", "en", "configuration of a hub dataset (default none)"),
        unset("train_split", "train", "split of a hub dataset to train on (default train)"),
        unset(
            "validation_split", "validation", "split to validate on (default: validation if any)"
        ),
    )
    data = [
        replace(key, value=given[key.name], is_set=True) if key.name in given else key
        for key in data
    ]
    lora = (
        Key("r", 8, "rank of the update (default 8)"),
        Key("lora_alpha", 16, "the update is scaled by lora_alpha / r (default 8)"),
        Key("lora_dropout", 0.05, "probability, on the low-rank path only (default 0)"),
        Key("target_modules", "all-linear", "names, a regex, or all-linear (default)"),
        unset("exclude_modules", ["lm_head"], "names or a regex to leave out (default none)"),
        unset("layers_to_transform", [0, 1], "indices of layers, from 0 (default all)"),
        unset("rank_pattern", {"q_proj": 16}, "rank by module name, instead of r (default none)"),
        unset(
            "enable_lora", {"c_attn": [True, False, True]}, "parts of a fused matrix (default all)"
        ),
        unset("bias", "none", "biases to train: none (default), all or lora_only"),
        unset("modules_to_save", ["norm"], "modules trained in full; new heads are without naming"),
        unset("trainable_token_indices", [5, 7], "known tokens whose embeddings are trained too"),
        unset(
            "init_lora_weights",
            "pissa",
            "where it starts: true, gaussian, orthogonal, pissa, pissa_niter_4, olora, loftq, eva, "
            "lora_ga",
        ),
        unset("use_rslora", True, "scale by lora_alpha / sqrt(r) (default false)"),
    )
    training = (
        Key("learning_rate", 5e-4, "peak, per optimizer step (default 2e-4)"),
        Key("num_train_epochs", 3, "passes over the training examples (default 3)"),
        *template.training,
        Key("lr_scheduler_type", "linear", "linear (default), cosine, constant, ..."),
        Key("warmup_steps", 0.05, "steps, or a share of all steps below 1 (default 0)"),
        Key("seed", 42, "of heads, factors and the order of examples (default 42)"),
        unset("bf16", True, "compute in bfloat16 (default false)"),
        unset("optim", "adamw_8bit", "adamw_torch_fused (default), memory_mapped_adamw, ..."),
        unset("weight_decay", 0.01, "of the trained parameters (default 0)"),
        unset(
            "lora_plus_ratio", 16, "LoRA+: learning rate of lora_B over that of lora_A (default 1)"
        ),
        unset("max_steps", 500, "optimizer steps, instead of num_train_epochs"),
        unset("eval_strategy", "steps", "epoch (default), steps or no"),
        unset("save_strategy", "steps", "likewise; best checkpoint at the end needs both alike"),
        unset("early_stopping_patience", 2, "evaluations without a better one (default: never)"),
    )
    lines = [HEAD.format(path=path)]
    lines += section(top)
    lines += ["", "data:", f"  # {about or template.rows}", *section(data, "  ")]
    lines += ["", "lora:", *section(lora, "  ")]
    lines += ["", "training:  # any field of transformers' training arguments"]
    lines += section(training, "  ")
    return "\n".join(lines) + "\n"


def section(keys: Iterable[Key], indent: str = "") -> Iterator[str]:
    """Yield the lines of one section, their comments in one column."""
    keys = list(keys)
    settings = [f"{'' if key.is_set else '# '}{key.name}: {scalar(key.value)}" for key in keys]
    width = max(map(len, settings))
    for key, setting in zip(keys, settings, strict=True):
        yield f"{indent}{setting:<{width}}  # {key.comment}"


def scalar(value: Any) -> str:
    """Return a value as YAML on one line, quoted where it has to be.

    >>> [scalar(value) for value in ("a: b", True, 0.0005, ["q"], "all-linear")]
    ["'a: b'", 'true', '0.0005', '[q]', 'all-linear']
    """
    dumped = yaml.safe_dump([value], default_flow_style=True, width=float("inf"))
    return dumped.strip()[1:-1]
