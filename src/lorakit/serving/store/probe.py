"""The first forward pass of an adapter: it must act, and give finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters import Adapter
from lorakit.errors import AdapterFileError, LorakitError, first_few, first_line
from lorakit.injection import Injection, adapter_rows
from lorakit.injection.state import adapted_layers
from lorakit.serving.engine.visits import VisitOutput

_TOKENS = 3
"""More than the rows, so that a model which puts tokens first (XLNet) cannot be mistaken."""
_CLEAR = 1e-3
"""Change of the outputs, relative to the largest, that is no rounding of one token in float32."""
_NOISE = 4.0
"""Times the difference that two equal rows of one batch have, which kernels may cause."""


class Probe:
    """Compares the outputs of a model with and without an adapter, as two rows of one batch.

    Two rows, so that layers which cannot have another adapter in each row show it here.
    """

    def __init__(self, model: nn.Module, *, allow_noop: bool = False):
        self._model = model
        self._config: Any = model.config
        self._allow_noop = allow_noop
        self._noise: float | None = None

    def token_for(self, adapter: Adapter) -> int:
        """Return a token to probe an adapter with, one that it trains if there is any."""
        return self._tokens_for(adapter)[-1]

    def is_passed(self, outputs: VisitOutput) -> bool:
        """Return whether the outputs of one token leave no doubt that `check` passes."""
        base, adapted = outputs.base, outputs.adapted
        if not (outputs.is_finite and base.isfinite().all()):
            return False
        dtype: Any = self._model.dtype
        clear = max(_CLEAR, 16 * torch.finfo(dtype).eps) * base.abs().max().item()
        return self._allow_noop or _distance(base, adapted) > clear

    def check(
        self, name: str, carried_name: str, adapter: Adapter, injection: Callable[[], Injection]
    ) -> None:
        """Run the probe in the thread that owns the model.

        Args:
            name: The adapter's name for messages.
            carried_name: Its name in the model.
            adapter: What was added under it.
            injection: Says where.

        Raises:
            AdapterFileError: The adapter does nothing, gives NaN or infinities, or cannot run in
                a batch beside others.
        """
        ids = self._input_ids(adapter)
        try:
            with _watching(self._model, carried_name) as not_finite:
                base, adapted = self._outputs([None, carried_name], ids)
        except torch.OutOfMemoryError:  # not the adapter's fault
            raise
        except (LorakitError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise AdapterFileError(
                f"Cannot serve adapter {name!r} beside others: a batch with a row for it and one "
                f"for the base fails: {first_line(error)}. Serve it merged into its base."
            ) from error
        if not torch.isfinite(base).all():
            raise AdapterFileError(
                f"Cannot probe adapter {name!r}: the base itself gives NaN or infinities, expected "
                "finite numbers. Load the base in another dtype."
            )
        if not_finite or not torch.isfinite(adapted).all():
            where = f", first in {not_finite[0]}" if not_finite else ""
            raise AdapterFileError(
                f"Cannot serve adapter {name!r}: it gives NaN or infinities on a probe of "
                f"{ids.shape[1]} tokens{where}, expected finite numbers. Its factors or its "
                "scaling are too large for the base's dtype; train it with a lower learning rate."
            )
        if self._allow_noop:
            return
        rounding = _rounding(adapter, base.dtype) * base.abs().max().item()
        if _distance(base, adapted) <= _NOISE * self._base_noise(ids) + rounding:
            raise AdapterFileError(
                f"Cannot serve adapter {name!r}: its outputs equal the base's on a probe of "
                f"{ids.shape[1]} tokens, expected other ones.{_what_it_has(adapter, injection())} "
                "Train it further, or allow adapters that do nothing (--allow-noop)."
            )

    def _tokens_for(self, adapter: Adapter) -> list[int]:
        """Return a few tokens, the last ones of those that the adapter trains."""
        text_config = self._config.get_text_config()
        size = int(text_config.vocab_size)
        padding = getattr(text_config, "pad_token_id", None)
        usual = [1 + place * (size - 1) // (_TOKENS + 1) for place in range(1, _TOKENS + 1)]
        indices = adapter.config.trainable_token_indices or ()
        lists = indices.values() if isinstance(indices, dict) else [indices]
        chosen = [
            min(token, size - 1) for token in (*usual, *(t for some in lists for t in some[:2]))
        ]
        return [token for token in chosen if token != padding] or chosen

    def _input_ids(self, adapter: Adapter) -> Tensor:
        """Return the same few tokens in two rows, (2, tokens)."""
        device = self._model.get_input_embeddings().weight.device  # type: ignore[operator]  # models of texts have embeddings
        tokens = self._tokens_for(adapter)
        end: Any = getattr(self._config, "eos_token_id", None)
        if self._config.is_encoder_decoder and isinstance(end, int):
            # BART and T5 classify at this token.
            tokens = [*(token for token in tokens if token != end), end]
        return torch.tensor([tokens] * 2, device=device)

    @torch.no_grad()
    def _outputs(self, names: list[str | None], ids: Tensor) -> Tensor:
        """Return the output of each row, (2, …), in float32 at least."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        with adapter_rows(self._model, names):
            result: Any = self._model(**inputs)
        logits = getattr(result, "logits", None)
        output: Tensor = result[0] if logits is None else logits
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def _base_noise(self, ids: Tensor) -> float:
        if self._noise is None:
            self._noise = _distance(*self._outputs([None, None], ids))
        return self._noise


