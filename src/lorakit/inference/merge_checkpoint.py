"""Merge an adapter into its base, write an ordinary checkpoint and check its logits."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorakit.adapters import merge_adapters, merge_and_unload
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import TaskType
from lorakit.errors import AdapterStateError, ConfigError
from lorakit.files.atomic import creating_directory, require_new_directory
from lorakit.inference import load_for_inference
from lorakit.inference.generation import stop_ids
from lorakit.layers.bitsandbytes_storage import keep_odd_layouts
from lorakit.libraries.foreign_code import load_pretrained
from lorakit.models.pretrained import model_limit

_PROBE_ROWS = 2
_PROBE_TOKENS = 24
# Largest deviation of a logit that rounding explains, relative to the largest logit: float32
# products in another order, or weights and activations of 16 bits.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True)
class MergeReport:
    """Files that a merge wrote, and their deviation from the adapted model.

    Attributes:
        largest_deviation: Largest absolute difference of a logit, on seeded random tokens.
        relative_deviation: The same divided by the largest absolute logit.
        largest_rounding: Largest rounding error of a weight by the merge and by `dtype`, in the
            weight's units.
        layers: Number of layers whose weight changed.
        dtype: dtype of the written weights, or of the unquantized ones if `requantized`.
        files: Paths of the written files.
        was_quantized: Whether the base was quantized.
        requantized: Whether the merged weights were quantized again.
        note: That the base has other weights than that of the training.
        not_written: Settings of the adapter that a checkpoint cannot have, in one sentence.
    """

    largest_deviation: float
    relative_deviation: float
    largest_rounding: float
    layers: int
    dtype: str
    files: tuple[Path, ...]
    was_quantized: bool = False
    requantized: bool = False
    note: str | None = None
    not_written: str | None = None


def merge_to_checkpoint(
    adapter_path: str | Path,
    output: str | Path,
    base: str | None = None,
    dtype: str | None = None,
    *,
    requantize: bool = False,
    unquantized: bool = False,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge an adapter into its base and write a checkpoint that plain `from_pretrained` loads.

    The written checkpoint is loaded again and its logits are compared with the adapted model's
    before the directory appears under its name. A base that was quantized in training is quantized
    again, dequantized and merged in float32: the adapter was trained on the quantized weights,
    errors included.

    Args:
        adapter_path: A run directory, an adapter directory, or a hub id.
        output: Directory to create; it must be empty or not exist.
        base: Hub id or directory of the base; None takes the one the adapter names.
        dtype: "float32", "bfloat16" or "float16"; None keeps the base's.
        requantize: Whether to quantize the merged weights like the base; this costs accuracy.
        unquantized: Whether to merge into the base as it is saved, even if it was quantized in
            training.
        trust_remote_code: Whether code that comes with the base may run; as for
            `load_for_inference`.

    Raises:
        OutputExistsError: `output` has files already.
        AdapterStateError: The written checkpoint does not give the adapted model's logits.
        AdapterMismatchError: The adapter was made for another base.
        QuantizationError: `requantize` is true and the base is not quantized.
        ConfigError: `requantize` is combined with `dtype` or `unquantized`.
    """
    if requantize and (dtype is not None or unquantized):
        other = "unquantized" if unquantized else f"dtype={dtype}"
        raise ConfigError(
            f"Cannot merge with both requantize and {other}: the first keeps the quantized "
            "weights, the second makes them dense. Choose one."
        )
    output = Path(output)
    require_new_directory(output, "the merged model")
    loaded = load_for_inference(
        adapter_path, base, unquantized=unquantized, trust_remote_code=trust_remote_code
    )
    model, tokenizer = loaded.model, loaded.tokenizer
    was_quantized = bool(getattr(model, "is_quantized", False))
    probe = _probe(model, len(tokenizer))
    expected = _logits(model, probe)
    tolerance = _TOLERANCE.get(model.dtype, 0.1)
    if dtype == "float32" and not was_quantized:
        model.float()  # before the merge, whose sum is then not rounded
    how = "requantize" if requantize else "dequantize" if was_quantized else None
    merge = merge_adapters(model, quantized_base=how)
    merge_and_unload(model)
    rounding = merge.largest_rounding
    if dtype is not None:
        rounding += _cast_(model, getattr(torch, dtype))
    if model.can_generate() and model.generation_config is not None:
        # Where the training ended answers with a token that the base does not stop at.
        model.generation_config.eos_token_id = stop_ids(loaded) or None
        if loaded.settings.num_beams is not None:
            model.generation_config.num_beams = loaded.settings.num_beams
    with creating_directory(output) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        # The class is in memory already, so no code in the directory needs to run.
        loaded_again = load_pretrained(
            type(model), temporary, trust_remote_code=False, dtype="auto"
        )
        written = loaded_again.eval()
        keep_odd_layouts(written.modules())
        deviation = (_logits(written, probe) - expected).abs().max().item()
        relative = deviation / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
        if not requantize:
            _check_deviation(relative, tolerance, model.dtype, output)
    return MergeReport(
        largest_deviation=deviation,
        relative_deviation=relative,
        largest_rounding=rounding,
        layers=merge.layers,
        dtype=str(model.dtype).removeprefix("torch."),
        files=tuple(sorted(path for path in output.iterdir() if path.is_file())),
        was_quantized=was_quantized,
        requantized=requantize,
        note=loaded.note,
        not_written=_not_written(loaded.settings),
    )


