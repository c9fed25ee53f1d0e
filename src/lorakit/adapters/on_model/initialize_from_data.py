"""Fresh adapters that begin where training data says: EVA and LoRA-GA."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.adapters.on_model.data_passes import Batch, Loss, input_components, mean_gradients
from lorakit.adapters.ranks import pattern_of
from lorakit.config import LoraConfig
from lorakit.config.frozen import freeze_fields
from lorakit.config.initialization_names import INITIALIZED_ON_DATA
from lorakit.errors import ConfigError
from lorakit.initialization.factors import gradient_factors
from lorakit.injection.change_ranks import change_ranks
from lorakit.injection.selection.parameters import WEIGHT, is_by_parameter
from lorakit.injection.selection.targets import compact_targets
from lorakit.injection.state import (
    adapted_layers,
    base_modules,
    require_adapter,
    require_unmerged,
    unwrapped,
)
from lorakit.layers import AdaptedLayer, LowRankUpdate, OffsetUpdate


@dataclass(frozen=True)
class DataInitialization:
    """What initialising an adapter from data has done.

    Attributes:
        ranks: The rank of each update by module path; 0 where it was taken out (EVA).
        unreached: Paths of the layers that no batch ran through; they start as any other.
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
    """Give a fresh adapter the start that its `init_lora_weights` computes from data.

    "eva": lora_A gets the principal components of what the layer reads, and lora_B zeros. Ranks are
    redistributed by the share of the variance that each component explains: as many as before in
    all, at most `eva_rho` times as many in one layer, and none where nothing is explained.
    "lora_ga": the factors get singular vectors of the mean gradient, and the update is measured
    from there.

    The base acts alone and without dropout meanwhile, and nothing of it is changed. Training from a
    recipe does this by itself. Optimizers have to be made afterwards.

    Args:
        model: A model with adapters.
        batches: Mappings of what the model takes, or tensors; for "lora_ga" with labels. Tokens
            that `attention_mask` hides, or whose label is -100, do not count for "eva".
        name: Which adapter.
        loss: For "lora_ga", of the model and a batch; None takes the `loss` of the output.

    Returns: The ranks, and which layers no batch ran through.

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
    require_unmerged(model, "initialise an adapter from data")
    config = require_adapter(model, name).configs[name]
    if config.init_lora_weights not in INITIALIZED_ON_DATA:
        raise ConfigError(
            f"Cannot initialise adapter {name!r} from data: got init_lora_weights="
            f"{config.init_lora_weights!r}, expected {' or '.join(INITIALIZED_ON_DATA)}. Adapters "
            "that start in another way have done so when they were added."
        )
    model = unwrapped(model)
    layers = {path: layer for path, layer in adapted_layers(model) if name in layer.updates}
    if config.init_lora_weights == "lora_ga":
        return _initialize_at_gradients(layers, mean_gradients(model, layers, batches, loss), name)
    return _initialize_at_inputs(model, layers, batches, name, config)


def _initialize_at_gradients(
    layers: Mapping[str, AdaptedLayer], gradients: dict[str, Tensor], name: str
) -> DataInitialization:
    unreached = tuple(path for path in layers if path not in gradients)
    factors: list[tuple[OffsetUpdate, tuple[Tensor, Tensor]]] = []
    for path, layer in layers.items():
        update = layer.updates[name]
        if path in gradients and isinstance(update, OffsetUpdate):
            gradient = gradients.pop(path).to(update.lora_A.device)
            factors.append((update, gradient_factors(gradient, update.r)))
    for update, (A0, B0) in factors:  # once all of them are there, so that nothing is half done
        update.initialize_at_(A0, B0)
    return DataInitialization(
        {path: _rank(layer, name) for path, layer in layers.items()}, unreached
    )


def _initialize_at_inputs(
    model: nn.Module,
    layers: Mapping[str, AdaptedLayer],
    batches: Iterable[Batch],
    name: str,
    config: LoraConfig,
) -> DataInitialization:
    before = {path: _rank(layer, name) for path, layer in layers.items()}
    most = {
        path: min(round(r * config.eva_rho), *type(layers[path]).factor_sizes(layers[path]))
        for path, r in before.items()
    }
    sums, leaders = input_components(model, layers, batches, most)
    found = {path: part.result() for path, part in sums.items() if not part.is_empty}
    reached = [path for path in layers if leaders.get(path) in found]
    shares = {path: found[leaders[path]][1] for path in reached}
    given = redistributed_ranks(shares, leaders, before, most)
    ranks = {path: given.get(path, r) for path, r in before.items()}
    change_ranks(model, name, _with_new_ranks(model, config, before, ranks), ranks)
    for path in reached:
        if ranks[path]:
            update: LowRankUpdate = layers[path].updates[name]  # type: ignore[assignment]
            with torch.no_grad():
                update.lora_A.copy_(found[leaders[path]][0][: ranks[path]])
                update.lora_B.zero_()
    return DataInitialization(ranks, tuple(path for path in layers if path not in shares))


def redistributed_ranks(
    shares: Mapping[str, Tensor],
    leaders: Mapping[str, str],
    ranks: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, int]:
    """Deal ranks out to the components that explain most, wherever they are.

    Args:
        shares: Of the variance, explained by each component of a layer's input, (k,), by path.
        leaders: The first layer that reads the same input; it gets the most of those that do.
        ranks: Before; their sum over these layers is dealt out.
        most: The largest rank of each layer.

    Source: Paischer et al. 2024, arXiv:2410.07170, section 3.2.
    """
    candidates = [
        (share, path) for path, own in shares.items() for share in own[: most[path]].tolist()
    ]
    candidates.sort(key=lambda pair: pair[0], reverse=True)  # of equal ones the first layer's
    given = dict.fromkeys(shares, 0)
    for _, path in candidates[: sum(ranks[path] for path in shares)]:
        given[path] += 1
    for path in shares:
        leader = leaders[path]
        if leader in given and given[leader] < given[path] <= most[leader]:
            given[leader], given[path] = given[path], given[leader]
    return given


def _with_new_ranks(
    model: nn.Module, config: LoraConfig, before: Mapping[str, int], ranks: Mapping[str, int]
) -> LoraConfig:
    """Return settings with other ranks; alphas follow them, as in PEFT."""
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


def _rank(layer: AdaptedLayer, name: str) -> int:
    update: LowRankUpdate = layer.updates[name]  # type: ignore[assignment]
    return update.r