@contextmanager
def _watching(model: nn.Module, carried_name: str) -> Iterator[list[str]]:
    """Yield a list that gets the path of each adapted layer whose output is not finite.

    The model's output may be finite all the same, as attention can drop what is not a number. A
    sum of numbers is finite if all of them are; the sums are read once, after the block.
    """
    found: list[str] = []
    paths: list[str] = []
    sums: list[Tensor] = []

    def look(path: str, _: nn.Module, __: Any, output: Any) -> None:
        # The last row, or the last token of it, is the adapter's.
        if isinstance(output, Tensor) and len(output):
            paths.append(path)
            sums.append(output[-1].sum(dtype=torch.promote_types(output.dtype, torch.float32)))

    hooks = [
        layer.register_forward_hook(partial(look, path))
        for path, layer in adapted_layers(model)
        if carried_name in layer.updates
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if sums:
        are_finite = torch.stack([each.to(sums[0]) for each in sums]).isfinite().tolist()
        found += [path for path, is_finite in zip(paths, are_finite, strict=True) if not is_finite]


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def _rounding(adapter: Adapter, dtype: torch.dtype) -> float:
    """Return the relative difference that trained parts without effect may cause.

    A copy of a head computes the base's numbers in another order, and a scale of rows divides by
    norms and multiplies by them again. Updates that are not zero are measured strictly.
    """
    if any(B.any() for _, B in adapter.factors.values()):
        return 0.0
    return 1e-3 if adapter.companions else 16 * torch.finfo(dtype).eps


def require_update(name: str, adapter: Adapter) -> None:
    """Refuse an adapter all of whose updates are zero, as before training.

    Raises:
        AdapterFileError: They are, and it trains nothing else.
    """
    if adapter.replaced or adapter.trained_tokens or adapter.companions:
        return
    if any(A.any() and B.any() for A, B in adapter.factors.values()):
        return
    zero = list(adapter.factors)
    zero_B = [path for path, (_, B) in adapter.factors.items() if not B.any()]
    if not zero:
        raise AdapterFileError(
            f"Cannot serve adapter {name!r}: its files hold no tensor that changes the base, "
            "expected updates, trained heads or trained tokens. Save it again where it was trained."
        )
    A, _ = adapter.factors[zero[0]]
    raise AdapterFileError(
        f"Cannot serve adapter {name!r}: it does nothing, as {'lora_B' if zero_B else 'lora_A'} is "
        f"zero in all {len(zero)} modules (the first is {zero[0]}, r={A.shape[-2]}), expected a "
        "trained adapter. Train it, or allow adapters that do nothing (--allow-noop)."
    )


def _what_it_has(adapter: Adapter, injection: Injection) -> str:
    """Return a sentence about the parts of an adapter that does nothing."""
    parts = []
    if adapter.factors:
        path, (A, B) = next(iter(adapter.factors.items()))
        parts.append(
            f"updates of {len(adapter.factors)} modules (the first is {path}, r={A.shape[-2]}, "
            f"largest value of lora_B {B.abs().max().item():.1e})"
        )
    if injection.skipped:
        parts.append(
            f"updates that act nowhere: {first_few(path for path, _ in injection.skipped)}"
        )
    if adapter.replaced:
        parts.append(f"copies of {first_few(adapter.replaced)}")
    if adapter.trained_tokens:
        parts.append(f"trained tokens of {first_few(adapter.trained_tokens)}")
    return f" It has {', '.join(parts)}." if parts else ""
