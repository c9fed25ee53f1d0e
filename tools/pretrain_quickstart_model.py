"""Pre-train the small base model that ships with lorakit's quickstart.

The corpus is the source of Python's standard library, as found beside the running interpreter, so
anyone can repeat the run without a network:

    python tools/pretrain_quickstart_model.py --output src/lorakit/quickstart/base_model

The defaults are the run behind the shipped files: about 11 million tokens, an hour on two CPU
cores. A killed run goes on from its last checkpoint with `--resume`.
"""

import argparse
import csv
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quickstart_corpus import GROUP_SHARES, Corpus, read_corpus
from quickstart_tokenizer import train_tokenizer

log = logging.getLogger("pretrain")
VALIDATION_WINDOW_TOKENS = 256


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the defaults are the real run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work-dir", type=Path, help="checkpoints; default: a temporary folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--steps", type=int, default=1400, help="optimizer steps")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens per step")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096, help="tokens per backward")
    parser.add_argument("--short-window", type=int, default=256, help="window at first, in tokens")
    parser.add_argument("--context", type=int, default=512, help="window at the end, in tokens")
    parser.add_argument("--long-share", type=float, default=0.2, help="share of steps at --context")
    parser.add_argument("--warmup-steps", type=int, default=60)
    parser.add_argument("--decay-share", type=float, default=0.6, help="share of steps decaying")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="hidden matrices")
    parser.add_argument("--adamw-lr", type=float, default=0.003, help="embedding and norms")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--validation-every", type=int, default=100, help="steps")
    parser.add_argument("--validation-tokens", type=int, default=65536)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def build_model(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerFast):
    """Make the untrained model: Llama-shaped, grouped queries, tied embeddings."""
    config = LlamaConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=arguments.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class PackedGroup:
    """One group's documents as an endless stream of tokens, newly shuffled each epoch."""

    def __init__(self, documents: list[list[int]], rng: numpy.random.Generator) -> None:
        """Keep the tokens as arrays; `rng` draws the order of each epoch."""
        self.documents = [numpy.array(document, dtype=numpy.int64) for document in documents]
        self.rng = rng
        self.stream = numpy.empty(0, dtype=numpy.int64)
        self.tokens = sum(len(document) for document in self.documents)

    def take(self, count: int) -> numpy.ndarray:
        """Return the next `count` tokens of the stream."""
        while len(self.stream) < count:
            order = self.rng.permutation(len(self.documents))
            self.stream = numpy.concatenate([self.stream, *(self.documents[i] for i in order)])
        taken, self.stream = self.stream[:count], self.stream[count:]
        return taken


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Tokenize documents, each between its begin and end markers."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [[bos, *encoding.ids, eos] for encoding in encodings]


def window_tokens(step: int, arguments: argparse.Namespace) -> int:
    """Give the window of a step: short (cheap) ones first, the full context at the end."""
    is_long = step >= arguments.steps * (1 - arguments.long_share)
    return arguments.context if is_long else arguments.short_window


