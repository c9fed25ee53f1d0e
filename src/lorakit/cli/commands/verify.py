"""`lorakit verify`: whether an adapter is complete, fits its base, acts, and predicts as it did."""

from __future__ import annotations

from typing import Annotated

import typer

from lorakit.cli.paths import adapter_location
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import BaseModel, TrustRemoteCode
from lorakit.cli.views.console import closing, say, shell_quote, table
from lorakit.errors import RequirementError


def verify(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A run, an adapter directory, or a hub id.")
    ],
    base_model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check that an adapter is complete, fits its base and predicts as in training.

    The files have to be from one save, all numbers finite, the weights of the base those of the
    training, and the outputs others than those of the base. Where a run has recorded predictions of
    classes, labels, tags or numbers, the first of them have to come out again. A failed check ends
    the command with exit code 1.

    Raises:
        RequirementError: A check failed.
    """
    location = adapter_location(adapter)
    say(f"Verifying {location} ...")
    from lorakit.inference import verify_adapter

    hide_loading_bars()
    checks = list(verify_adapter(location, base_model, trust_remote_code=trust_remote_code))
    rows = [(check.name, check.outcome, check.finding) for check in checks]
    table(("check", "outcome", "finding"), rows)
    failed = [check.name for check in checks if check.outcome == "failed"]
    if failed:
        raise RequirementError(
            f"The adapter does not pass: got {len(failed)} failed "
            f"{'check' if len(failed) == 1 else 'checks'} ({', '.join(failed)}), expected none. "
            "The table above says what was found."
        )
    missing = [check.name for check in checks if check.outcome == "not checked"]
    say("Nothing is wrong" + (f"; {len(missing)} not checked." if missing else "."))
    name = shell_quote(adapter)
    if "fit" in missing:
        closing([], {f"lorakit verify {name} --base-model BASE": "checks it with its base"})
        return
    base = "" if base_model is None else f" --base-model {shell_quote(base_model)}"
    closing(
        [],
        {
            f"lorakit inspect {name}": "shows what the adapter contains",
            f'lorakit generate {name} "..."{base}': "tries it",
        },
    )
