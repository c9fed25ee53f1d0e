"""`lorakit generate`: try an adapter on texts: continue, answer, classify or tag them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.paths import adapter_location
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import (
    ApiKeyFile,
    BaseModel,
    SamplingSeed,
    Temperature,
    TopP,
    TrustRemoteCode,
    Unquantized,
    refuse_unused_top_p,
)
from lorakit.cli.views.answers import ShownLabel, pairs_of, print_labels, print_tags, print_texts
from lorakit.cli.views.console import merged_name, next_steps, remark, shell_quote
from lorakit.errors import ConfigError, DataError, MissingFileError

if TYPE_CHECKING:
    from lorakit.inference import LoadedModel
    from lorakit.inference.prediction import TextOutput


_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def generate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_ADAPTER",
            help="A run or an adapter directory; with --url the name of a model.",
        ),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts; by default each line of stdin."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="File with one text per line; - is stdin.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also show the base without the adapter.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum length of an answer; by default 64, or that of training."
        ),
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    seed: SamplingSeed = 42,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask a running server instead of loading the model."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --url: the model; by default the first argument."),
    ] = None,
    api_key_file: ApiKeyFile = None,
    base_model: BaseModel = None,
    unquantized: Unquantized = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Try an adapter on texts: answer, classify or tag them.

    Raises:
        ConfigError: Options do not go together.
    """
    if adapter is not None and target is not None:
        texts, target = [target, *(texts or [])], None
    for_server = {"--adapter": adapter, "--api-key-file": api_key_file}
    for_loading = {
        "--base-model": base_model,
        "--unquantized": unquantized,
        "--trust-remote-code": trust_remote_code,
    }
    refuse_together(url, for_loading if url is not None else for_server)
    named = target if adapter is None else adapter
    if named is None:
        raise ConfigError(
            "No adapter: got none, expected a run or an adapter directory, or with --url the name "
            "of a model. Name one."
        )
    prompts = read_texts(texts or [], file)
    refuse_unused_top_p(top_p, temperature)
    if url is not None:
        from lorakit.cli.commands.generate_from_server import generate_from_server
        from lorakit.serving.clients.talking import AnswerOptions
        from lorakit.serving.http.keys import API_KEY_VARIABLE, collect_keys

        keys = collect_keys([], api_key_file, API_KEY_VARIABLE)
        sampling = AnswerOptions(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed)
        generate_from_server(url, next(iter(keys), None), named, prompts, base, sampling)
        return
    location = adapter_location(named)
    from lorakit.inference import load_for_inference

    hide_loading_bars()
    loaded = load_for_inference(
        location, base_model, unquantized=unquantized, trust_remote_code=trust_remote_code
    )
    remark(f"{loaded.task_type} with {location} on {loaded.base}")
    if loaded.note is not None:
        remark(loaded.note)
    if loaded.task_type == "SEQ_CLS":
        show_classes(loaded, prompts, base)
    elif loaded.task_type == "TOKEN_CLS":
        show_tags(loaded, prompts, base)
    else:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        options |= {"seed": seed} | ({"top_p": top_p} if top_p is not None else {})
        show_texts(loaded, prompts, base, options)
    name = shell_quote(named)
    steps = {} if base else {f'lorakit generate {name} "..." --base': "also shows the base"}
    next_steps(
        {**steps, f"lorakit merge {name} {merged_name(named)}": "writes a plain checkpoint"},
        stderr=True,
    )


def refuse_together(url: str | None, options: Mapping[str, Any]) -> None:
    """Refuse options that do not go with --url, or with a model that is loaded here.

    Raises:
        ConfigError: One of them is given.
    """
    given = [name for name, value in options.items() if value]
    if not given:
        return
    names, verb = " and ".join(given), "apply" if len(given) > 1 else "applies"
    if url is None:
        raise ConfigError(
            f"{names} {verb} to a running server: got no --url. Add it, or leave {names} out."
        )
    raise ConfigError(
        f"{names} {verb} to a model that is loaded here: got --url {url}, whose server has loaded "
        f"it already. Leave {names} out, or give it to `lorakit serve`."
    )


def read_texts(given: Sequence[str], file: Path | None) -> list[str]:
    """Return the input texts.

    Args:
        given: Texts on the command line.
        file: File with one text per line; "-" is stdin, which is also read if neither texts nor
            a file are given.

    Raises:
        ConfigError: There are texts and a file, or neither.
        DataError: The file holds no text, or is not UTF-8.
        MissingFileError: The file does not exist.
    """
    if given and file is not None:
        raise ConfigError(
            f"Two sources of texts: got {len(given)} on the command line and --file {file}, "
            "expected one of the two. Remove one."
        )
    if given:
        return list(given)
    if file is None and sys.stdin.isatty():
        raise ConfigError(
            "No text: got none on the command line, expected at least one. Add it in quotes, name "
            "a file with --file, or pipe one text per line into the command."
        )
    if file is not None and file.suffix.lower() in _TABLES:
        raise ConfigError(
            f"--file takes one text per line: got the table {file}, expected a text file. "
            f"`lorakit predict` reads tables: lorakit predict RUN {shell_quote(file)}"
        )
    where = "stdin" if file is None or str(file) == "-" else str(file)
    try:
        content = sys.stdin.read() if where == "stdin" else Path(where).read_text("utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"No file {where} for --file. Check the path.") from None
    except IsADirectoryError:
        raise MissingFileError(f"--file {where} is a directory, expected a text file.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"Cannot read {where}: byte {error.start} is not UTF-8. Save the texts as UTF-8."
        ) from None
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"No text in {where}: got no line with text, expected one text per line.")
    return lines


def show_texts(
    loaded: LoadedModel, prompts: Sequence[str], base: bool, options: dict[str, Any]
) -> None:
    """Print the generated texts; nothing else for one prompt without --base."""
    from lorakit.inference import generate_text

    answers = {"adapter": generate_text(loaded, prompts, **options)}
    if base:
        answers["base alone"] = generate_text(loaded, prompts, use_base=True, **options)
    print_texts(prompts, answers)


def show_classes(loaded: LoadedModel, prompts: Sequence[str], base: bool) -> None:
    """Print each text's label with its probability."""
    from lorakit.inference import classify

    texts = pairs_of(prompts) if loaded.settings.text_pair else list(prompts)
    found = [list(map(format_label, classify(loaded, texts)))]
    if base:
        found.append(list(map(format_label, classify(loaded, texts, use_base=True))))
        remark("The base alone has the untrained head from before training.")
    print_labels(prompts, found)


def format_label(found: TextOutput) -> ShownLabel:
    """Return a class, several labels or numbers as a table shows them."""
    from lorakit.inference import LabelSet, Numbers

    if isinstance(found, Numbers):
        return ShownLabel(", ".join(f"{number:.6g}" for number in found.values.values()))
    if isinstance(found, LabelSet):
        each = (f"{label} {100 * found.probabilities[label]:.1f}%" for label in found.labels)
        return ShownLabel(", ".join(each) or "(none)")
    return ShownLabel(found.label, found.probability)


def show_tags(loaded: LoadedModel, prompts: Sequence[str], base: bool) -> None:
    """Print each text with its words' tags, and the tagged words' probabilities."""
    from lorakit.inference import tag

    answers = {"adapter": tag(loaded, prompts)}
    if base:
        answers["base alone"] = tag(loaded, prompts, use_base=True)
    print_tags(answers)
