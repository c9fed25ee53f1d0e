"""`lorakit serve`: answer requests with many adapters on one base."""

from __future__ import annotations

from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import TrustRemoteCode, Unquantized, bytes_of
from lorakit.cli.signals import ending
from lorakit.cli.views.console import remark, say
from lorakit.cli.views.serving import show_calls, show_models, show_unmeasured
from lorakit.errors import ConfigError

if TYPE_CHECKING:
    from lorakit.serving.http.server import Server
    from lorakit.serving.ray_deployment.server import RayServer
    from lorakit.serving.speed import Speed

MEASURED = 8
"""Adapters whose speed is measured."""

API_KEY_VARIABLE, ADMIN_KEY_VARIABLE = "LORAKIT_API_KEY", "LORAKIT_ADMIN_KEY"


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BASE|RUN...",
            help="A base (directory or hub id), or runs and adapter directories on one base.",
        ),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            "--adapters", help="Folder of adapters and runs; new ones can be used at once."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=PATH", help="One more adapter; may be repeated."),
    ] = None,
    base_name: Annotated[
        str | None, typer.Option(help="Name of the base in requests; by default its own.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Interface to listen at; 0.0.0.0 for all, which needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Key that callers need; better in a file, or in {API_KEY_VARIABLE}, because "
            "others on this machine can read a command line."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with one such key per line.")
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with keys that may load and unload adapters; or {ADMIN_KEY_VARIABLE}."
        ),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Let other machines in without a key.")
    ] = False,
    adapter_root: Annotated[
        Path | None,
        typer.Option(
            help="Directory below which adapters loaded at run time must be; by default --adapters."
        ),
    ] = None,
    adapter_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory for adapters of each task; by default unlimited."
        ),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Adapter that stays in memory; may be repeated."),
    ] = None,
    kv_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for keys and values of answers.")
    ] = "1GiB",
    prefix_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for prefixes of prompts; 0 for none.")
    ] = "256MiB",
    batch_rows: Annotated[
        int, typer.Option(min=1, help="Largest number of answers decoded together.")
    ] = 32,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt; by default the context of the model.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; by default the context of the model.")
    ] = None,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest size of a request's body.")
    ] = "4MiB",
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; others get 429.")
    ] = 1024,
    max_requests_per_key: Annotated[
        int, typer.Option(min=1, help="Requests of one key at a time; others get 429.")
    ] = 64,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Connections at a time; others get 503.")
    ] = 4096,
    access_log: Annotated[
        Path | None,
        typer.Option(help="File for one JSON line per request; - for stderr."),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Also write prompts and answers to --access-log.")
    ] = False,
    measure: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Measure the speed of up to this many adapters at the start; by default "
            f"{MEASURED}, 0 for none.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the base; by default that of the training.")
    ] = None,
    factor_dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(
            help="Dtype of adapters in memory, by default that of training; bfloat16 halves their "
            "memory and rounds them to three digits."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device; by default the accelerator, else the CPU.")
    ] = None,
    unquantized: Unquantized = False,
    allow_noop: Annotated[
        bool,
        typer.Option("--allow-noop", help="Also serve adapters that change no output."),
    ] = False,
    shutdown_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds to finish running requests at the end.")
    ] = 30.0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve from --replicas processes on Ray.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray that have the base; by default 1.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="host:port of a Ray cluster's head, or auto; by default Ray starts here."
        ),
    ] = None,
    cpus_per_replica: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPUs of a replica; by default an equal share of this machine, or 1 with "
            "--address.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve many adapters on one base, with OpenAI's protocol.

    Raises:
        ConfigError: An option is wrong.
    """
    named = parse_named_paths(adapter or [])
    require_fitting(
        ray,
        measure,
        {
            "--replicas": replicas,
            "--address": address,
            "--cpus-per-replica": cpus_per_replica,
        },
    )
    sizes = {
        "--kv-memory": kv_memory,
        "--prefix-memory": prefix_memory,
        "--max-body": max_body,
        **({} if adapter_memory is None else {"--adapter-memory": adapter_memory}),
    }
    in_bytes = {option: bytes_of(text, option) for option, text in sizes.items()}
    from lorakit.serving.launch import require_ray_serve, require_server_packages

    require_server_packages()
    if ray:
        require_ray_serve()
    import torch

    from lorakit.serving import serve as start_server
    from lorakit.serving.engine import EngineSettings
    from lorakit.serving.http.keys import collect_keys
    from lorakit.serving.http.limits import Limits
    from lorakit.serving.service import ServiceSettings
    from lorakit.serving.store import StoreSettings

    keys = collect_keys(api_key or [], api_key_file, API_KEY_VARIABLE)
    hide_loading_bars()
    say("Starting Ray and the replicas ..." if ray else "Loading the base ...")
    server = start_server(
        list(models or []),
        adapters=named,
        folder=adapters,
        host=host,
        port=port,
        api_keys=keys,
        admin_keys=collect_keys([], admin_key_file, ADMIN_KEY_VARIABLE),
        root=adapter_root,
        base_name=base_name,
        dtype=dtype,
        device=device,
        unquantized=unquantized,
        trust_remote_code=trust_remote_code,
        allows_anybody=no_key,
        shutdown_s=shutdown_seconds,
        access_log=access_log,
        log_prompts=log_prompts,
        limits=Limits(
            body_bytes=in_bytes["--max-body"],
            prompt_tokens=max_prompt_tokens,
            output_tokens=max_output_tokens,
            waiting=max_waiting,
            requests_per_key=max_requests_per_key,
            connections=max_connections,
        ),
        settings=ServiceSettings(
            engine=EngineSettings(
                max_batch_rows=batch_rows,
                kv_bytes=in_bytes["--kv-memory"],
                prefix_cache_bytes=in_bytes["--prefix-memory"],
            ),
            store=StoreSettings(
                memory_bytes=in_bytes.get("--adapter-memory"),
                pinned=frozenset(pin or ()),
                allow_noop=allow_noop,
                factor_dtype=None if factor_dtype is None else getattr(torch, factor_dtype),
            ),
        ),
        replicas=(replicas or 1) if ray else None,
        ray_address=address,
        cpus_per_replica=cpus_per_replica,
    )
    with ExitStack() as at_end, server, ending.raising_interrupt():
        try:
            overview = server.overview()
            show_models(
                overview, measure_adapters(server, MEASURED if measure is None else measure)
            )
            show_calls(server.url, overview, bool(keys))
            server.wait()
        except KeyboardInterrupt:
            remark("Finishing the requests that run; a second signal ends immediately.")
            if ray:  # it prints that its own actors end
                at_end.enter_context(redirect_stdout(StringIO()))
    remark(ending.reason())
    raise typer.Exit(ending.exit_code())


def require_fitting(ray: bool, measure: int | None, of_ray: dict[str, Any]) -> None:
    """Refuse options that mean nothing without Ray, or with it.

    Args:
        ray: Whether --ray is given.
        measure: The value of --measure.
        of_ray: Values of the options for Ray alone; None for those that are not given.

    Raises:
        ConfigError: One is given that has no effect.
    """
    useless = [option for option, value in of_ray.items() if value is not None]
    if useless and not ray:
        raise ConfigError(f"{useless[0]} requires --ray. Add --ray, or leave {useless[0]} out.")
    if ray and measure:
        raise ConfigError(
            f"--measure is wrong: got {measure} together with --ray, expected none, since the "
            "model is in other processes. Leave it out, or measure without --ray."
        )


def parse_named_paths(words: list[str]) -> dict[str, str]:
    """Return the paths of NAME=PATH by name.

    Raises:
        ConfigError: One has no name or no path, or a name is given twice.
    """
    named: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise ConfigError(
                f"--adapter is wrong: got {word!r}, expected NAME=PATH such as german=runs/german. "
                "Write both."
            )
        if name in named:
            raise ConfigError(
                f"--adapter is wrong: got the name '{name}' twice, for {named[name]} and {path}. "
                "Choose another name for one."
            )
        named[name] = path
    return named


def measure_adapters(server: Server | RayServer, most: int) -> dict[str, Speed]:
    """Return the speeds of the first adapters of each kind, `most` in all; none on Ray."""
    from lorakit.serving.http.server import Server
    from lorakit.serving.speed import measure_speeds

    if not most or not isinstance(server, Server):
        return {}
    service = server.service
    served = [(known.name, kind) for known, kind in service.adapters() if known.problem is None]
    speeds: dict[str, Any] = {}
    for model in service.models:
        names = [name for name, kind in served[:most] if kind == model.kind]
        if names:
            speeds |= measure_speeds(model, names)
    left = [name for name, _ in served if name not in speeds]
    if left:
        show_unmeasured(left, most)
    return speeds
