"""`lorakit export`: prepare a run's adapter for another server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorakit.cli.paths import adapter_location, path_beside
from lorakit.cli.shared_arguments import RunOrAdapter
from lorakit.cli.views.console import closing, heading, pairs, say, shell_quote
from lorakit.errors import ConfigError, MissingFileError

_TARGETS = {"vllm": "vLLM", "ray": "Ray Serve (with vLLM)"}


def export(
    run: RunOrAdapter,
    target: Annotated[
        Literal["vllm", "ray"],
        typer.Option(
            "--for", help="vllm: a script for `vllm serve`; ray: an application of Ray Serve."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New directory; by default the run's name and -vllm."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the adapter in requests; by default the run's.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Base model; by default the one recorded in the adapter.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="For ray: a folder of adapters in cloud storage, such as s3://b/a."
        ),
    ] = None,
) -> None:
    """Prepare a run's adapter for vLLM or Ray Serve.

    Writes the adapter in a form that both scale correctly, a script that starts the server, and a
    request to try it. What the server cannot do is an error that names it.

    Raises:
        ConfigError: Options do not go together.
        MissingFileError: There is no such directory.
    """
    if (target == "ray") != (storage is not None):
        raise ConfigError(
            "--for ray needs --storage: got none, expected a folder of adapters in cloud storage "
            "such as s3://bucket/adapters, because Ray loads adapters from there. Give its address."
            if storage is None
            else "--storage applies to --for ray only: vLLM reads the adapter from its directory. "
            "Leave it out."
        )
    location = adapter_location(run)
    if not Path(location).is_dir():
        raise MissingFileError(
            f"No run or adapter directory {run}: expected an existing directory. Check the path."
        )
    place = output or path_beside(run, f"-{target}")
    from lorakit.adapters.formats.companions import refuse_occupied
    from lorakit.serving.exporting.launch_files import ray_files, vllm_files, write_export
    from lorakit.serving.exporting.vllm_adapter import read_for_vllm

    refuse_occupied(place)
    exported = read_for_vllm(location, _TARGETS[target], name=name, base_model=base_model)
    files = vllm_files(exported) if storage is None else ray_files(exported, storage)
    written = write_export(exported, files, place)
    pairs(
        {
            "adapter": exported.name,
            "base": exported.base,
            "rank": f"{exported.adapter.config.r}, max_lora_rank {exported.max_rank}",
            "chat template": None if exported.template is None else "the adapter's",
        }
    )
    heading("Note")
    for note in exported.notes:
        say(f"  {note}")
    script, request = shell_quote(place / "serve.sh"), shell_quote(place / "request.sh")
    closing(written, {f"sh {script}": "starts the server", f"sh {request}": "asks it"})
