"""Which modules a configuration selects: pure name matching, without torch."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lorakit.config import LoraConfig, matching_pattern
from lorakit.config.patterns import match_pattern
from lorakit.errors import did_you_mean

ALL_LINEAR = "all-linear"


def selects_all(config: LoraConfig) -> bool:
    """Return whether a configuration names no module, so every linear layer is adapted."""
    return config.target_modules in (None, ALL_LINEAR)


def name_matches(names: str | Sequence[str], path: str) -> bool:
    r"""Return whether a module path is selected.

    Args:
        names: A regex that must match the path in full, or names: a name selects the module whose
            path equals it or ends in "." + it. The meaning is PEFT's.
        path: Module path such as "model.layers.0.self_attn.q_proj".

    >>> name_matches(["q_proj"], "model.layers.0.self_attn.q_proj")
    True
    >>> name_matches(["q_proj"], "model.layers.0.self_attn.xq_proj")
    False
    >>> name_matches(r".*\.(q|k)_proj", "model.layers.0.self_attn.q_proj")
    True
    """
    if isinstance(names, str):
        return match_pattern(names, path, whole=True) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def is_inside(path: str, outer: Iterable[str]) -> bool:
    """Return whether a module is one of these, or inside one of them, all by path."""
    return any(path == one or path.startswith(f"{one}.") for one in outer)


def layer_index(path: str, layers_pattern: str | Sequence[str] | None = None) -> int | None:
    """Return the position of a module in the model's list of layers, counted from 0.

    Args:
        path: Module path.
        layers_pattern: Names of the module lists to count in; None takes the first list.

    >>> layer_index("model.layers.3.self_attn.q_proj")
    3
    >>> layer_index("model.layers.3.self_attn.q_proj", "h") is None
    True
    """
    if layers_pattern is None:
        found = re.match(r".*?\.(\d+)\.", f".{path}")
        return int(found[1]) if found else None
    for pattern in _as_list(layers_pattern):
        found = match_pattern(rf".*\.{pattern}\.(\d+)\.", f".{path}")
        if found:
            return int(found[1])
    return None


def match_targets(
    config: LoraConfig,
    adaptable: Sequence[str],
    default: Sequence[str],
    parameters: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Select the modules to adapt.

    Args:
        config: Gives target_modules, exclude_modules, layers_to_transform and the patterns.
        adaptable: Paths of every module that could be adapted, in the model's order.
        default: The adaptable modules that "all-linear" selects.
        parameters: Paths of the adapted parameters; patterns may name them.
        heads: Paths of the heads that `exclude_modules` excludes.

    Returns: The selected paths in the model's order, and the problems found: a name that matches
        nothing, an exclusion that excludes nothing, a layer index or pattern that fits nothing.
    """
    problems: list[str] = []
    targets = config.target_modules
    if targets is None or selects_all(config):
        selected = list(default)
        if not selected and not parameters:
            problems.append("The model has no linear layer to adapt besides its output head.")
    else:
        selected = [path for path in adaptable if name_matches(targets, path)]
        if missed := _find_idle(targets, adaptable):
            problems.append(no_match_message("target_modules", missed, adaptable))

    selected = _without_excluded(config, selected, heads, problems)
    selected = _in_layers(config, selected, problems)
    for field in ("rank_pattern", "alpha_pattern", "enable_lora"):
        for pattern in getattr(config, field):
            paths = [*selected, *parameters]
            if paths and not any(matching_pattern([pattern], path) for path in paths):
                problems.append(no_match_message(field, [pattern], paths))
    return selected, problems


def _find_idle(names: str | Sequence[str], paths: Sequence[str]) -> str | list[str]:
    """Return the names that select none of these paths, or a regex that does."""
    if isinstance(names, str):
        return "" if any(name_matches(names, path) for path in paths) else names
    return [name for name in names if not any(name_matches([name], path) for path in paths)]


def _without_excluded(
    config: LoraConfig, selected: list[str], heads: Sequence[str], problems: list[str]
) -> list[str]:
    excluded = config.exclude_modules
    if not excluded or not selected:
        return selected
    if idle := _find_idle(excluded, (*selected, *heads)):
        problems.append(no_match_message("exclude_modules", idle, selected))
    kept = [path for path in selected if not name_matches(excluded, path)]
    if not kept:
        problems.append(f"exclude_modules={_show_names(excluded)} excludes every selected module.")
    return kept