def batches(groups: dict[str, PackedGroup], arguments: argparse.Namespace) -> Iterator:
    """Yield one (rows, window) int64 tensor per step; each row comes from one group."""
    rng = numpy.random.default_rng(arguments.seed)
    names = list(GROUP_SHARES)
    for step in range(arguments.steps):
        window = window_tokens(step, arguments)
        chosen = rng.choice(names, arguments.batch_tokens // window, p=list(GROUP_SHARES.values()))
        yield torch.from_numpy(numpy.stack([groups[name].take(window) for name in chosen]))


def learning_rate_factor(step: int, arguments: argparse.Namespace) -> float:
    """Linear warm-up, a plateau, then linear decay to zero."""
    decay_steps = arguments.steps * arguments.decay_share
    return min(1.0, (step + 1) / arguments.warmup_steps, (arguments.steps - step) / decay_steps)


def token_loss(model: torch.nn.Module, windows: torch.Tensor, reduction: str) -> torch.Tensor:
    """Next-token cross-entropy of (rows, window) token ids, in nats; bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    targets = windows[:, 1:].flatten()
    return cross_entropy(logits.flatten(0, 1).float(), targets, reduction=reduction)


@torch.no_grad()
def validation_loss(model: torch.nn.Module, tokens: torch.Tensor, window: int) -> float:
    """Mean loss per token over disjoint windows, in nats."""
    windows = tokens[: len(tokens) // window * window].view(-1, window)
    model.eval()
    total = sum(token_loss(model, part, "sum").item() for part in windows.split(4096 // window))
    model.train()
    return total / (windows.shape[0] * (window - 1))


def make_optimizers(model: LlamaForCausalLM, arguments: argparse.Namespace) -> list:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed_tokens" in name]
    muon = torch.optim.Muon(hidden, lr=arguments.muon_lr, weight_decay=arguments.weight_decay)
    adamw = torch.optim.AdamW(others, lr=arguments.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adamw]


def write_atomically(path: Path, write) -> None:
    """Let `write(temporary_path)` make the file, then put it in its place at once."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)


def train(
    model: LlamaForCausalLM,
    groups: dict[str, PackedGroup],
    validation: torch.Tensor,
    arguments: argparse.Namespace,
) -> dict:
    """Run the optimizer steps and return the history: rows of the curve, steps, seconds."""
    optimizers = make_optimizers(model, arguments)
    checkpoint_path = arguments.work_dir / "checkpoint.pt"
    history: dict = {"curve": [], "step": 0, "wall_s": 0.0}
    if arguments.resume and checkpoint_path.exists():
        state = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        history = state["history"]
        log.info("resumed at step %d", history["step"])
    loss_of = torch.compile(token_loss, dynamic=False) if arguments.compile else token_loss
    started, resumed_step = time.monotonic() - history["wall_s"], history["step"]
    for step, batch in enumerate(batches(groups, arguments)):
        if step < resumed_step:
            continue  # the stream is drawn again, so that a resumed run sees what it would have
        factor = learning_rate_factor(step, arguments)
        parts = batch.split(max(1, arguments.micro_batch_tokens // batch.shape[1]))
        loss = 0.0
        for part in parts:
            part_loss = loss_of(model, part, "mean") * (len(part) / len(batch))
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        history["step"], history["wall_s"] = done, time.monotonic() - started
        if done % 10 == 0:
            log.info("step %d loss %.4f, %.0f s", done, loss, history["wall_s"])
        if done % arguments.validation_every == 0 or done in (1, 25, 50, arguments.steps):
            measured = validation_loss(
                model, validation[: arguments.validation_tokens], VALIDATION_WINDOW_TOKENS
            )
            history["curve"].append([done, done * arguments.batch_tokens, round(measured, 4)])
            log.info("step %d validation loss %.4f", done, measured)
        if done % arguments.checkpoint_every == 0 or done == arguments.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "history": history,
            }
            write_atomically(checkpoint_path, lambda path, state=state: torch.save(state, path))
    return history


def write_curve(path: Path, curve: list[list]) -> None:
    """Write the validation curve as comma-separated values."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["step", "tokens", "validation_loss"])
        rows.writerows(curve)


def save_all(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    curve: list[list],
    record: dict,
    output: Path,
) -> None:
    """Write every file into a sibling folder first, then move each into place."""
    staging = output.with_name(output.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.config.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(staging)
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((staging / "model.safetensors").read_bytes()).hexdigest()
    record["model_sha256"] = digest
    record["model_bytes"] = (staging / "model.safetensors").stat().st_size
    (staging / "PRETRAINING.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    write_curve(staging / "validation_loss.csv", curve)
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.iterdir()):
        path.chmod(0o644)
        os.replace(path, output / path.name)
    staging.rmdir()


def corpus_record(corpus: Corpus, groups: dict[str, PackedGroup], validation_tokens: int) -> dict:
    """Describe the corpus by its sizes; no paths, so that the record says nothing of a machine."""
    return {
        "source": "the source of Python's standard library",
        "python_version": platform.python_version(),
        "files": corpus.files,
        "text_bytes": corpus.text_bytes,
        "validation_documents": len(corpus.validation),
        "validation_tokens": validation_tokens,
        "groups": {
            name: {
                "documents": len(corpus.groups[name]),
                "tokens": group.tokens,
                "share_of_windows": GROUP_SHARES[name],
            }
            for name, group in groups.items()
        },
    }


def main() -> None:
    """Tokenizer, model, training, files: one way through."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = parse_arguments()
    if arguments.work_dir is None:
        arguments.work_dir = Path(tempfile.gettempdir()) / "lorakit-pretraining"
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)

    corpus = read_corpus()
    texts = [text for name in ("library", "docstrings", "topics") for text in corpus.groups[name]]
    tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.context)
    groups = {
        name: PackedGroup(
            encode(documents, tokenizer), numpy.random.default_rng([arguments.seed, number])
        )
        for number, (name, documents) in enumerate(corpus.groups.items())
    }
    validation = torch.tensor([t for ids in encode(corpus.validation, tokenizer) for t in ids])
    order = numpy.random.default_rng(arguments.seed).permutation(len(validation) // 512)
    validation = validation[: len(order) * 512].view(-1, 512)[torch.from_numpy(order)].flatten()
    record = {"corpus": corpus_record(corpus, groups, len(validation))}
    log.info("%s", record)

    model = build_model(arguments, tokenizer)
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    history = train(model, groups, validation, arguments)

    model = model.to(torch.bfloat16).eval()
    recipe = {k: v for k, v in vars(arguments).items() if k not in ("output", "work_dir", "resume")}
    tokens_seen = history["step"] * arguments.batch_tokens
    record = {
        "model": "lorakit quickstart base model",
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": recipe | {"precision": "float32 weights, bfloat16 autocast; saved as bfloat16"},
        **record,
        "steps": history["step"],
        "tokens_seen": tokens_seen,
        "wall_s": round(history["wall_s"]),
        "tokens_per_s": round(tokens_seen / history["wall_s"]),
        "validation": {
            "unit": "nats per token, over all held-out documents, bfloat16 weights",
            "loss_window_256": round(validation_loss(model, validation, 256), 4),
            "loss_window_512": round(validation_loss(model, validation, 512), 4),
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    record["validation"]["perplexity_window_512"] = round(
        math.exp(record["validation"]["loss_window_512"]), 2
    )
    save_all(model, tokenizer, history["curve"], record, arguments.output)
    log.info("wrote %s", arguments.output)


if __name__ == "__main__":
    main()
