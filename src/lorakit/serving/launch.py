"""`lorakit.serve`: from what is to be served to a server that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.libraries.extras import require_package
from lorakit.serving.service import ServiceSettings
from lorakit.serving.sources import find_source

if TYPE_CHECKING:
    from lorakit.serving.http.limits import Limits
    from lorakit.serving.http.server import Server
    from lorakit.serving.ray_deployment.server import RayServer


def require_server_packages() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        ConfigError: One is missing.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "llguidance"):
        require_package(module, "Serving adapters")


def require_ray_serve() -> None:
    """Check that the packages of the extra `serve-ray` are installed.

    Raises:
        ConfigError: One is missing.
    """
    for module in ("ray", "grpc"):
        require_package(module, "Serving on Ray", "serve-ray")


def serve(
    models: str | Path | Sequence[str | Path] = (),
    *,
    adapters: Mapping[str, str | Path] | None = None,
    folder: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (),
    root: str | Path | None = None,
    base_name: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    unquantized: bool = False,
    trust_remote_code: bool = False,
    allows_anybody: bool = False,
    shutdown_s: float = 30.0,
    access_log: str | Path | None = None,
    log_prompts: bool = False,
    limits: Limits | None = None,
    settings: ServiceSettings | None = None,
    replicas: int | None = None,
    ray_address: str | None = None,
    cpus_per_replica: int | None = None,
) -> Server | RayServer:
    """Serve adapters on OpenAI's protocol, in threads of this process or on Ray Serve.

    Args:
        models: A base (a directory or a hub id), or runs and adapter directories on one base,
            which are named after their directories.
        adapters: Further runs, adapter directories or hub ids by name.
        folder: A folder of adapters and runs; those that appear there can be used at once.
        host: Name or address of the interface to listen at.
        port: Port; 0 takes a free one.
        api_keys: Keys that callers need; none lets everybody call who can reach the server.
        admin_keys: Keys that may also load and unload adapters.
        root: Directory below which adapters must lie that are loaded at run time; None is the
            folder.
        base_name: Name of the base alone; None takes the hub id, or the directory's name.
        dtype: dtype of the base's weights; None takes that of the trainings.
        device: None takes the accelerator if there is one, else the CPU.
        unquantized: Whether to load the base as it is saved, even if it was quantized in training.
        trust_remote_code: Whether code that comes with the base or a tokenizer may run.
        allows_anybody: Whether other machines may reach a server without keys.
        shutdown_s: Seconds within which `stop` finishes the requests that run.
        access_log: File for a line about each request, "-" for stderr; None for no log.
        log_prompts: Whether these lines have prompts and answers.
        limits: What is refused.
        settings: Memory and batches.
        replicas: Number of processes on Ray that have the base; None for this process, without Ray.
            Paths must lead to the same files for all of them.
        ray_address: "host:port" of the head of a Ray cluster, or "auto" for the cluster on this
            machine; None starts Ray here.
        cpus_per_replica: CPUs of each process on Ray; None takes an equal share of this machine,
            or 1 on a cluster at an address.

    Returns: The server, which answers at its `url` until `stop`, or until the end of a `with`
        block; `wait` waits for that.

    Raises:
        ConfigError: There is nothing to serve, the adapters need different bases, the address is
            taken, or a package is not installed.
        MissingFileError: A path does not exist.
        AdapterFileError: An adapter that is named cannot be used.
        QuantizationError: The base cannot be quantized.
        ClusterError: Ray cannot be reached, is too small, or serves something else.
    """
    require_server_packages()
    if replicas is not None:
        require_ray_serve()
    from lorakit.serving.http.context import ContextSettings
    from lorakit.serving.http.keys import ApiKeys
    from lorakit.serving.http.limits import Limits
    from lorakit.serving.http.server import Address, Server

    address, keys = Address(host, port, allows_anybody), ApiKeys(api_keys, admin_keys)
    address.require_safe(keys)
    given = [models] if isinstance(models, str | Path) else list(models)
    source = find_source(
        given,
        adapters=adapters,
        folder=folder,
        root=root,
        base_name=base_name,
        dtype=dtype,
        device=device,
        unquantized=unquantized,
        trust_remote_code=trust_remote_code,
    )
    what = ContextSettings(
        source,
        settings or ServiceSettings(),
        keys,
        limits or Limits(),
        None if access_log is None else Path(access_log),
        log_prompts,
    )
    if replicas is not None:
        from lorakit.serving.ray_deployment.server import RayOptions, serve_on_ray

        options = RayOptions(replicas, ray_address, cpus_per_replica)
        return serve_on_ray(what, address, options, shutdown_s)
    with ExitStack() as on_failure:
        listening = on_failure.enter_context(address.bind())
        context = what.build()
        on_failure.callback(context.close)
        context.service.start()
        context.service.require_named()
        server = Server(context, listening, shutdown_s).start()
        on_failure.pop_all()
    return server
