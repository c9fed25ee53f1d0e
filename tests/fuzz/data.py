"""Small data files of every kind: written in many valid ways, or damaged.

A valid file must give exactly what was written: every example, every label as it is spelt, every
text token for token. A damaged one must give examples that can be trained on, or one sentence.
"""

import csv
import io
import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from tests.fuzz.frame import FindingError, attempt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from lorakit.config import NOT_COUNTED
from lorakit.data import load_splits
from lorakit.errors import LorakitError
from lorakit.recipes.recipe import Recipe
from lorakit.training.tasks import Loaded, task_for

_SPECIAL = ["<pad>", "<s>", "</s>"]
_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<s>{{ m.role }}:"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
_PIECES = ["a", "Bc", " ", ",", ";", "\t", "|", '"', "'", "\n", "\r\n", "\u2028", "é", "日本", "🙂"]
_PIECES += ["NA", "null", "1", "\\", "#", "{", "[", "\ufeff", "\x0b", "\x1c", "<b>", "\u202e"]
_LABELS = ["01", "1", "007", "1e3", "true", "True", "NA", "null", "nan", "spam", "Spam", "é", "🙂"]
_LABELS += ["2024-01-02", "99999999999999999999", "-1", "a,b", "a;b", 'a"b', "x y", "0.5"]
_ODD = [None, True, 0, -1, 0.5, 10**40, float("nan"), "", " ", "text", [], [1], ["a"], {}]
_ODD += [{"a": None}, [[]], [None], [{"role": "user"}], {"from": 1}, "\x1b[31m", "[1]", '{"a": 1}']
_TASKS = {
    "SEQ_CLS": ("text", "label"),
    "SEQ_2_SEQ_LM": ("source", "target"),
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "TOKEN_CLS": ("tokens", "tags"),
    "messages": ("messages",),
}
_FLAT = ("SEQ_CLS", "SEQ_2_SEQ_LM", "text", "prompt_completion", "alpaca")


@dataclass(frozen=True)
class DataCase:
    """A file, and what was written into it."""

    kind: str
    """A task, or a layout of CAUSAL_LM."""
    path: Path
    content: bytes
    examples: tuple[dict[str, Any], ...] | None
    """What must come out; None for a damaged file."""

    def __repr__(self) -> str:
        """Leave out the examples, which the content shows."""
        sound = "damaged" if self.examples is None else "sound"
        return f"{sound} {self.kind} {self.path.name}: {self.content[:1500]!r}"


class DataFuzzer:
    """Data files up to the tokens that a model is trained on."""

    name = "data"
    most_s = 10.0
    most_bytes = 2**30

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        pieces = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            chat_template=_TEMPLATE,
        )

    @cached_property
    def _model(self) -> Any:
        config = DistilBertConfig(
            vocab_size=8, dim=4, hidden_dim=4, n_layers=1, n_heads=1, max_position_embeddings=4096
        )
        return DistilBertModel(config)

    def case(self, rng: random.Random, folder: Path) -> DataCase:
        """Write some examples in one of the ways there are, and damage every second file."""
        kind = rng.choice(list(_TASKS))
        endings = [".jsonl", ".json", ".parquet", *([".csv"] * 3 if kind in _FLAT else [])]
        examples = [_example(kind, rng) for _ in range(rng.randint(4, 9))]
        if kind == "SEQ_CLS":
            labels = rng.sample(_LABELS, 2)
            for number, example in enumerate(examples):
                example["label"] = labels[number % 2]
        damaged = rng.random() < 0.5
        written = [dict(example) for example in examples]
        if damaged and rng.random() < 0.5:
            for _ in range(rng.randint(1, 2)):
                written = _with_odd_value(written, rng)
            ending = rng.choice((".jsonl", ".json"))
            content = _WRITERS[ending](written, rng)
        else:
            ending = rng.choice(endings)
            content = _WRITERS[ending](written, rng)
            content = _damaged(content, rng) if damaged else content
        path = folder / f"rows{ending}"
        path.write_bytes(content)
        return DataCase(kind, path, content, None if damaged else tuple(examples))

    def check(self, case: DataCase) -> None:
        """Read, split and encode the file; compare with what was written."""
        made = attempt(lambda: self._prepared(case))
        if isinstance(made, LorakitError):
            if case.examples is not None:
                raise FindingError(f"a sound file is refused: {made}")
            return
        train, names = made
        if not len(train):
            raise FindingError("no example is left")
        if any(len(labels) == 0 for labels in train["input_ids"]):
            raise FindingError("an example has no token")
        if case.examples is not None:
            previewed = [self._shown(row, case.kind, names) for row in train]
            wanted = [_wanted(example, case.kind) for example in case.examples]
            if previewed != wanted:
                raise FindingError(f"got {previewed}, expected {wanted}")

    def _prepared(self, case: DataCase) -> tuple[Any, tuple[str, ...] | None]:
        kind = case.kind if case.kind in ("SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM") else "CAUSAL_LM"
        data: dict[str, Any] = {"train": str(case.path), "validation_fraction": 0}
        if kind == "SEQ_2_SEQ_LM":
            data["max_target_length"] = 4096
        values = {"model": "m", "task": kind, "data": data, "output": "never-written"}
        recipe = Recipe.check(values, "the case")
        task = task_for(recipe.task)
        splits = load_splits(recipe.data, 1, task.label_column(recipe), task.columns(recipe))
        names = task.labels(splits, recipe)
        loaded = Loaded(recipe, self._tokenizer, names, self._model)
        encoded = task.encode(splits, loaded)
        return encoded.train, names

    def _shown(self, row: dict[str, Any], kind: str, names: tuple[str, ...] | None) -> Any:
        text = self._tokenizer.decode(row["input_ids"])
        if kind == "SEQ_CLS":
            return text, (names or ())[row["labels"]]
        if kind == "TOKEN_CLS":
            return [(names or ())[label] for label in row["labels"] if label != NOT_COUNTED]
        if kind == "SEQ_2_SEQ_LM":
            return text, self._tokenizer.decode(row["labels"])
        counted = [label for label in row["labels"] if label != NOT_COUNTED]
        return text, self._tokenizer.decode(counted)