def _in_layers(config: LoraConfig, selected: list[str], problems: list[str]) -> list[str]:
    """Return the selected modules in the layers to adapt, and, as PEFT, those of a whole path."""
    wanted = config.layers_to_transform
    if wanted is None and config.layers_pattern is not None:
        problems.append(
            f"layers_pattern={config.layers_pattern!r} says where layers are counted, but "
            "layers_to_transform names none. Give both, or neither."
        )
    if wanted is None or not selected:
        return selected
    if not wanted:
        problems.append("layers_to_transform=[] selects no layer. Leave it out to adapt all.")
        return selected
    index_of = {path: layer_index(path, config.layers_pattern) for path in selected}
    present = sorted({index for index in index_of.values() if index is not None})
    missing = [index for index in wanted if index not in present]
    if missing:
        there = f"layers {present[0]} to {present[-1]}" if present else "no numbered layers"
        problems.append(
            f"layers_to_transform={list(wanted)} asks for layers {missing}, but the selected "
            f"modules are in {there}. Layers are counted from 0."
        )
    whole = config.target_modules if isinstance(config.target_modules, tuple) else ()
    return [path for path in selected if path in whole or index_of[path] in wanted]


def no_match_message(field: str, names: str | Iterable[str], paths: Sequence[str]) -> str:
    """Return a message that names match no module, with the existing names and the nearest one."""
    listed = [names] if isinstance(names, str) else list(names)
    last_parts = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
    candidates = [*last_parts, *paths, *([ALL_LINEAR] if field == "target_modules" else [])]
    if isinstance(names, str) and names in candidates:
        hint = (
            " A string is a regular expression for whole paths: write a list for names, "
            f"{field}=['{names}']."
        )
    else:
        hint = next((h for n in listed if (h := did_you_mean(n, candidates))), "")
    available = ", ".join(last_parts[:20]) + (", …" if len(last_parts) > 20 else "")
    shown = f"{field}={_show_names(names)}"
    return f"No module matched {shown}. Modules here: {available or 'none'}.{hint}"


def _as_list(patterns: str | Iterable[str] | None) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def _show_names(names: str | Iterable[str]) -> str:
    return repr(names) if isinstance(names, str) else repr(list(names))


def compact_targets(selected: Sequence[str], all_paths: Sequence[str]) -> str | tuple[str, ...]:
    """Return the shortest names that select exactly these modules, for the adapter file.

    Readers of the file match names the same way, so the last part of a path is enough when every
    module that ends in it is selected; otherwise the full path is written. If that is also the end
    of another module's path, only a regex distinguishes them.

    >>> compact_targets(["a.0.q", "a.1.q", "a.0.v"], ["a.0.q", "a.1.q", "a.0.v", "a.1.v"])
    ('a.0.v', 'q')
    >>> compact_targets(["q"], ["q", "a.q"])
    'q'
    """
    ending_everywhere = Counter(path.rsplit(".", 1)[-1] for path in all_paths)
    ending_selected = Counter(path.rsplit(".", 1)[-1] for path in selected)
    names = set()
    for path in selected:
        last = path.rsplit(".", 1)[-1]
        names.add(last if ending_selected[last] == ending_everywhere[last] else path)
    if names & _suffixes(set(all_paths) - set(selected)):
        return "|".join(re.escape(path) for path in selected)
    return tuple(sorted(names))


def shortest_names(selected: Sequence[str], all_paths: Sequence[str]) -> tuple[str, ...] | None:
    """Return the shortest ends of these paths that no other path ends in, or None.

    If an end would begin with a number, the whole path is used, which is clearer.

    >>> shortest_names(["a.0.g.w", "a.1.g.w"], ["a.0.g.w", "a.1.g.w", "a.0.h.w"])
    ('g.w',)
    >>> shortest_names(["g.w"], ["g.w", "a.g.w"]) is None
    True
    """
    taken = _suffixes(set(all_paths) - set(selected))
    names = set()
    for path in selected:
        *outer, last = path.split(".")
        end, ends = last, [last]
        while outer and not outer[-1].isdigit():
            end = f"{outer.pop()}.{end}"
            ends.append(end)
        name = next((end for end in (*ends, path) if end not in taken), None)
        if name is None:
            return None
        names.add(name)
    return tuple(sorted(names))


def _suffixes(paths: Iterable[str]) -> set[str]:
    """Return every name that selects one of these paths."""
    parts = (path.split(".") for path in paths)
    return {".".join(part[start:]) for part in parts for start in range(len(part))}


def token_indices_of(config: LoraConfig, path: str) -> tuple[int, ...] | None:
    """Return the tokens of a module that a configuration trains; None if it names none.

    >>> token_indices_of(LoraConfig(trainable_token_indices={"embed_tokens": [7, 5]}), "lm_head")
    >>> token_indices_of(LoraConfig(trainable_token_indices=[7, 5]), "model.embed_tokens")
    (7, 5)
    """
    wanted = config.trainable_token_indices
    if not isinstance(wanted, dict):
        return wanted
    return next((rows for name, rows in wanted.items() if name_matches([name], path)), None)
