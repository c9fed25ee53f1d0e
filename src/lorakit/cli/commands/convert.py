"""`lorakit convert`: write an adapter in another format or of another rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lorakit.cli.paths import adapter_location, require_place_of_file
from lorakit.cli.views.console import closing, number_text, pairs, say, shell_quote
from lorakit.errors import ConfigError, MissingFileError, OutputExistsError

if TYPE_CHECKING:
    from lorakit.adapters import Adapter

_STATE_DICTS = (".pt", ".pth", ".bin", ".safetensors")


def convert(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="A run, an adapter directory, a hub id, or a file with a loralib state dict.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="New directory (peft, portable) or file (gguf, loralib)."
        ),
    ],
    to: Annotated[
        Literal["peft", "portable", "gguf", "loralib"],
        typer.Option(
            help="peft: PEFT's files; portable: PEFT's files that vLLM, TGI and llama.cpp's "
            "converter scale correctly; gguf: a file for llama.cpp; loralib: a state dict."
        ),
    ] = "peft",
    rank: Annotated[
        int | None, typer.Option(help="Resize every module to this rank, with the least error.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Base model: for gguf, source of config.json; otherwise recorded in the adapter."
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(help="For a loralib state dict: its lora_alpha, which it does not store."),
    ] = None,
    enable_lora: Annotated[
        str | None,
        typer.Option(
            help="For a loralib state dict: adapted slices of its MergedLinears, such as "
            "true,false,true."
        ),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="For a loralib state dict: paths of adapted embeddings, separated by commas."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"] | None,
        typer.Option(help="Dtype of the tensors in a gguf file; by default float32."),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read tensors from a pickle (.bin, .pt); code in it does not run.",
        ),
    ] = False,
    allow_edited_config: Annotated[
        bool,
        typer.Option(
            "--allow-edited-config",
            help="Accept an adapter_config.json that was edited by hand.",
        ),
    ] = False,
) -> None:
    """Write an adapter in another format, or of another rank.

    The updates stay the same, except for the error of a lower rank, which is shown. What a format
    cannot express is an error that names it.
    """
    is_state_dict = Path(adapter).is_file() and Path(adapter).suffix in _STATE_DICTS
    if is_state_dict and Path(adapter).stem == "adapter_model":
        raise ConfigError(
            f"{adapter} is one of an adapter's two files: expected the directory that holds both. "
            f"Name {Path(adapter).parent}."
        )
    if not is_state_dict and (lora_alpha is not None or enable_lora or embeddings):
        raise ConfigError(
            "--lora-alpha, --enable-lora and --embeddings apply to a loralib state dict only; got "
            f"{adapter}, expected a file ending in {', '.join(_STATE_DICTS)}. Remove them."
        )
    if is_state_dict and allow_edited_config:
        raise ConfigError(
            f"--allow-edited-config applies to an adapter's directory only; got {adapter}, a state "
            "dict without a configuration. Remove it."
        )
    if to != "gguf" and dtype is not None:
        raise ConfigError(
            f"--dtype applies to --to gguf only; got --to {to}, which keeps the dtype of each "
            "tensor. Remove it."
        )
    if to == "loralib" and base_model is not None:
        raise ConfigError(
            "--base-model does not apply to --to loralib: a state dict does not record its base. "
            "Remove it."
        )
    refuse_output(output, to)
    is_pickled = allow_pickle and (Path(adapter) / "adapter_model.bin").is_file()
    location = adapter if is_state_dict or is_pickled else adapter_location(adapter)
    say(f"Reading {location} ...")
    if is_state_dict:
        loaded = from_state_dict(
            Path(adapter), lora_alpha, enable_lora, embeddings, base_model, allow_pickle
        )
    else:
        from lorakit.adapters import Adapter

        loaded = Adapter.load(
            location, allow_pickle=allow_pickle, allow_edited_config=allow_edited_config
        )
    facts: dict[str, Any] = {"modules": len(loaded.factors)}
    if rank is not None:
        from lorakit.adapters import resize_adapter

        resized = resize_adapter(loaded, rank)
        loaded = resized.adapter
        worst = max(resized.errors, key=lambda path: resized.errors[path])
        facts["rank"] = rank
        facts["error ‖ΔW − ΔW_r‖ / ‖ΔW‖"] = (
            f"{error_text(resized.error)} in total, largest {error_text(resized.errors[worst])} "
            f"in {worst}"
        )
    if to == "loralib":
        loaded = with_one_alpha(loaded)
        facts["lora_alpha of the layers"] = number_text(loaded.config.lora_alpha)
    companions = None if is_state_dict else location
    files = write(loaded, output, to, base_model, dtype or "float32", companions)
    pairs(facts)
    closing(files, next_commands(output, to))


def write(
    adapter: Adapter,
    output: Path,
    to: str,
    base_model: str | None,
    dtype: Literal["float32", "float16"],
    companions: str | Path | None,
) -> list[Path]:
    """Write an adapter in a format; return the paths written."""
    from dataclasses import replace

    from lorakit.adapters import portable_adapter, save_gguf, to_loralib
    from lorakit.adapters.formats.companions import write_with_companions

    if to == "gguf":
        return [save_gguf(adapter, output, base_config(adapter, base_model), dtype=dtype)]
    if to == "loralib":
        return [write_state_dict(to_loralib(adapter), output)]
    if base_model is not None:
        adapter = replace(adapter, base_model=base_model)
    made = portable_adapter(adapter) if to == "portable" else adapter
    return write_with_companions(made, output, companions)


def with_one_alpha(adapter: Adapter) -> Adapter:
    """Return an adapter with the same updates and one lora_alpha, as who reads a state dict has."""
    from dataclasses import replace

    config = adapter.config
    shares = {path: config.alpha_for(path) / config.lora_alpha for path in adapter.factors}
    factors = {
        path: (A, B if shares[path] == 1 else B * shares[path])
        for path, (A, B) in adapter.factors.items()
    }
    config = config.model_copy(update={"alpha_pattern": {}})
    return replace(adapter, config=config, factors=factors)


def write_state_dict(tensors: dict[str, Any], output: Path) -> Path:
    """Write tensors as safetensors, or with torch.save for users of loralib."""
    from lorakit.files.atomic import replacing_file

    tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(output) as partial:
        if output.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, partial)
        else:
            import torch

            torch.save(tensors, partial)
    return output


def refuse_output(output: Path, to: str) -> None:
    """Raise if the output exists or has an unknown suffix."""
    if to in ("peft", "portable"):
        from lorakit.adapters.formats.companions import refuse_occupied

        refuse_occupied(output)
        return
    if output.exists():
        raise OutputExistsError(
            f"Cannot write {output}: it already exists, expected the name of a new file. Choose "
            "another name."
        )
    require_place_of_file(output, "the adapter")
    if to == "loralib" and output.suffix not in _STATE_DICTS:
        raise ConfigError(
            f"Unknown kind of state dict: got {output.name!r}, expected a name ending in "
            f"{', '.join(_STATE_DICTS)}. .safetensors is safe to read; loralib's examples read .pt."
        )


def from_state_dict(
    file: Path,
    lora_alpha: float | None,
    enable_lora: str | None,
    embeddings: str | None,
    base_model: str | None,
    allow_pickle: bool,
) -> Adapter:
    """Read a loralib state dict.

    Raises:
        ConfigError: lora_alpha is missing, or enable_lora is not a list of true and false.
    """
    if lora_alpha is None:
        raise ConfigError(
            f"No lora_alpha for {file}: a loralib state dict does not store it. Give the "
            "--lora-alpha that the layers were built with (loralib's default is 1)."
        )
    from lorakit.adapters import from_loralib
    from lorakit.adapters.peft_files.files import read_tensors

    tensors = read_tensors(file, allow_pickle=allow_pickle)
    given = None if enable_lora is None else parse_slices(enable_lora)
    return from_loralib(
        tensors,
        lora_alpha,
        enable_lora=given,
        embeddings=[path.strip() for path in embeddings.split(",")] if embeddings else (),
        base_model=base_model,
        where=str(file),
    )


def parse_slices(text: str) -> list[bool]:
    """Return the adapted slices of `--enable-lora`.

    >>> parse_slices("true,false,true")
    [True, False, True]
    """
    words = [word.strip().lower() for word in text.split(",")]
    if not set(words) <= {"true", "false"}:
        raise ConfigError(
            f"Cannot read --enable-lora: got {text!r}, expected true and false separated by "
            "commas. Write true,false,true, for example."
        )
    return [word == "true" for word in words]


def base_config(adapter: Adapter, base_model: str | None) -> dict[str, Any]:
    """Return config.json of the base.

    Raises:
        ConfigError: No base is named.
        MissingFileError: The file does not exist.
    """
    name = base_model or adapter.base_model
    if name is None:
        raise ConfigError(
            "No base model for the GGUF file: the adapter records none, but its layers and heads "
            "are needed. Give --base-model."
        )
    from lorakit.files.json_files import read_json_object
    from lorakit.libraries.hub import fetch_from_hub, is_hub_id

    folder = Path(name)
    if is_hub_id(name, is_base=True):
        folder = fetch_from_hub(name, ("config.json",), what="base model")
    file = folder / "config.json"
    if not file.is_file():
        raise MissingFileError(
            f"No config.json in {folder}, expected that of the base model. Give --base-model."
        )
    try:
        return read_json_object(file)
    except ValueError as error:
        raise ConfigError(
            f"Cannot read {file}: {error}, expected the configuration of the base model. Save or "
            "fetch it again."
        ) from None


def error_text(error: float) -> str:
    """Return a relative error in per cent.

    >>> error_text(0.01234), error_text(0.0)
    ('1.23%', '0%')
    """
    return f"{number_text(float(f'{100 * error:.3g}'))}%"


def next_commands(output: Path, to: str) -> dict[str, str]:
    """Return the next commands for a format."""
    name = shell_quote(output)
    if to == "gguf":
        return {f"llama-cli -m BASE.gguf --lora {name}": "runs llama.cpp with it"}
    if to == "loralib":
        loading = "torch.load" if output.suffix != ".safetensors" else "load_file"
        return {f"model.load_state_dict({loading}({str(output)!r}), strict=False)": "loads it"}
    if to == "portable":
        serve = f"vllm serve BASE --enable-lora --lora-modules mine={name}"
        return {serve: "serves it", f"lorakit inspect {name}": "shows its contents"}
    return {f"lorakit inspect {name}": "shows its contents"}
