"""Where fresh updates begin: at random, at factors of the base's weight, or at what it has lost."""

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from lorakit.config import LoraConfig
from lorakit.config.initialization_names import is_rewriting
from lorakit.errors import (
    AdapterMismatchError,
    MissingFileError,
    QuantizationError,
    TargetError,
)
from lorakit.files.checkpoint_weights import CheckpointWeights
from lorakit.initialization.factors import orthonormal_factors, principal_factors
from lorakit.layers import AdaptedLayer, LoraConv1D, LowRankUpdate, OffsetUpdate
from lorakit.layers.kinds.linear import AdaptedLinear
from lorakit.layers.offload import weights_in_place
from lorakit.layers.updates.low_rank_update import Initialization

_DRAWN: dict[object, Initialization] = {
    True: "kaiming",
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    False: "random",
}


def is_linear(adapted_class: type[AdaptedLayer]) -> bool:
    """Return whether layers of this kind multiply by one matrix (out, in)."""
    return issubclass(adapted_class, (AdaptedLinear, LoraConv1D))


def update_class(
    config: LoraConfig, adapted_class: type[AdaptedLayer], *, is_fresh: bool
) -> type[LowRankUpdate]:
    """Return the kind of update that a configuration gives a layer.

    Args:
        config: The configuration.
        adapted_class: The layer's class.
        is_fresh: Whether the update has no factors yet.
    """
    initialization = config.init_lora_weights
    keeps_start = is_rewriting(initialization) or (is_fresh and initialization == "lora_ga")
    return OffsetUpdate if keeps_start and is_linear(adapted_class) else adapted_class.update_class


class InitialFactors:
    """Fills the updates of one new adapter."""

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        """Note where the numbers may come from; nothing is read yet.

        Args:
            model: The model that is adapted, without what wraps it.
            config: The adapter's configuration.
        """
        self._model = model
        self._initialization = config.init_lora_weights
        self._originals: CheckpointWeights | None = None

    def begin(self, layer: AdaptedLayer, update: LowRankUpdate, path: str) -> None:
        """Give a fresh update its first factors, in place.

        Those that need data ("eva", "lora_ga") are drawn as usual until they have seen some.

        Args:
            layer: The layer, adapted.
            update: Its update.
            path: The layer's path, for errors and for its weight in a checkpoint.

        Raises:
            TargetError: The weight has NaN or infinite numbers.
            MissingFileError, QuantizationError, AdapterMismatchError: The weights from before
                quantisation are not to be had.
        """
        initialization = self._initialization
        if _has_no_numbers(update.lora_A):
            return
        if initialization == "loftq":
            A, B = self._lost_by_quantizing(layer, update, path)
            update.load_factors_(A, B)
        elif is_rewriting(initialization):
            _offset(update).initialize_at_(*self._factors_of_weight(layer, update, path))
        else:
            update.initialize_(_DRAWN.get(initialization, "kaiming"), layer.zero_factor)

    def take(
        self,
        layer: AdaptedLayer,
        update: LowRankUpdate,
        path: str,
        factors: tuple[Tensor, Tensor],
    ) -> None:
        """Give an update the factors of a file, in place, and the start that PEFT measured from.

        Args:
            layer: The layer, adapted.
            update: Its update.
            path: The layer's path.
            factors: A (r, in) and B (out, r).
        """
        if isinstance(update, OffsetUpdate):
            LowRankUpdate.load_factors_(update, *factors)
            update.set_offset_(*self._factors_of_weight(layer, update, path))
        else:
            update.load_factors_(*factors)

    def _factors_of_weight(
        self, layer: AdaptedLayer, update: LowRankUpdate, path: str
    ) -> tuple[Tensor, Tensor]:
        W0 = exact_matrix(layer)
        _require_finite(W0, path)
        if self._initialization == "olora":
            return orthonormal_factors(W0, update.r)
        _, _, iterations = str(self._initialization).partition("_niter_")
        return principal_factors(
            W0, update.r, update.scaling, int(iterations) if iterations else None
        )

    def _lost_by_quantizing(
        self, layer: AdaptedLayer, update: LowRankUpdate, path: str
    ) -> tuple[Tensor, Tensor]:
        """Return factors of the best approximation of W - Q."""
        Q = exact_matrix(layer)
        W = self._original(path).to(Q)
        if vars(layer).get("source_cls") is Conv1D:
            W = W.t()
        if W.shape != Q.shape:
            raise AdapterMismatchError(
                f"{path}.weight has shape {tuple(W.shape)} in {self._opened().where}, expected "
                f"{tuple(Q.shape)} as in the quantised base. Load the base from its own checkpoint."
            )
        _require_finite(W, path)
        return principal_factors(W - Q, update.r, update.scaling)

    def _original(self, path: str) -> Tensor:
        weights = self._opened()
        prefix = getattr(self._model, "base_model_prefix", "") or ""
        stored = weights.stored_name(f"{path}.weight", prefix)
        W = None if stored is None else weights.read(stored)
        if W is None or not W.is_floating_point():
            found = "none" if W is None else f"one of {W.dtype}"
            raise QuantizationError(
                f"Cannot start {path} with init_lora_weights='loftq': got {found} of its weight "
                f"in {weights.where}, expected the weight from before quantisation. Load a 16-bit "
                "checkpoint with quantization, or use another init_lora_weights."
            )
        return W

    def _opened(self) -> CheckpointWeights:
        if self._originals is None:
            model = self._model
            source = getattr(model, "name_or_path", None)
            if not source:
                raise MissingFileError(
                    f"Cannot use init_lora_weights='loftq': this {type(model).__name__} does not "
                    "say which checkpoint it was loaded from (name_or_path), expected one with "
                    "the weights from before quantisation. Load it with from_pretrained."
                )
            commit = getattr(getattr(model, "config", None), "_commit_hash", None)
            self._originals = CheckpointWeights(source, commit)
        return self._originals


def exact_matrix(layer: AdaptedLayer) -> Tensor:
    """Return a linear layer's own weight as (out, in) in float32 at least, dequantised."""
    with weights_in_place(layer):
        # `oriented` transposes or does nothing, so it turns the weight to (out, in) as well.
        return layer.oriented(layer.exact_weight()).detach()


def _offset(update: LowRankUpdate) -> OffsetUpdate:
    if isinstance(update, OffsetUpdate):
        return update
    raise TypeError(f"{type(update).__name__} does not keep where it began.")


def _require_finite(weight: Tensor, path: str) -> None:
    if not bool(weight.isfinite().all()):
        raise TargetError(
            f"Cannot start {path} from its weight: it has NaN or infinite numbers, expected finite "
            "ones. Leave it out with exclude_modules, or use another init_lora_weights."
        )


def _has_no_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is fake, as in a plan, or on the meta device."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
