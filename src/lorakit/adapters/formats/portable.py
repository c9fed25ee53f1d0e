"""Adapters for servers that know r and lora_alpha and nothing else: vLLM, TGI, llama.cpp."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import named_targets, require_low_rank
from lorakit.adapters.ranks import unit_scaled
from lorakit.errors import AdapterFileError, first_few


@torch.no_grad()
def portable_adapter(adapter: Adapter, *, keep_embeddings: bool = False) -> Adapter:
    """Return an adapter with the same updates that any reader of PEFT's files scales rightly.

    Every scaling is folded into lora_B, so that lora_alpha equals r; modules of a lower rank are
    padded with zeros to the largest. rsLoRA, alpha and rank patterns are gone: vLLM ignores the
    patterns, and llama.cpp's converter rsLoRA too.

    Args:
        adapter: The adapter; it is left as it is.
        keep_embeddings: Whether adapted embeddings are let through, for readers that know them.

    Returns: The adapter, its factors in the dtype they had (products are rounded once).

    Raises:
        AdapterFileError: It has what cannot be expressed that way: heads or biases trained in
            full, adapted embeddings, or another feature; names all of it.

    Memory: lora_A and lora_B once more.
    """
    require_low_rank(adapter, "export", "the adapter")
    problems = []
    if adapter.replaced:
        problems.append(f"weights trained in full ({first_few(adapter.replaced)})")
    if adapter.embeddings and not keep_embeddings:
        problems.append(f"adapted embeddings ({first_few(sorted(adapter.embeddings))})")
    if adapter.convolutions:
        problems.append(f"adapted convolutions ({first_few(sorted(adapter.convolutions))})")
    if problems:
        raise AdapterFileError(
            f"Cannot export the adapter: got {' and '.join(problems)}, expected updates of linear "
            "layers alone, which is all that such readers know. Merge the adapter into its base "
            "with `lorakit merge` instead."
        )
    r = max(A.shape[0] for A, _ in adapter.factors.values())
    factors = {}
    for path, (A, B) in adapter.factors.items():
        missing = r - A.shape[0]
        wide = torch.promote_types(B.dtype, torch.float32)
        folded = (B.to(wide) * adapter.config.scaling_for(path)).to(B.dtype)
        factors[path] = (F.pad(A, (0, 0, 0, missing)), F.pad(folded, (0, missing)))
    config = unit_scaled(adapter.config, factors)
    names = config.target_modules
    selection = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    if not isinstance(names, tuple) or any(getattr(config, key) for key in selection):
        names = named_targets(factors, config.model_copy(update={"target_modules": None}))
    config = config.model_copy(update={"target_modules": names, "bias": "none", **selection})
    return replace(adapter, config=config, factors=factors, base_weights={})
