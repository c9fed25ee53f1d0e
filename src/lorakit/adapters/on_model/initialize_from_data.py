"""Initializing fresh adapters from training data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from lorakit.adapters.on_model.data_passes import Batch, Loss, input_components, mean_gradients
from lorakit.adapters.ranks import pattern_of
from lorakit.config import LoraConfig
from lorakit.config.frozen import freeze_fields
from lorakit.errors import ConfigError
from lorakit.initialization import INITIALIZATIONS, FreshUpdate, initialization_of
from lorakit.initialization.eva import redistribute_ranks
from lorakit.injection.change_ranks import change_ranks
from lorakit.injection.selection.parameters import WEIGHT, is_by_parameter
from lorakit.injection.selection.targets import compact_targets
from lorakit.injection.state import (
    base_modules,
    require_adapter,
    require_unmerged,
    unwrap,
    updates_named,
)
from lorakit.layers import AdaptedLayer, LowRankUpdate


@dataclass(frozen=True)
class DataInitialization:
    """What initializing an adapter from data has done.

    Attributes:
        ranks: The rank of each update by module path; 0 where it was removed (EVA).
        unreached: Paths of the layers that no batch ran through; they keep the usual random
            initialization.
    """

    ranks: Mapping[str, int]
    unreached: tuple[str, ...]

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        freeze_fields(self)


def initialize_from_data(
    model: nn.Module,
    batches: Iterable[Batch],
    name: str = "default",
    *,
    loss: Loss | None = None,
) -> DataInitialization:
    """Initialize a fresh adapter as its `init_lora_weights` computes from data.

    "eva": lora_A gets the principal components of the layer's input, and lora_B zeros. Ranks are
    redistributed by the share of the variance that each component explains: their sum stays, a
    layer gets at most `eva_rho` times its rank, and none where nothing is explained.
    "lora_ga": the factors get singular vectors of the mean gradient, and the update is measured
    from there.

    The base runs alone and without dropout meanwhile, and stays unchanged. Training from a recipe
    calls this by itself. Create optimizers afterwards.

    Args:
        model: A model with adapters.
        batches: Mappings of the model's arguments, or tensors; with labels for "lora_ga". "eva"
            ignores tokens that `attention_mask` hides or whose label is -100.
        name: Name of the adapter.
        loss: For "lora_ga", a function of the model and a batch; None takes the `loss` of the
            output.

    Returns: The ranks, and the layers that no batch ran through.

    Raises:
        AdapterNameError: There is no such adapter.
        ConfigError: Its `init_lora_weights` needs no data.
        DataError: There are no batches, or no loss.
        AdapterStateError: The model is merged.

    Memory: for "eva", (in, in) in float64 for each distinct input of up to 1,024 features, a few
        rows of wider ones; for "lora_ga", a gradient in float32 for each adapted weight, in the
        CPU's memory.
    Source: Paischer et al. 2024, arXiv:2410.07170, algorithm 1; Wang et al. 2024,
        arXiv:2407.05000, algorithm 1.
    """
    require_unmerged(model, "initialize an adapter from data")
    config = require_adapter(model, name).configs[name]
    initialization = initialization_of(config.init_lora_weights)
    if not initialization.needs_data:
        names = [str(value) for value, one in INITIALIZATIONS.items() if one.needs_data]
        raise ConfigError(
            f"Cannot initialize adapter {name!r} from data: got init_lora_weights="
            f"{config.init_lora_weights!r}, expected {' or '.join(names)}. Adapters with another "
            "one are initialized when they are added."
        )
    model = unwrap(model)
    layers = {path: layer for path, layer, _ in updates_named(model, name)}
    ranks = {path: update.r for path, _, update in updates_named(model, name)}
    if initialization.source == "gradient":
        matrices = mean_gradients(model, layers, batches, loss)
    else:
        matrices, ranks = _redistribute(model, layers, batches, name, config, ranks)
    unreached = tuple(path for path in layers if path not in matrices)
    computed: list[tuple[LowRankUpdate, tuple[Tensor, Tensor]]] = []
    for path in [path for path in layers if path in matrices and ranks[path]]:
        layer = layers[path]
        update = _update(layer, name)
        if isinstance(update, initialization.update_class(type(layer), is_fresh=True)):
            fresh = FreshUpdate(update, layer.zero_factor, partial(matrices.pop, path))
            computed.append((update, initialization.factors(fresh)))
    for update, factors in computed:  # nothing is written until all of them are computed
        initialization.write_(update, *factors)
    return DataInitialization(ranks, unreached)


def _redistribute(
    model: nn.Module,
    layers: Mapping[str, AdaptedLayer],
    batches: Iterable[Batch],
    name: str,
    config: LoraConfig,
    before: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Change the ranks to those of the components that explain most.

    Returns: The components (k, in) of the input of each layer that was reached, and all ranks.
    """
    max_ranks = {
        path: min(round(r * config.eva_rho), *type(layers[path]).factor_sizes(layers[path]))
        for path, r in before.items()
    }
    streams, leaders = input_components(model, layers, batches, max_ranks)
    found = {path: stream.result() for path, stream in streams.items() if not stream.is_empty}
    reached = [path for path in layers if leaders.get(path) in found]
    shares = {path: found[leaders[path]][1] for path in reached}
    ranks = {**before, **redistribute_ranks(shares, leaders, before, max_ranks)}
    change_ranks(model, name, _with_new_ranks(model, config, before, ranks), ranks)
    return {path: found[leaders[path]][0] for path in reached}, ranks


def _with_new_ranks(
    model: nn.Module, config: LoraConfig, before: Mapping[str, int], ranks: Mapping[str, int]
) -> LoraConfig:
    """Return a configuration with other ranks, and alphas that follow them as in PEFT."""
    alphas = {p: config.alpha_for(p) * ranks[p] / r for p, r in before.items() if ranks[p]}
    kept = {path: r for path, r in ranks.items() if r}
    targets, parameters = config.target_modules, config.target_parameters
    if len(kept) < len(ranks):
        by_weight = [path for path in kept if is_by_parameter(config, path)]
        parameters = tuple(f"{path}.{WEIGHT}" for path in by_weight)
        targets = compact_targets(
            [path for path in kept if path not in by_weight],
            [path for path, _ in base_modules(model) if path],
        )
    return config.model_copy(
        update={
            "rank_pattern": pattern_of(kept, config.r),
            "alpha_pattern": pattern_of(alphas, config.lora_alpha),
            "target_modules": targets,
            "target_parameters": parameters,
        }
    )


def _update(layer: AdaptedLayer, name: str) -> LowRankUpdate:
    return layer.updates[name]  # type: ignore[return-value]  # an item of a ModuleDict
