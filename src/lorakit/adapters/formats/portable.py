"""Adapters for servers that only support r and lora_alpha: vLLM, TGI, llama.cpp."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import list_whole_paths, require_low_rank
from lorakit.adapters.ranks import with_unit_scaling
from lorakit.errors import AdapterFileError, first_few


@torch.no_grad()
def portable_adapter(adapter: Adapter, *, keep_embeddings: bool = False) -> Adapter:
    """Return an adapter with the same updates that every reader of PEFT's files scales correctly.

    Scalings are folded into lora_B, so that lora_alpha equals r; factors of a lower rank are padded
    with zeros to the largest. The result needs no rsLoRA and no rank or alpha patterns: vLLM
    ignores the patterns, and llama.cpp's converter ignores both.

    Args:
        adapter: The adapter; it is not modified.
        keep_embeddings: Whether to keep adapted embeddings, for readers that support them.

    Returns: The adapter, with factors in their original dtype (products are rounded once), or in
        float32 where they are too large for that.

    Raises:
        AdapterFileError: The adapter has heads or biases trained in full, adapted embeddings, or
            another feature that such readers lack; names all of them.

    Memory: another copy of lora_A and lora_B.
    """
    require_low_rank(adapter, "export", "the adapter")
    problems: list[str] = []
    if adapter.replaced:
        problems.append(f"weights trained in full ({first_few(adapter.replaced)})")
    if adapter.embeddings and not keep_embeddings:
        problems.append(f"adapted embeddings ({first_few(sorted(adapter.embeddings))})")
    if adapter.convolutions:
        problems.append(f"adapted convolutions ({first_few(sorted(adapter.convolutions))})")
    if problems:
        raise AdapterFileError(
            f"Cannot export the adapter: got {' and '.join(problems)}, expected only updates of "
            "linear layers, as such readers support nothing else. Merge the adapter into its base "
            "with `lorakit merge` instead."
        )
    r = max(A.shape[0] for A, _ in adapter.factors.values())
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for path, (A, B) in adapter.factors.items():
        missing = r - A.shape[0]
        wide = torch.promote_types(B.dtype, torch.float32)
        folded = B.to(wide) * adapter.config.scaling_for(path)
        rounded = folded.to(B.dtype)
        folded = rounded if rounded.isfinite().all() else folded
        factors[path] = (F.pad(A, (0, 0, 0, missing)), F.pad(folded, (0, missing)))
    config = with_unit_scaling(adapter.config, factors)
    names = config.target_modules
    selection = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    if not isinstance(names, tuple) or any(getattr(config, key) for key in selection):
        names = list_whole_paths(factors, config.model_copy(update={"target_modules": None}))
    config = config.model_copy(update={"target_modules": names, "bias": "none", **selection})
    return replace(adapter, config=config, factors=factors, base_weights={})
