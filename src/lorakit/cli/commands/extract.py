"""`lorakit extract`: make an adapter from a full fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.views.console import closing, heading, number_text, pairs, say, shell_quote, table
from lorakit.errors import ConfigError, first_few

if TYPE_CHECKING:
    from lorakit.adapters import Extraction
    from lorakit.config import LoraConfig


def extract(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="The model before fine-tuning: a directory or a hub id."
        ),
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The same model fine-tuned in full.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="New directory for the adapter.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Modules and rank, as in a recipe: lora.r=16 lora.target_modules=[q_proj,v_proj].",
        ),
    ] = None,
    modules: Annotated[
        bool, typer.Option("--modules", help="Print one line for every module.")
    ] = False,
) -> None:
    """Factorize the changes of full fine-tuning into an adapter.

    Weights are read one at a time. The share of ‖ΔW‖² that the rank keeps is shown for each kind
    of module; changes to other tensors are listed.
    """
    config = parse_settings(settings or [])
    from lorakit.adapters import extract as extracted
    from lorakit.adapters.formats.companions import refuse_occupied, write_with_companions

    refuse_occupied(output)
    hide_loading_bars()
    say(f"Comparing {tuned} with {base} ...")
    made = extracted(base, tuned, config)
    heading(f"{len(made.kept)} modules")
    table(*(module_rows(made) if modules else kind_rows(made)))
    lost = sum(norm**2 for norm in made.left_out.values()) ** 0.5
    pairs(
        {
            "kept of ‖ΔW‖² in total": share_text(made.share),
            "parameters": f"{made.adapter.count_parameters():,}",
            "other changes, left out": f"{len(made.left_out)} tensors, of norm "
            f"{number_text(lost)}: {largest_changes(made.left_out)}"
            if made.left_out
            else "nothing",
        }
    )
    files = write_with_companions(made.adapter, output, tuned)
    name = shell_quote(output)
    next_commands = {f"lorakit inspect {name}": "shows its contents"}
    if made.share < 0.9:
        higher = f"lora.r={2 * made.adapter.config.r}"
        next_commands[
            f"lorakit extract {shell_quote(base)} {shell_quote(tuned)} {name}-2r {higher}"
        ] = "keeps more"
    closing(files, next_commands)


def parse_settings(words: list[str]) -> LoraConfig:
    """Return the adapter settings of dotted overrides such as `lora.r=16`.

    Raises:
        ConfigError: An override is malformed, belongs to another section, or a setting is unknown.
    """
    from lorakit.config import LoraConfig
    from lorakit.recipes.overrides import apply_overrides

    values: dict[str, Any] = {}
    apply_overrides(words, values)
    others = [key for key in values if key != "lora"]
    if others:
        raise ConfigError(
            f"Cannot extract an adapter with {others[0]!r}: expected settings of the lora section. "
            "Write lora.r=16, for example."
        )
    return LoraConfig.parse(values.get("lora") or {}, "the settings (lora)")


def module_rows(made: Extraction) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for each module."""
    rows = [
        (path, made.adapter.factors[path][0].shape[0], number_text(norm), share_text(kept))
        for (path, kept), norm in zip(made.kept.items(), made.norms.values(), strict=True)
    ]
    return ("module", "r", "norm of ΔW", "kept"), rows


def kind_rows(made: Extraction) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for all modules of the same name and rank."""
    kinds: dict[tuple[str, int], list[str]] = {}
    for path in made.kept:
        r = made.adapter.factors[path][0].shape[0]
        kinds.setdefault((path.rsplit(".", 1)[-1], r), []).append(path)
    rows = []
    for (name, r), paths in kinds.items():
        energy = sum(made.norms[path] ** 2 for path in paths)
        kept = sum(made.kept[path] * made.norms[path] ** 2 for path in paths)
        worst = min(paths, key=lambda path: made.kept[path])
        rows.append(
            (
                name,
                len(paths),
                r,
                number_text(energy**0.5),
                share_text(kept / energy if energy else 1.0),
                share_text(made.kept[worst]),
                worst,
            )
        )
    return ("modules", "count", "r", "norm of ΔW", "kept", "least", "in"), rows


def share_text(share: float) -> str:
    """Return a share in per cent.

    >>> share_text(0.98765)
    '98.8%'
    """
    return f"{100 * share:.3g}%"


def largest_changes(changes: Any, most: int = 3) -> str:
    """Return the names of the largest changes and the number of others."""
    return first_few(sorted(changes, key=lambda name: -changes[name]), most)
