"""Finding and checking the tokens that an adapter trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.config import LoraConfig
from lorakit.errors import first_few
from lorakit.injection.selection.targets import is_inside, name_matches, no_match_message
from lorakit.injection.selection.vocabulary import input_embedding
from lorakit.layers import AdaptedLayer, plain_class_of
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.layers.offload import is_offloaded

_NO_ROWS: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class TokenSite:
    """Tokens to train, and every module that has their rows."""

    path: str
    """Path of the module under whose name files hold the rows."""
    indices: tuple[int, ...]
    modules: Mapping[str, nn.Module]
    """That module, and those that share its weight and the rows, by path."""

    @property
    def weight(self) -> Tensor:
        """The base's weight that has these rows."""
        return self.modules[self.path].weight  # type: ignore[return-value]  # an embedding


def find_token_sites(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    problems: list[str],
    saved_rows: Mapping[str, Tensor] = _NO_ROWS,
) -> list[TokenSite]:
    """Find the modules that have the tokens that a configuration trains.

    As in PEFT, tokens of the input embedding act in every module that is tied to it, unless a tied
    module has separate indices; tokens of any other module act only in that one. `problems` gets a
    sentence for everything that does not fit.
    """
    wanted = _by_path(model, modules, config, problems)
    found = input_embedding(model, modules)
    sites: dict[str, TokenSite] = {}
    for path, indices in wanted.items():
        module = modules[path]
        problem = _obstacle(path, module)
        if problem:
            problems.append(problem)
            continue
        sites[path] = TokenSite(path, indices, {path: module})
        beyond = sorted(index for index in indices if index >= module.weight.shape[0])  # type: ignore[union-attr,operator]  # an embedding
        if beyond:
            problems.append(_beyond(path, module.weight, beyond, max(indices)))  # type: ignore[arg-type]  # an embedding
    for path in list(sites):
        if path not in sites or (found is not None and path != found[0]):
            continue  # its rows are those of an earlier one, or it is not an input embedding
        tied = _find_tied(modules, modules[path])
        repeated = {p for p in tied if p != path and p in sites}
        if any(set(sites[p].indices) != set(sites[path].indices) for p in repeated):
            continue
        if any(p in saved_rows and not _repeats(saved_rows, p, path) for p in repeated):
            continue
        for p in repeated:
            del sites[p]
        problems += [problem for p, m in tied.items() if (problem := _obstacle(p, m))]
        sites[path] = TokenSite(path, sites[path].indices, {path: modules[path]} | tied)
    return list(sites.values())


def _by_path(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    problems: list[str],
) -> dict[str, tuple[int, ...]]:
    """Return the indices by the path of their module."""
    wanted = config.trainable_token_indices
    if wanted is None:
        return {}
    if not isinstance(wanted, dict):
        found = input_embedding(model, modules)
        if found is None:
            problems.append(
                f"trainable_token_indices={first_few(map(str, wanted), 5)} are rows of the input "
                f"embedding, but this {type(model).__name__} does not say which that is. Name it: "
                "trainable_token_indices={name: indices}."
            )
        return {} if found is None else {found[0]: wanted}
    selected: dict[str, tuple[int, ...]] = {}
    for name, indices in wanted.items():
        matches = [path for path in modules if path and name_matches([name], path)]
        if not matches:
            embeddings = [p for p, m in modules.items() if p and isinstance(m, nn.Embedding)]
            problems.append(no_match_message("trainable_token_indices", [name], embeddings))
        selected.update(dict.fromkeys(matches, indices))
    return selected


def _obstacle(path: str, module: nn.Module) -> str | None:
    """Return why rows of a module cannot be trained, or None."""
    kind = plain_class_of(module)
    kind = kind.plain_class if issubclass(kind, AdaptedLayer) else kind
    reason = None
    if bits_of(module) is not None:
        reason = "it is quantized, expected a dense weight (quantization.skip_modules)"
    elif isinstance(module, nn.Embedding):
        if module.max_norm is not None or module.scale_grad_by_freq:
            reason = "it has max_norm or scale_grad_by_freq, expected a plain look-up"
    elif kind is not nn.Linear:
        reason = f"it is a {kind.__name__}, expected an Embedding or a Linear"
    if reason is None and is_offloaded(module):
        reason = "accelerate offloads its weight, expected it in memory"
    return None if reason is None else f"Cannot train rows of {path}: {reason}."


def _beyond(path: str, weight: Tensor, beyond: list[int], largest: int) -> str:
    resize = f"model.resize_token_embeddings({largest + 1})"
    return (
        f"trainable_token_indices of {path} name {first_few(map(str, beyond), 5)}, but it "
        f"has {weight.shape[0]} rows. If the vocabulary has grown, call {resize} first."
    )


def _find_tied(modules: Mapping[str, nn.Module], module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that share a module's weight, including itself."""
    weight = module._parameters["weight"]
    return {p: m for p, m in modules.items() if m._parameters.get("weight") is weight}


def _repeats(rows: Mapping[str, Tensor], path: str, owner: str) -> bool:
    """Whether a file has the same rows under two names, as PEFT's does after a resize."""
    return owner in rows and torch.equal(rows[path], rows[owner])


def conflicts(
    sites: Sequence[TokenSite],
    heads: Mapping[str, nn.Module],
    adapted: Mapping[str, str | None],
    biased: Mapping[str, nn.Module],
) -> list[str]:
    """Return a problem for each module that the same adapter also changes in another way.

    Args:
        sites: The trained tokens.
        heads: Modules trained in full, by path.
        adapted: Modules with an update, by path; the value says what it has that depends on the
            base's rows, if anything.
        biased: Modules without an update whose bias is trained, by path.
    """
    problems = []
    for site in sites:
        for path, module in site.modules.items():
            head = next((h for h in heads if is_inside(path, [h])), None)
            if head is not None:
                problems.append(
                    f"{path} has trained tokens (trainable_token_indices), but {head} is trained "
                    "in full (modules_to_save). Leave one of them out."
                )
            elif path in adapted and (isinstance(module, nn.Embedding) or adapted[path]):
                what = "an update" if isinstance(module, nn.Embedding) else adapted[path]
                problems.append(
                    f"{path} has trained tokens (trainable_token_indices) and {what}, expected one "
                    f"of them. Leave {path.rsplit('.', 1)[-1]} out of target_modules, or the "
                    "tokens out."
                )
            elif path in biased:
                problems.append(
                    f"{path} has trained tokens (trainable_token_indices) and a bias that is "
                    "trained, expected one of them. Use bias='none' or 'lora_only'."
                )
    return problems


def misfits(sites: Sequence[TokenSite], saved_rows: Mapping[str, Tensor]) -> list[str]:
    """Return a problem for each place without saved rows, and for saved rows without a place."""
    problems = []
    places = {site.path: site for site in sites}
    for path, site in places.items():
        expected = (len(site.indices), site.weight.shape[1])
        if path not in saved_rows:
            problems.append(f"the adapter has no rows for {path!r}, whose tokens it trains.")
        elif tuple(saved_rows[path].shape) != expected:
            got = tuple(saved_rows[path].shape)
            problems.append(f"the rows of {path} have shape {got}, expected {expected}.")
    repeats = {p: s.path for s in sites for p in s.modules if p != s.path}
    problems += [
        f"the adapter has rows for {path!r}, of which it trains no token here."
        for path in saved_rows
        if path not in places
        and not (path in repeats and _repeats(saved_rows, path, repeats[path]))
    ]
    return problems
