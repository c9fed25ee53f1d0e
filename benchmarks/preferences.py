"""A step of DPO against TRL's DPOTrainer with a PeftModel: its time and its peak of memory.

Both first compute the same loss and gradients on the same pairs. The prompt is half of each
sequence. TRL computes the reference in every step; lorakit does so once for all epochs, and a
second variant does it in every step too.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import lorakit
from benchmarks.measure import Sample, Stopwatch
from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.models import Shape, build_model, shape_named, shared_copy
from benchmarks.options import Options, parse
from benchmarks.parity import GRADIENT_TOLERANCE, LOSS_TOLERANCE, ParityError
from benchmarks.results import Row
from benchmarks.step import LAPS, PEAK, TOTAL, optimizer_of, row_fields, step_sample
from benchmarks.variants import Variant, factors_of, peft_copy, quiet_peft, saved_adapter

KNOWN = "lorakit"
"""The reference's log-probabilities are known, as after the pass before the first step."""
IN_STEP = "lorakit, reference in each step"
TRL = "trl with peft"
BETA = 0.1


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("preferences", __doc__, arguments)
    shapes = options.shapes or (shape_named("tiny-llama" if options.quick else "llama-69m"),)
    rows = []
    for shape in shapes:
        print(shape.name, flush=True)
        rows += measure(options, shape, options.dtype or torch.float32)
    return rows


def measure(options: Options, shape: Shape, dtype: torch.dtype) -> list[Row]:
    """Measure one shape."""
    r = options.r or 8
    examples = make_pairs(shape)
    base = build_model(shape, dtype, options.device)
    ours = shared_copy(base)
    torch.manual_seed(1)
    config = lorakit.LoraConfig(r=r, lora_alpha=2 * r, target_modules=shape.targets)
    lorakit.add_adapter(ours, config)
    with ExitStack() as until_done:
        with saved_adapter(ours) as directory:
            theirs = peft_copy(base, directory)
        folder = until_done.enter_context(tempfile.TemporaryDirectory())
        losses = {
            KNOWN: lorakit_loss(ours, examples, options.device, is_known=True),
            IN_STEP: lorakit_loss(ours, examples, options.device, is_known=False),
            TRL: trl_loss(theirs, examples, options.device, folder),
        }
        modules = {KNOWN: ours, IN_STEP: ours, TRL: theirs}
        variants = {name: Variant(name, modules[name].train(), None) for name in losses}
        for name, variant in variants.items():
            variant.factors = factors_of(variant.module)
            variant.loss = lambda batch, name=name: losses[name]()  # type: ignore[method-assign]
        require_parity(variants, dtype)
        common = row_fields("preferences", shape, dtype, 0.0, r)
        common["setting"] = f"{shape.rows} pairs x {shape.length}"
        optimizers = {name: optimizer_of(variant) for name, variant in variants.items()}
        samples = {name: step_sample(variants[name], optimizers[name], {}) for name in variants}
        rows = options.compared_laps(samples, LAPS, (TRL,), **common)
        for counted, counts in _bytes(variants, optimizers, samples, options.device).items():
            values = {name: [count] for name, count in counts.items()}
            rows += options.compared(values, (TRL,), measure=counted, unit="B", **common)
    return options.keep(rows)


def make_pairs(shape: Shape, seed: int = 0) -> list[dict[str, Any]]:
    """Return encoded pairs of random tokens, half of each sequence its prompt."""
    generator = torch.Generator().manual_seed(seed)
    answer = shape.length // 2
    prompt = shape.length - answer
    examples = []
    for _ in range(shape.rows):
        ids = torch.randint(0, shape.vocabulary, (prompt + 2 * answer,), generator=generator)
        labels = [-100] * prompt + ids[prompt:].tolist()
        parts = [prompt, answer, answer]
        examples.append({"input_ids": ids.tolist(), "labels": labels, "parts": parts})
    return examples