def _wanted(example: dict[str, Any], kind: str) -> Any:
    values = list(example.values())
    if kind == "SEQ_CLS":
        return tuple(values)
    if kind == "TOKEN_CLS":
        return example["tags"]
    if kind == "SEQ_2_SEQ_LM":
        return values[0], f"{values[1]}</s>"
    if kind == "text":
        return f"{values[0]}</s>", f"{values[0]}</s>"
    if kind == "prompt_completion":
        return f"{values[0]}{values[1]}</s>", f"{values[1]}</s>"
    talk = example.get("messages") or [
        {"role": "user", "content": values[0]},
        {"role": "assistant", "content": values[1]},
    ]
    turns = [f"<s>{m['role']}:{m['content']}</s>" for m in talk]
    return "".join(turns), f"{talk[-1]['content']}</s>"


def _text(rng: random.Random) -> str:
    return "x" + "".join(rng.choice(_PIECES) for _ in range(rng.randint(0, 6)))


def _example(kind: str, rng: random.Random) -> dict[str, Any]:
    if kind == "TOKEN_CLS":
        tags = [rng.choice(["O", "B-X", "I-X"]) for _ in range(rng.randint(1, 4))]
        return {"tokens": [_text(rng) for _ in tags], "tags": tags}
    if kind == "messages":
        user = {"role": "user", "content": _text(rng)}
        return {"messages": [user, {"role": "assistant", "content": _text(rng)}]}
    return {column: _text(rng) for column in _TASKS[kind]}


def _csv(examples: list[dict[str, Any]], rng: random.Random) -> bytes:
    written = io.StringIO()
    writer = csv.writer(
        written,
        # A file of one column has no delimiter to be seen.
        delimiter=rng.choice(",,;\t|") if len(examples[0]) > 1 else ",",
        quoting=rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
        lineterminator=rng.choice(["\n", "\r\n"]),
    )
    writer.writerow(examples[0])
    writer.writerows(example.values() for example in examples)
    return written.getvalue().encode(rng.choice(["utf-8", "utf-8-sig"]))


def _jsonl(examples: list[dict[str, Any]], rng: random.Random) -> bytes:
    is_ascii, end = rng.random() < 0.5, rng.choice(["\n", "\r\n", "\n\n"])
    return end.join(json.dumps(one, ensure_ascii=is_ascii) for one in examples).encode()


def _json(examples: list[dict[str, Any]], rng: random.Random) -> bytes:
    indent = rng.choice([None, 2])
    columns = {name: [example.get(name) for example in examples] for name in examples[0]}
    by_index = {name: {str(i): v for i, v in enumerate(c)} for name, c in columns.items()}
    document = rng.choice([examples, {"data": examples}, columns, by_index])
    return json.dumps(document, indent=indent, ensure_ascii=rng.random() < 0.5).encode()


def _parquet(examples: list[dict[str, Any]], rng: random.Random) -> bytes:
    written = io.BytesIO()
    compression = rng.choice(["none", "snappy", "zstd"])
    parquet.write_table(pa.Table.from_pylist(examples), written, compression=compression)
    return written.getvalue()


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


def _with_odd_value(examples: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Put a value of any kind somewhere into an example, or take a key away."""
    at = rng.randrange(len(examples))
    example = json.loads(json.dumps(examples[at]))
    name = rng.choice([*example, "tools", "chat_template_kwargs", "odd"])
    value = example.get(name)
    if isinstance(value, list) and value and rng.random() < 0.6:
        inner = rng.randrange(len(value))
        if isinstance(value[inner], dict) and rng.random() < 0.7:
            key = rng.choice([*value[inner], "weight", "tool_calls", "name", "from"])
            value[inner][key] = rng.choice(_ODD)
        else:
            value[inner] = rng.choice(_ODD)
    elif name in example and rng.random() < 0.2:
        del example[name]
    else:
        example[name] = rng.choice(_ODD)
    return [*examples[:at], example, *examples[at + 1 :]]


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Change bytes, lines or the length of a file."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, to = sorted((rng.randrange(len(made) + 1), rng.randrange(len(made) + 1)))
        odd = rng.choice(
            [b"\xff", b"\x00", b'"', b",", b"\n", b"null", b"NaN", b"{", b"]", b"\xed\xa0\x80"]
        )
        how = rng.randrange(6)
        if how == 0:
            made[at:at] = odd
        elif how == 1 and at < len(made):
            made[at] = rng.randrange(256)
        elif how == 2:
            del made[at : min(to, at + 20)]
        elif how == 3:
            made[at:at] = made[at : min(to, at + 40)]
        elif how == 4:
            del made[to:]
        else:
            lines = bytes(made).split(b"\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice([*lines, odd, b""]))
            made = bytearray(b"\n".join(lines))
    return bytes(made)
