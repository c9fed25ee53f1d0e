"""Files that start another server with an adapter, and try it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.adapters.formats.companions import refuse_occupied, write_with_companions
from lorakit.errors import ConfigError
from lorakit.files.atomic import creating_directory
from lorakit.recipes import yaml_text
from lorakit.serving.exporting.vllm_adapter import TEMPLATE_FILE, VllmAdapter

ADAPTER_FOLDER = "adapter"
_STORAGE = re.compile(r"(s3|gs|abfss|azure)://[^/\s]+(/\S*)?")
_UPLOADS = {"s3": "aws s3 cp --recursive", "gs": "gcloud storage cp --recursive"}
_ADAPTERS_PER_REPLICA = 16

_HERE = 'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)'


def write_export(exported: VllmAdapter, files: Mapping[str, str], output: Path) -> list[Path]:
    """Write the adapter and files beside it; the directory appears atomically.

    Args:
        exported: The adapter.
        files: Contents by name.
        output: A new or empty directory.

    Returns: The paths written.

    Raises:
        OutputExistsError: The directory holds files.
        DiskError: It cannot be written.
    """
    refuse_occupied(output)
    with creating_directory(output) as partial:
        folder = partial / ADAPTER_FOLDER
        write_with_companions(exported.adapter, folder, exported.companions)
        if exported.template is not None:
            (folder / TEMPLATE_FILE).write_text(exported.template, encoding="utf-8")
        for name, content in files.items():
            (partial / name).write_text(content, encoding="utf-8", newline="\n")
    return [output / ADAPTER_FOLDER, *(output / name for name in files)]


def vllm_files(exported: VllmAdapter) -> dict[str, str]:
    """Return a script that starts vLLM with the adapter, and one that asks it."""
    words = [f'--lora-modules "{exported.name}=$here/{ADAPTER_FOLDER}"']
    for option, value in exported.engine_options.items():
        flag = f"--{option.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
    if exported.template is not None:
        words.append(f'--chat-template "$here/{ADAPTER_FOLDER}/{TEMPLATE_FILE}"')
    lines = [
        "#!/bin/sh",
        f"# Starts vLLM with the adapter {exported.name}. Further options are passed on to it:",
        "#   sh serve.sh --port 8001",
        _HERE,
        f"exec vllm serve {shlex.quote(exported.base)} \\",
        *(f"    {word} \\" for word in words),
        '    "$@"',
    ]
    return {
        "serve.sh": "\n".join(lines) + "\n",
        "request.sh": _request_script(exported, exported.name),
    }


def ray_files(exported: VllmAdapter, storage: str) -> dict[str, str]:
    """Return the configuration of an application of Ray Serve, its start and a request.

    Args:
        exported: The adapter.
        storage: Address of a folder in cloud storage, whose subfolders are adapters; Ray loads
            them from nowhere else.

    Raises:
        ConfigError: The address is none.
    """
    match = _STORAGE.fullmatch(storage)
    if match is None:
        raise ConfigError(
            f"--storage cannot be used: got {storage!r}, expected a folder of adapters in cloud "
            "storage such as s3://bucket/adapters, because Ray loads adapters from S3 (s3://), "
            "Google (gs://) and Azure (abfss://, azure://) alone. Give its address."
        )
    folder = storage.rstrip("/")
    base_name = Path(exported.base).name.replace(":", "-")
    engine = {**exported.engine_options, "max_loras": _ADAPTERS_PER_REPLICA}
    engine |= {} if exported.template is None else {"chat_template": exported.template}
    llm: dict[str, Any] = {
        "model_loading_config": {"model_id": base_name, "model_source": exported.base},
        "lora_config": {
            "dynamic_lora_loading_path": folder,
            "max_num_adapters_per_replica": _ADAPTERS_PER_REPLICA,
        },
        "engine_kwargs": engine,
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
    }
    application = {
        "name": "adapters",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [llm]},
    }
    place = shlex.quote(f"{folder}/{exported.name}")
    upload = f'{_UPLOADS.get(match[1], "azcopy copy --recursive")} "$here/{ADAPTER_FOLDER}" {place}'
    lines = [
        "#!/bin/sh",
        f"# Copies the adapter {exported.name} to where Ray finds it, and starts the application.",
        "set -e",
        _HERE,
        upload,
        'exec serve run "$here/serve.yaml" "$@"',
    ]
    return {
        "serve.yaml": yaml_text.to_text({"applications": [application]}),
        "serve.sh": "\n".join(lines) + "\n",
        "request.sh": _request_script(exported, f"{base_name}:{exported.name}"),
    }


def _request_script(exported: VllmAdapter, model: str) -> str:
    path, body = exported.request(model)
    data = shlex.quote(json.dumps(body, indent=2, ensure_ascii=False))
    return (
        "#!/bin/sh\n"
        "# Asks the server: sh request.sh [URL]\n"
        f'exec curl --fail-with-body "${{1:-http://localhost:8000}}{path}" \\\n'
        "    -H 'content-type: application/json' \\\n"
        f"    -d {data}\n"
    )
