"""Giving the updates of a new adapter their first factors."""

from functools import partial

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from lorakit.config import LoraConfig
from lorakit.errors import (
    AdapterMismatchError,
    MissingFileError,
    QuantizationError,
    TargetError,
)
from lorakit.files.checkpoint_weights import CheckpointWeights
from lorakit.initialization.protocol import FreshUpdate, Initialization
from lorakit.initialization.table import initialization_of
from lorakit.layers import AdaptedLayer, LowRankUpdate, OffsetUpdate
from lorakit.layers.offload import weights_in_place


class Initializer:
    """Initializes the updates of one new adapter, layer by layer."""

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        """Keep the model; no weight is read yet.

        Args:
            model: The model that is adapted, without what wraps it.
            config: The adapter's configuration.
        """
        self._model = model
        self._initialization = initialization_of(config.init_lora_weights)
        self._original_weights: CheckpointWeights | None = None

    def initialize_(self, layer: AdaptedLayer, update: LowRankUpdate, path: str) -> None:
        """Give a fresh update its first factors, in place.

        An initialization that needs data gives way to `True` until it has some.

        Args:
            layer: The layer, adapted.
            update: Its update.
            path: The layer's path, for errors and for its weight in a checkpoint.

        Raises:
            TargetError: The weight has NaN or infinite values.
            MissingFileError, QuantizationError, AdapterMismatchError: The weights from before
                quantization cannot be read.
        """
        if _has_no_values(update.lora_A):
            return
        if self._initialization.needs_data:
            update.set_factors_(*self._factors(initialization_of(True), layer, update, path))
        else:
            factors = self._factors(self._initialization, layer, update, path)
            self._initialization.write_(update, *factors)

    def load_(
        self,
        layer: AdaptedLayer,
        update: LowRankUpdate,
        path: str,
        factors: tuple[Tensor, Tensor],
    ) -> None:
        """Give an update the factors of a file, and the first factors that PEFT measured from.

        Args:
            layer: The layer, adapted.
            update: Its update.
            path: The layer's path.
            factors: A (r, in) and B (out, r).
        """
        if isinstance(update, OffsetUpdate):
            update.set_factors_(*factors)
            if _has_no_values(update.lora_A):
                return
            update.set_offset_(*self._factors(self._initialization, layer, update, path))
        else:
            update.load_factors_(*factors)

    def _factors(
        self, initialization: Initialization, layer: AdaptedLayer, update: LowRankUpdate, path: str
    ) -> tuple[Tensor, Tensor]:
        is_error = initialization.source == "quantization_error"
        read = self._quantization_error if is_error else _finite_weight
        return initialization.factors(
            FreshUpdate(update, layer.zero_factor, partial(read, layer, path))
        )

    def _quantization_error(self, layer: AdaptedLayer, path: str) -> Tensor:
        """Return the weight from before quantization minus the quantized one, (out, in)."""
        Q = _exact_weight(layer)
        W = self._original_weight(path).to(Q)
        if vars(layer).get("source_cls") is Conv1D:
            W = W.t()
        if W.shape != Q.shape:
            raise AdapterMismatchError(
                f"{path}.weight has shape {tuple(W.shape)} in {self._checkpoint().where}, expected "
                f"{tuple(Q.shape)} as in the quantized base. Load the base from its own checkpoint."
            )
        _require_finite(W, path)
        return W - Q

    def _original_weight(self, path: str) -> Tensor:
        weights = self._checkpoint()
        prefix = getattr(self._model, "base_model_prefix", "") or ""
        stored = weights.stored_name(f"{path}.weight", prefix)
        W = None if stored is None else weights.read(stored)
        if W is None or not W.is_floating_point():
            found = "none" if W is None else f"one of {W.dtype}"
            raise QuantizationError(
                f"Cannot initialize {path} with init_lora_weights='loftq': got {found} of its "
                f"weight in {weights.where}, expected the weight from before quantization. Load a "
                "16-bit checkpoint with quantization, or use another init_lora_weights."
            )
        return W

    def _checkpoint(self) -> CheckpointWeights:
        if self._original_weights is None:
            model = self._model
            source = getattr(model, "name_or_path", None)
            if not source:
                raise MissingFileError(
                    f"Cannot use init_lora_weights='loftq': this {type(model).__name__} does not "
                    "say which checkpoint it was loaded from (name_or_path), expected one with "
                    "the weights from before quantization. Load it with from_pretrained."
                )
            commit = getattr(getattr(model, "config", None), "_commit_hash", None)
            self._original_weights = CheckpointWeights(source, commit)
        return self._original_weights


def _exact_weight(layer: AdaptedLayer) -> Tensor:
    """Return a linear layer's weight as (out, in), dequantized, in float32 at least."""
    with weights_in_place(layer):
        # `orient` transposes or does nothing, so it turns the weight to (out, in) as well.
        return layer.orient(layer.exact_weight()).detach()


def _finite_weight(layer: AdaptedLayer, path: str) -> Tensor:
    W0 = _exact_weight(layer)
    _require_finite(W0, path)
    return W0


def _require_finite(weight: Tensor, path: str) -> None:
    if not bool(weight.isfinite().all()):
        raise TargetError(
            f"Cannot initialize {path} from its weight: it has NaN or infinite numbers, expected "
            "finite ones. Leave it out with exclude_modules, or use another init_lora_weights."
        )


def _has_no_values(tensor: Tensor) -> bool:
    """Return whether a tensor is fake, as in a plan, or on the meta device."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
