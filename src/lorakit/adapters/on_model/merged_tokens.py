"""Permanent merging of trained tokens into a new weight of the base."""

import torch
from torch import nn

from lorakit.injection.state import base_modules, replaced_modules
from lorakit.layers import TrainedTokens
from lorakit.layers.trained_tokens import own_weight


@torch.no_grad()
def write_trained_tokens(model: nn.Module) -> bool:
    """Give every module with active trained tokens a weight that contains them.

    Tied modules with the same trained tokens get the same new weight, so they stay tied. The base's
    parameters are not modified.

    Args:
        model: A merged model whose merged weights are not permanent yet.

    Returns: Whether modules that were tied no longer are.
    """
    holders: dict[int, set[int]] = {}
    for _, module in base_modules(model):
        weight = getattr(module, "kept_parameters", {}).get(
            "weight", module._parameters.get("weight")
        )
        holders.setdefault(id(weight), set()).add(id(module))
    written: dict[tuple[int, int], tuple[nn.Parameter, set[int], int]] = {}
    for _, module in replaced_modules(model):
        name = module.active_copy
        trained = None if name is None else module.trained_copies[name]
        if not isinstance(trained, TrainedTokens):
            continue
        W0, current = own_weight(module), module.get_parameter("weight")
        key = (id(current), id(trained.rows))
        if key not in written:
            parameter = nn.Parameter(_with_rows(trained, W0, current), requires_grad=False)
            written[key] = (parameter, set(), id(W0))
        parameter, sharing, _ = written[key]
        sharing.add(id(module))
        module.weight = parameter
    return any(sharing != holders[base] for _, sharing, base in written.values())


def _with_rows(trained: TrainedTokens, W0: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """Return a copy of a weight with trained rows, including what an update has added to them."""
    merged = current.detach().clone()
    wide = torch.promote_types(trained.rows.dtype, torch.float32)
    rows, where = trained.rows.to(current.device, wide), trained.indices.to(current.device)
    if current is not W0:
        rows = rows + (current[where].to(wide) - W0[where].to(wide))
    merged[where] = rows.to(merged.dtype)
    return merged