def _not_written(settings: InferenceSettings) -> str | None:
    """Return what other programs must do themselves for the answers of the adapter."""
    missing = {
        "the system prompt of the training (data.system_prompt)": settings.system_prompt,
        "the prefix of sources (data.source_prefix)": settings.source_prefix,
        f"the thresholds of labels ({', '.join(f'{t:.3g}' for t in settings.thresholds)})": (
            settings.thresholds
        ),
        "the end token after a prompt and its answer": (
            settings.task_type is TaskType.SEQ_CLS and settings.format == "prompt_completion"
        ),
    }
    named = [name for name, value in missing.items() if value]
    if not named:
        return None
    return f"The checkpoint does not have {' and '.join(named)}: apply them where it is used."


def _cast_(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Cast the weights; return the largest rounding error of one."""
    largest = 0.0
    for weight in model.parameters():
        if weight.is_floating_point():
            error = (weight.data.to(dtype).float() - weight.data.float()).abs()
            largest = max(largest, error.max().item())
    model.to(dtype)  # type: ignore[arg-type]  # `to` is overloaded
    return largest


def _probe(model: PreTrainedModel, vocabulary: int) -> dict[str, Tensor]:
    """Return seeded random tokens, the same for both models.

    Args:
        model: The adapted model.
        vocabulary: Size of the tokenizer's, for a base without a table of tokens (CANINE).
    """
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    size = getattr(config, "vocab_size", vocabulary)
    shape = (_PROBE_ROWS, min(_PROBE_TOKENS, model_limit(model) or _PROBE_TOKENS))
    ids = torch.randint(0, size, shape, generator=generator)
    end = config.eos_token_id
    if isinstance(end, int) and 0 <= end < size:
        # BART and T5 classify at this token, and want as many in each row.
        ids[ids == end] = (end + 1) % size
        ids[:, -1] = end
    ids = ids.to(model.device)
    probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        probe["decoder_input_ids"] = ids.flip(0)
    return probe


@torch.no_grad()
def _logits(model: PreTrainedModel, probe: dict[str, Tensor]) -> Tensor:
    return model.eval()(**probe).logits.float()


def _check_deviation(relative: float, tolerance: float, dtype: torch.dtype, output: Path) -> None:
    """Refuse a checkpoint that deviates by more than the adapted model and `dtype` round."""
    limit = max(tolerance, _TOLERANCE.get(dtype, 0.1))
    if not relative <= limit:
        step = "K" if dtype is torch.float32 else "Try --dtype float32, or k"
        raise AdapterStateError(
            f"The merged model in {output} is wrong: its logits deviate by {relative:.2g} of the "
            f"largest from the adapted model's, expected at most {limit:g} in {dtype}. Nothing was "
            f"written. {step}eep the adapter unmerged."
        )