def lorakit_loss(model: Any, examples: list[dict[str, Any]], device: str, *, is_known: bool) -> Any:
    """Return the function that computes lorakit's loss."""
    from lorakit.data.answers import AnswerCollator
    from lorakit.training.losses.counted_labels import COUNTED
    from lorakit.training.losses.find_output_loss import find_output_loss
    from lorakit.training.objectives.direct import DPO
    from lorakit.training.objectives.preference_step import PreferenceStep

    probe = torch.tensor([examples[0]["input_ids"][:8]], device=device)
    output, reason = find_output_loss(model, {"input_ids": probe}, probe)
    if output is None:
        raise ParityError(f"lorakit cannot follow the model: {reason}.")
    step = PreferenceStep(output=output, objective=DPO(BETA), options={"use_cache": False})
    batch: dict[str, Any] = dict(AnswerCollator(0, shares_prompts=True)(examples))
    counted = step.count(batch).to(device)
    batch = {key: value.to(device) for key, value in batch.items()} | {COUNTED: counted}
    if is_known:
        batch["reference"] = step.reference(model, batch)
    return lambda: step.share(model, batch).loss


def trl_loss(model: Any, examples: list[dict[str, Any]], device: str, folder: str) -> Any:
    """Return the function that computes the loss of TRL's DPOTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from lorakit.quickstart.model_files import base_model_path

    with quiet_peft():
        from trl import DPOConfig, DPOTrainer

        arguments = DPOConfig(
            output_dir=folder,
            beta=BETA,
            use_cpu=device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        )
        rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}]
        tokenizer = AutoTokenizer.from_pretrained(base_model_path())
        trainer = DPOTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    if "ref" in model.peft_config:  # a copy of the adapter, which is zero: the base is the same
        model.delete_adapter("ref")
    encoded = []
    for example in examples:
        prompt, first, _ = example["parts"]
        ids = example["input_ids"]
        encoded.append(
            {
                "prompt_ids": ids[:prompt],
                "chosen_ids": ids[prompt : prompt + first],
                "rejected_ids": ids[prompt + first :],
            }
        )
    batch = {key: value.to(device) for key, value in trainer.data_collator(encoded).items()}
    return lambda: trainer.compute_loss(model, batch)


def require_parity(variants: Mapping[str, Variant], dtype: torch.dtype) -> None:
    """Compare loss and gradients with lorakit's.

    Raises:
        ParityError: A variant differs by more than the tolerance.
    """
    found: dict[str, tuple[float, Tensor]] = {}
    for name, variant in variants.items():
        variant.module.zero_grad(set_to_none=True)
        loss = variant.loss({})
        loss.backward()
        gradients = [variant.factors[key].grad for key in sorted(variant.factors)]
        found[name] = (loss.item(), torch.cat([g.flatten() for g in gradients if g is not None]))
        variant.module.zero_grad(set_to_none=True)
    expected_loss, expected = found[KNOWN]
    for name, (loss, gradient) in found.items():
        difference = float((gradient - expected).norm() / expected.norm())
        is_off = abs(loss - expected_loss) > LOSS_TOLERANCE[dtype] * expected_loss
        if is_off or difference > GRADIENT_TOLERANCE[dtype]:
            raise ParityError(
                f"{name} computes a loss of {loss:.7g} where lorakit's is {expected_loss:.7g}, and "
                f"gradients that differ by {difference:.2g}."
            )


def _bytes(
    variants: Mapping[str, Variant],
    optimizers: Mapping[str, torch.optim.Optimizer | None],
    samples: Mapping[str, Sample],
    device: str,
) -> dict[str, dict[str, float]]:
    counts: dict[str, dict[str, float]] = {PEAK: {}, TOTAL: {}}
    for name, variant in variants.items():
        variant.module.zero_grad(set_to_none=True)
        counts[PEAK][name] = peak_bytes(lambda s=samples[name]: s(Stopwatch(device)), device)
        resident = resident_bytes(variant.module, optimizers[name])
        counts[TOTAL][name] = resident + counts[PEAK][name]
        variant.module.zero_grad(set_to_none=True)
    return counts


if __name__ == "__main__":
    main()
